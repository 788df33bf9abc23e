//! The exponential and the activations on vectors.
#![expect(unsafe_op_in_unsafe_fn, reason = "arithmetic on vectors under the trait's contract")]

use crate::{Activation, simd::Simd};

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
    let r = S::neg_mul_add(n, S::splat(0.693_359_4), x);
    let r = S::neg_mul_add(n, S::splat(-2.121_944_4e-4), r);
    let p = S::splat(1.987_569_1e-4);
    let p = S::mul_add(p, r, S::splat(1.398_199_9e-3));
    let p = S::mul_add(p, r, S::splat(8.333_452e-3));
    let p = S::mul_add(p, r, S::splat(4.166_579_6e-2));
    let p = S::mul_add(p, r, S::splat(1.666_666_5e-1));
    let p = S::mul_add(p, r, S::splat(0.5));
    let p = S::mul_add(p, S::mul(r, r), S::add(r, S::splat(1.0)));
    S::scale_by_power(p, n)
}

/// `x / (1 + exp(-x))`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // Below -87 the value is smaller than any normal float anyway; held there, negative infinity gives it too.
    let x = S::max(S::splat(-87.0), x);
    S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x))))
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
            Self::Sigmoid => {
                S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x))))
            }
        }
    }
}
