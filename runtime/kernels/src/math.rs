//! The exponential and the activations on vectors, and the roots of norms.
//!
//! All of it is made of additions, subtractions and products that are rounded one by one, in the order written: the
//! same bits on every instruction set, and on a graphics processor that does the same. Quotients and roots, which
//! graphics processors only approximate, are Newton's.
#![expect(unsafe_op_in_unsafe_fn, reason = "arithmetic on vectors under the trait's contract")]

use crate::{Activation, simd::Simd};

/// Below it the exponential of the negative is held, so that its reciprocal is a normal float.
const LEAST: f32 = -87.0;

/// Bits of a first guess of a reciprocal, less the bits of the value: within 13%.
pub(crate) const RECIPROCAL: u32 = 0x7ef3_11c7;

/// `exp(x)` with a relative error below 3e-7, `x` held within the range of normal floats. NaN stays NaN.
///
/// Cody-Waite reduction by ln 2 in two parts, then Cephes' polynomial of degree 5 for `expf`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    let r = S::sub(x, S::mul(n, S::splat(0.693_359_4)));
    let r = S::sub(r, S::mul(n, S::splat(-2.121_944_4e-4)));
    let p = S::splat(1.987_569_1e-4);
    let p = S::add(S::mul(p, r), S::splat(1.398_199_9e-3));
    let p = S::add(S::mul(p, r), S::splat(8.333_452e-3));
    let p = S::add(S::mul(p, r), S::splat(4.166_579_6e-2));
    let p = S::add(S::mul(p, r), S::splat(1.666_666_5e-1));
    let p = S::add(S::mul(p, r), S::splat(0.5));
    let p = S::add(S::mul(p, S::mul(r, r)), S::add(r, S::splat(1.0)));
    S::scale_by_power(p, n)
}

/// `1 / x` for positive normal `x`, whose reciprocal is one too, within 2 units of the last place.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn reciprocal<S: Simd>(x: S::V) -> S::V {
    let mut r = S::reciprocal_guess(x);
    for _ in 0..4 {
        r = S::mul(r, S::sub(S::splat(2.0), S::mul(x, r)));
    }
    r
}

/// The same of one value.
#[inline(always)]
pub(crate) fn reciprocal_of(x: f32) -> f32 {
    let mut r = f32::from_bits(RECIPROCAL.wrapping_sub(x.to_bits()));
    for _ in 0..4 {
        r *= 2.0 - x * r;
    }
    r
}

/// The square root of a normal `x` or 0, within 2 units of the last place.
#[inline(always)]
pub(crate) fn root_of(x: f32) -> f32 {
    let half = 0.5 * x;
    let mut y = f32::from_bits(0x5f37_59df_u32.wrapping_sub(x.to_bits() >> 1));
    for _ in 0..4 {
        y *= 1.5 - half * y * y;
    }
    x * y
}

/// What a pixel norm multiplies its `count` values with: `1 / (root of their mean square + eps)`.
///
/// # Safety
/// See [`Simd`]; `count` values can be read.
#[inline(always)]
pub(crate) unsafe fn norm_factor<S: Simd>(from: *const f32, count: usize, eps: f32) -> f32 {
    let mean = sum_of_squares::<S>(from, count) * (1.0 / count as f32);
    reciprocal_of(root_of(mean) + eps)
}

/// The sum of the squares of `count` values, as vectors of 16 would add them up.
#[inline(always)]
unsafe fn sum_of_squares<S: Simd>(from: *const f32, count: usize) -> f32 {
    const LANES: usize = 16;
    let mut sums = [S::zero(); LANES / 4];
    let parts = LANES / S::LANES;
    for start in (0..count).step_by(LANES) {
        for (part, sum) in sums.iter_mut().enumerate().take(parts) {
            let at = start + part * S::LANES;
            if at < count {
                let n = S::LANES.min(count - at);
                let v = match n == S::LANES {
                    true => S::load(from.add(at)),
                    false => S::load_first(from.add(at), n),
                };
                *sum = S::add(*sum, S::mul(v, v));
            }
        }
    }
    let mut half = parts / 2;
    while half > 0 {
        for part in 0..half {
            sums[part] = S::add(sums[part], sums[part + half]);
        }
        half /= 2;
    }
    S::sum(sums[0])
}

/// `x / (1 + exp(-x))`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // Further down the value is as good as 0; held there, negative infinity gives it too.
    let x = S::max(S::splat(LEAST), x);
    S::mul(x, sigmoid::<S>(x))
}

/// `1 / (1 + exp(-x))`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    let x = S::max(S::splat(LEAST), x);
    reciprocal::<S>(S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x))))
}

/// An activation as vectors need it: everything but the sigmoids is a clip.
#[derive(Clone, Copy)]
pub(crate) enum VectorActivation {
    Clip { low: f32, high: f32 },
    Silu,
    Sigmoid,
}

impl From<Activation> for VectorActivation {
    fn from(a: Activation) -> Self {
        match a {
            Activation::None => Self::Clip { low: f32::NEG_INFINITY, high: f32::INFINITY },
            Activation::Relu => Self::Clip { low: 0.0, high: f32::INFINITY },
            Activation::Clip { low, high } => Self::Clip { low, high },
            Activation::Silu => Self::Silu,
            Activation::Sigmoid => Self::Sigmoid,
        }
    }
}

impl VectorActivation {
    /// # Safety
    /// See [`Simd`].
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(self, x: S::V) -> S::V {
        match self {
            Self::Clip { low, high } => S::min(S::splat(high), S::max(S::splat(low), x)),
            Self::Silu => silu::<S>(x),
            Self::Sigmoid => sigmoid::<S>(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newtons_quotients_and_roots_are_close() {
        for k in -60..=60 {
            for part in [1.0, 1.2, 1.5, 1.999_999] {
                let x = part * 2.0f32.powi(k);
                let off = [reciprocal_of(x) * x - 1.0, root_of(x) / x.sqrt() - 1.0];
                assert!(off.iter().all(|off| off.abs() < 3e-7), "{x}: {off:?}");
            }
        }
        assert_eq!(root_of(0.0), 0.0);
    }
}
