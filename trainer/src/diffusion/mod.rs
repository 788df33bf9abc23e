//! Stage 1: the gene-conditioned diffusion model (EDM2).
//!
//! [`config`] describes an architecture and the tensors it stores, [`weights`] reads and writes
//! them, [`parameters`] holds them on a device and normalises them into the weights that [`unet`]
//! computes with, on the magnitude-preserving [`ops`]. [`denoiser`] adds preconditioning and the
//! loss, [`sampler`] draws images.

pub mod config;
pub mod denoiser;
pub mod kernels;
pub mod ops;
pub mod parameters;
mod presets;
pub mod sampler;
pub mod unet;
pub mod weights;

pub use config::Config;
pub use denoiser::Denoiser;
pub use parameters::{Effective, Parameters};
pub use unet::{Condition, FeatureMode, UNet};
pub use weights::{Array, Weights};
