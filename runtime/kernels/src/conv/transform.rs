//! Winograd's transforms (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016), one vector of
//! channels at a time: F(2x2, 3x3) with points 0, 1, -1 and F(4x4, 3x3) with points 0, 1, -1, 2, -2.
#![expect(unsafe_op_in_unsafe_fn, reason = "arithmetic on vectors under the trait's contract")]

use crate::simd::Simd;

/// Side of the largest input patch.
pub(super) const MOST_PATCH: usize = 6;

/// One of the two sizes.
pub(super) trait Tile {
    /// Side of the output tile.
    const OUT: usize;
    /// Side of the input patch, `OUT + 2`.
    const PATCH: usize;

    /// `B^T d` for one column: reads and writes `PATCH` vectors.
    unsafe fn input<S: Simd>(d: [S::V; MOST_PATCH]) -> [S::V; MOST_PATCH];

    /// `A^T m` for one column: reads `PATCH` vectors, gives `OUT`.
    unsafe fn output<S: Simd>(m: [S::V; MOST_PATCH]) -> [S::V; 4];

    /// `G g` for one column of the kernel: `PATCH` values.
    fn kernel(g: [f64; 3]) -> [f64; MOST_PATCH];
}

pub(super) struct Tile4;
pub(super) struct Tile2;

impl Tile for Tile4 {
    const OUT: usize = 4;
    const PATCH: usize = 6;

    #[inline(always)]
    unsafe fn input<S: Simd>([a, b, c, d, e, f]: [S::V; MOST_PATCH]) -> [S::V; MOST_PATCH] {
        let (four, five, two) = (S::splat(4.0), S::splat(5.0), S::splat(2.0));
        let even = S::neg_mul_add(four, c, e);
        let odd = S::neg_mul_add(four, b, d);
        let even2 = S::sub(e, c);
        let odd2 = S::sub(d, b);
        [
            S::mul_add(four, a, S::neg_mul_add(five, c, e)),
            S::add(even, odd),
            S::sub(even, odd),
            S::mul_add(two, odd2, even2),
            S::neg_mul_add(two, odd2, even2),
            S::mul_add(four, b, S::neg_mul_add(five, d, f)),
        ]
    }

    #[inline(always)]
    unsafe fn output<S: Simd>([a, b, c, d, e, f]: [S::V; MOST_PATCH]) -> [S::V; 4] {
        let (p, q) = (S::add(b, c), S::sub(b, c));
        let (r, t) = (S::add(d, e), S::sub(d, e));
        [
            S::add(S::add(a, p), r),
            S::mul_add(S::splat(2.0), t, q),
            S::mul_add(S::splat(4.0), r, p),
            S::add(S::mul_add(S::splat(8.0), t, q), f),
        ]
    }

    fn kernel([a, b, c]: [f64; 3]) -> [f64; MOST_PATCH] {
        let (one, two) = (-(a + c) / 6.0, a / 24.0 + c / 6.0);
        [a / 4.0, one - b / 6.0, one + b / 6.0, two + b / 12.0, two - b / 12.0, c]
    }
}

impl Tile for Tile2 {
    const OUT: usize = 2;
    const PATCH: usize = 4;

    #[inline(always)]
    unsafe fn input<S: Simd>([a, b, c, d, ..]: [S::V; MOST_PATCH]) -> [S::V; MOST_PATCH] {
        [S::sub(a, c), S::add(b, c), S::sub(c, b), S::sub(b, d), a, a]
    }

    #[inline(always)]
    unsafe fn output<S: Simd>([a, b, c, d, ..]: [S::V; MOST_PATCH]) -> [S::V; 4] {
        [S::add(S::add(a, b), c), S::sub(S::sub(b, c), d), a, a]
    }

    fn kernel([a, b, c]: [f64; 3]) -> [f64; MOST_PATCH] {
        [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c, 0.0, 0.0]
    }
}

/// `G g G^T` of a kernel `[3][3]`: value at `[row][column]` of the `PATCH x PATCH` result.
pub(super) fn kernel<T: Tile>(g: [[f64; 3]; 3]) -> [[f64; MOST_PATCH]; MOST_PATCH] {
    let columns: [_; 3] = std::array::from_fn(|x| T::kernel([g[0][x], g[1][x], g[2][x]]));
    std::array::from_fn(|y| T::kernel([columns[0][y], columns[1][y], columns[2][y]]))
}
