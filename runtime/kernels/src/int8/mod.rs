//! Integer kernels: uint8 activations times int8 weights, summed in int32.
//!
//! A real is `scale * (q - zero_point)`; weights have no zero point and one scale an output channel.
//! [`Conv2d`] covers convolutions of any window, stride and dilation, depthwise ones, and (as 1 x 1 over
//! one pixel) matrix products. What becomes of the sums is an [`Output`]: reals again, or uint8 after a
//! rounding half to even as ONNX asks for, through a table of 256 values where an activation follows.
//!
//! All instruction sets give the same integers. AVX2 without a dot product multiplies pairs into 16 bits
//! (`maddubs`), which is exact for weights of 7 bits; wider weights are taken apart into two halves there,
//! at twice the work.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod columns;
mod conv;
mod depthwise;
mod output;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use conv::Conv2d;
pub use output::{Output, Requantize, dequantize, look_up, quantize};
