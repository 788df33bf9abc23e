//! The exponential and the activations on vectors, and the factors of norms.
//!
//! What is said to be exact is made of operations that are rounded one by one, in the order written: the same bits on
//! every instruction set, and on a graphics processor that does the same.
#![expect(unsafe_op_in_unsafe_fn, reason = "arithmetic on vectors under the trait's contract")]

use crate::{Activation, simd::Simd};

/// Further down `x` is held, so that the exponential of the negative is finite.
const LEAST: f32 = -87.0;

/// `exp(x)` with a relative error below 3e-7, `x` held within the range of normal floats. NaN stays NaN. Exact, or a
/// third faster.
///
/// Cody-Waite reduction by ln 2 in two parts, then Cephes' polynomial of degree 5 for `expf`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V, exact: bool) -> S::V {
    let add = |a: S::V, b: S::V, c: S::V| match exact {
        true => S::add(S::mul(a, b), c),
        false => S::mul_add(a, b, c),
    };
    let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    let r = add(n, S::splat(-0.693_359_4), x);
    let r = add(n, S::splat(2.121_944_4e-4), r);
    let p = S::splat(1.987_569_1e-4);
    let p = add(p, r, S::splat(1.398_199_9e-3));
    let p = add(p, r, S::splat(8.333_452e-3));
    let p = add(p, r, S::splat(4.166_579_6e-2));
    let p = add(p, r, S::splat(1.666_666_5e-1));
    let p = add(p, r, S::splat(0.5));
    let p = add(p, S::mul(r, r), S::add(r, S::splat(1.0)));
    S::scale_by_power(p, n)
}

/// What a pixel norm multiplies its `count` values with: `1 / (root of their mean square + eps)`. Exact.
///
/// # Safety
/// See [`Simd`]; `count` values can be read.
#[inline(always)]
pub(crate) unsafe fn norm_factor<S: Simd>(from: *const f32, count: usize, eps: f32) -> f32 {
    let mean = sum_of_squares::<S>(from, count) * (1.0 / count as f32);
    1.0 / (mean.sqrt() + eps)
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
pub(crate) unsafe fn silu<S: Simd>(x: S::V, exact: bool) -> S::V {
    // Further down the value is as good as 0; held there, negative infinity gives it too.
    let x = S::max(S::splat(LEAST), x);
    S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x), exact)))
}

/// `1 / (1 + exp(-x))`.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V, exact: bool) -> S::V {
    let x = S::max(S::splat(LEAST), x);
    S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::zero(), x), exact)))
}

/// An activation as vectors need it: everything but the sigmoids is a clip.
#[derive(Clone, Copy)]
pub(crate) enum VectorActivation {
    Clip { low: f32, high: f32 },
    Silu,
    Sigmoid,
    ExactSilu,
    ExactSigmoid,
}

impl From<Activation> for VectorActivation {
    fn from(a: Activation) -> Self {
        match a {
            Activation::None => Self::Clip { low: f32::NEG_INFINITY, high: f32::INFINITY },
            Activation::Relu => Self::Clip { low: 0.0, high: f32::INFINITY },
            Activation::Clip { low, high } => Self::Clip { low, high },
            Activation::Silu => Self::Silu,
            Activation::Sigmoid => Self::Sigmoid,
            Activation::ExactSilu => Self::ExactSilu,
            Activation::ExactSigmoid => Self::ExactSigmoid,
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
            Self::Silu => silu::<S>(x, false),
            Self::Sigmoid => sigmoid::<S>(x, false),
            Self::ExactSilu => silu::<S>(x, true),
            Self::ExactSigmoid => sigmoid::<S>(x, true),
        }
    }
}
