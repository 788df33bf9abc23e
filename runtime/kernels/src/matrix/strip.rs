//! The matrix kernel's register block: a few rows (pixels or tiles) by one to four vectors of output channels.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic under the contract of Strip")]

use crate::simd::{Kernel, Simd};

/// Most rows of any instruction set's block.
pub(crate) const MOST_ROWS: usize = 8;

/// Widest block of any instruction set, in floats.
pub(crate) const MOST_COLUMNS: usize = 48;

/// One register block's work: `out[r][n] = clip(bias[n] + sum over segments and k of a[segment][r][k] * b[k][n])`.
///
/// # Safety
/// - `rows` is 1 to `S::ROWS`, `columns` (vectors) 1 to `S::COLUMNS`.
/// - `a` has `segments` times `row_stride` pointers of which the first `rows` each hold `k[segment]` floats.
/// - `b` has the sum of `k` times `columns * LANES` floats, `bias` (if not null) `columns * LANES`.
/// - `out` has `rows` rows of `columns * LANES` floats, `out_stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Strip {
    pub rows: usize,
    pub columns: usize,
    pub a: *const *const f32,
    pub row_stride: usize,
    pub k: *const usize,
    pub segments: usize,
    pub b: *const f32,
    pub bias: *const f32,
    pub clip: Option<(f32, f32)>,
    pub out: *mut f32,
    pub out_stride: usize,
}

/// Floats between the weights in use and those being asked for: prefetchers of the processor begin anew with each page
/// and each stream, while the next position's or layer's weights mostly lie just behind these.
const AHEAD: usize = 4096;

struct Block<const R: usize, const C: usize>(Strip);

impl<const R: usize, const C: usize> Kernel for Block<R, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let s = self.0;
        let mut acc = [[S::zero(); C]; R];
        if !s.bias.is_null() {
            for c in 0..C {
                let bias = S::load(s.bias.add(c * S::LANES));
                for row in &mut acc {
                    row[c] = bias;
                }
            }
        }
        let mut b = s.b;
        for segment in 0..s.segments {
            let mut a = [std::ptr::null(); R];
            for (r, a) in a.iter_mut().enumerate() {
                *a = *s.a.add(segment * s.row_stride + r);
            }
            for k in 0..*s.k.add(segment) {
                let mut weights = [S::zero(); C];
                for (c, w) in weights.iter_mut().enumerate() {
                    *w = S::load(b.add(c * S::LANES));
                }
                for line in (0..C * S::LANES).step_by(16) {
                    S::prefetch(b.wrapping_add(AHEAD + line));
                }
                b = b.add(C * S::LANES);
                for r in 0..R {
                    let value = S::splat(*a[r].add(k));
                    for c in 0..C {
                        acc[r][c] = S::mul_add(value, weights[c], acc[r][c]);
                    }
                }
            }
        }
        if let Some((low, high)) = s.clip {
            let (low, high) = (S::splat(low), S::splat(high));
            for row in &mut acc {
                for v in row {
                    *v = S::min(high, S::max(low, *v));
                }
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (c, v) in row.iter().enumerate() {
                S::store(s.out.add(r * s.out_stride + c * S::LANES), *v);
            }
        }
    }
}

impl Strip {
    /// Computes the block.
    ///
    /// # Safety
    /// The struct's contract, and `S`'s instructions are present.
    #[inline(always)]
    pub(crate) unsafe fn compute<S: Simd>(self) {
        macro_rules! by_rows {
            ($columns:literal) => {
                match self.rows {
                    8 if S::ROWS >= 8 => S::call(Block::<8, $columns>(self)),
                    7 if S::ROWS >= 7 => S::call(Block::<7, $columns>(self)),
                    6 if S::ROWS >= 6 => S::call(Block::<6, $columns>(self)),
                    5 if S::ROWS >= 5 => S::call(Block::<5, $columns>(self)),
                    4 => S::call(Block::<4, $columns>(self)),
                    3 => S::call(Block::<3, $columns>(self)),
                    2 => S::call(Block::<2, $columns>(self)),
                    _ => S::call(Block::<1, $columns>(self)),
                }
            };
        }
        match self.columns {
            4 if S::COLUMNS >= 4 => by_rows!(4),
            3 if S::COLUMNS >= 3 => by_rows!(3),
            2 => by_rows!(2),
            _ => by_rows!(1),
        }
    }
}

/// Splits `n` rows into nearly equal groups of at most `most`: number of groups.
pub(crate) fn groups(n: usize, most: usize) -> usize {
    n.div_ceil(most)
}

/// First row of group `i` of `count` over `n` rows.
pub(crate) fn group_start(n: usize, count: usize, i: usize) -> usize {
    n * i / count
}
