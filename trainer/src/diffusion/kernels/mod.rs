//! Fused CPU kernels with handwritten gradients for the operations training spends its time in.
//!
//! Every function takes tensors and either returns the result or, for tensors that do not live on
//! the CPU backend in float32, gives them back so that the caller can use burn's own operations.
//! A kernel works on plain slices ([`Kernel`]); [`bridge`] records it in the gradient graph.

#![allow(
    clippy::result_large_err,
    reason = "the error of an `Attempt` is no failure: it hands the tensors back"
)]

#[cfg(feature = "cpu")]
mod bridge;
#[cfg(feature = "cpu")]
mod convolution;
#[cfg(feature = "cpu")]
mod pointwise;
#[cfg(feature = "cpu")]
mod resample;
#[cfg(feature = "cpu")]
mod simd;
#[cfg(feature = "cpu")]
mod softmax;
#[cfg(all(test, feature = "cpu"))]
mod tests;

use burn::tensor::Tensor;

/// Shape and values of a kernel's input.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Shape.
    pub shape: &'a [usize],
    /// Values in row-major order.
    pub data: &'a [f32],
}

/// Shape and values of a kernel's output.
#[derive(Debug)]
pub struct Output {
    /// Shape.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub data: Vec<f32>,
}

/// A differentiable operation on `N` arrays.
pub trait Kernel<const N: usize>: Clone + Send + std::fmt::Debug + 'static {
    /// The result.
    fn forward(&self, inputs: [View<'_>; N]) -> Output;

    /// Gradients of the wanted inputs from the gradient of the result.
    fn backward(
        &self,
        inputs: [View<'_>; N],
        grad: View<'_>,
        wanted: [bool; N],
    ) -> [Option<Output>; N];
}

/// Result of a kernel, or its inputs where it does not apply.
pub type Attempt<T, I> = Result<T, I>;

#[cfg(not(feature = "cpu"))]
mod absent {
    use super::*;

    pub fn one<const O: usize>(x: Tensor<4>) -> Attempt<Tensor<O>, Tensor<4>> {
        Err(x)
    }
}

/// SiLU over [`super::ops::SILU_SCALE`].
pub fn silu(x: Tensor<4>) -> Attempt<Tensor<4>, Tensor<4>> {
    #[cfg(feature = "cpu")]
    return bridge::apply1(pointwise::Silu, x);
    #[cfg(not(feature = "cpu"))]
    absent::one(x)
}

/// SiLU of `x` times one factor per image and channel, over its scale.
pub fn silu_modulated(
    x: Tensor<4>,
    factor: Tensor<2>,
) -> Attempt<Tensor<4>, (Tensor<4>, Tensor<2>)> {
    #[cfg(feature = "cpu")]
    return bridge::apply2(pointwise::SiluModulated, x, factor);
    #[cfg(not(feature = "cpu"))]
    Err((x, factor))
}

/// Weighted sum, held within plus and minus `clip` where one is given.
pub fn sum(
    a: Tensor<4>,
    b: Tensor<4>,
    weights: (f64, f64),
    clip: Option<f64>,
) -> Attempt<Tensor<4>, (Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "cpu")]
    {
        let limit = clip.unwrap_or(f64::INFINITY) as f32;
        let kernel = pointwise::Sum { a: weights.0 as f32, b: weights.1 as f32, limit };
        bridge::apply2(kernel, a, b)
    }
    #[cfg(not(feature = "cpu"))]
    {
        let _ = (weights, clip);
        Err((a, b))
    }
}

/// Weighted concatenation along channels.
pub fn cat(
    a: Tensor<4>,
    b: Tensor<4>,
    weights: (f64, f64),
) -> Attempt<Tensor<4>, (Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "cpu")]
    return bridge::apply2(pointwise::Cat { a: weights.0 as f32, b: weights.1 as f32 }, a, b);
    #[cfg(not(feature = "cpu"))]
    {
        let _ = weights;
        Err((a, b))
    }
}

/// Every pixel's channel vector to unit root mean square.
pub fn pixel_norm(x: Tensor<4>) -> Attempt<Tensor<4>, Tensor<4>> {
    #[cfg(feature = "cpu")]
    return bridge::apply1(pointwise::PixelNorm, x);
    #[cfg(not(feature = "cpu"))]
    absent::one(x)
}

/// Mean over 2 x 2 pixels.
pub fn down(x: Tensor<4>) -> Attempt<Tensor<4>, Tensor<4>> {
    #[cfg(feature = "cpu")]
    return bridge::apply1(resample::Down, x);
    #[cfg(not(feature = "cpu"))]
    absent::one(x)
}

/// Every pixel repeated 2 x 2.
pub fn up(x: Tensor<4>) -> Attempt<Tensor<4>, Tensor<4>> {
    #[cfg(feature = "cpu")]
    return bridge::apply1(resample::Up, x);
    #[cfg(not(feature = "cpu"))]
    absent::one(x)
}

/// Softmax over the last dimension.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Attempt<Tensor<D>, Tensor<D>> {
    #[cfg(feature = "cpu")]
    return bridge::apply1(softmax::Softmax, x);
    #[cfg(not(feature = "cpu"))]
    Err(x)
}

/// Stride-1 convolution with odd square kernels that keeps the resolution.
pub fn conv(x: Tensor<4>, weight: Tensor<4>) -> Attempt<Tensor<4>, (Tensor<4>, Tensor<4>)> {
    #[cfg(feature = "cpu")]
    return bridge::apply2(convolution::Convolution, x, weight);
    #[cfg(not(feature = "cpu"))]
    Err((x, weight))
}
