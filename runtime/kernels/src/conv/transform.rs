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

    /// `G g` for one column of the kernel: gives `PATCH` vectors.
    unsafe fn kernel<S: Simd>(g: [S::V; 3]) -> [S::V; MOST_PATCH];
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

    #[inline(always)]
    unsafe fn kernel<S: Simd>([a, b, c]: [S::V; 3]) -> [S::V; MOST_PATCH] {
        let (sixth, twelfth) = (S::splat(1.0 / 6.0), S::splat(1.0 / 12.0));
        let one = S::mul(S::splat(-1.0 / 6.0), S::add(a, c));
        let two = S::mul_add(sixth, c, S::mul(S::splat(1.0 / 24.0), a));
        [
            S::mul(S::splat(0.25), a),
            S::neg_mul_add(sixth, b, one),
            S::mul_add(sixth, b, one),
            S::mul_add(twelfth, b, two),
            S::neg_mul_add(twelfth, b, two),
            c,
        ]
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

    #[inline(always)]
    unsafe fn kernel<S: Simd>([a, b, c]: [S::V; 3]) -> [S::V; MOST_PATCH] {
        let half = S::splat(0.5);
        let sum = S::mul(half, S::add(a, c));
        [a, S::mul_add(half, b, sum), S::neg_mul_add(half, b, sum), c, c, c]
    }
}
