//! The CPU engine's kernels: pure compute on slices, no file, no thread, no allocation while running.
//!
//! Activations are NHWC float32, one image at a time: a map of `height x width` pixels of `channels` values each.
//! Whatever depends on weights is prepared once as an immutable object ([`Conv2d`], [`Dense`]) that threads share;
//! what it needs to run is a [scratch slice](Conv2d::scratch_len) of the caller's. Everything else is a function.
//!
//! - Instruction sets are chosen at run time ([`Isa`]). Each kernel is written once, generic over vectors, and compiled
//!   for each instruction set; plain Rust ([`Isa::Scalar`]) is one of them and the fallback. The tests compare all of
//!   them with a reference in nested loops.
//! - [`int8`] holds the same for integers.
//! - A call computes a range of output rows into a slice that holds just those rows, so one operator splits over
//!   threads. No output value depends on the split: any number of threads gives the same bits.
//! - Instruction sets may differ from each other by rounding; the tests state the bounds.
//! - NaN and infinity: a NaN input gives NaN wherever it is summed, `Clip` and `Relu` hand NaN on, and SiLU of
//!   negative infinity is 0 (within 1e-35). Winograd convolutions spread an infinity or NaN over its 6x6 neighbourhood.

mod activation;
mod aligned;
mod attention;
mod conv;
mod dense;
mod epilogue;
mod error;
mod finish;
mod group_norm;
mod image;
pub mod int8;
mod inverted_residual;
mod isa;
mod math;
mod matrix;
pub mod memory;
mod peak;
mod pointwise;
mod pool;
mod resize;
mod simd;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use activation::Activation;
pub use attention::Attention;
pub use conv::{Conv2d, ConvAlgorithm, ConvSpec, SourceSpec};
pub use dense::Dense;
pub use epilogue::{Epilogue, PixelNorm, Residual, Second, Source};
pub use error::KernelError;
pub use group_norm::GroupNorm;
pub use image::ImageInput;
pub use inverted_residual::{InvertedResidual, InvertedResidualSpec, Layer};
pub use isa::{Isa, IsaError};
pub use peak::measure_peak;
pub use pointwise::pointwise;
pub use pool::{average_pool_2x2, global_mean, mean_of_row_sums, mean_std};
pub use resize::upsample_2x;
