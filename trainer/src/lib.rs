//! DiffBulk trainer: from paired slides and counts to one ONNX file.
//!
//! [`data`] imports pairs, [`genes`] and [`diffusion`] are stage 1 (gene-conditioned diffusion),
//! [`foundation`] runs a frozen image encoder once, [`predictor`] is stage 2 (fusion and gene
//! decoder), [`train`] holds both loops, [`evaluate`] the held-out figures and baselines, and
//! [`export`] writes the fused predictor, [`quantize`] smaller and faster files of it.
//! [`numerics`] checks it all against reference tensors.

pub mod data;
pub mod diffusion;
mod error;
pub mod evaluate;
pub mod export;
pub mod foundation;
pub mod genes;
pub mod numerics;
pub mod predictor;
pub mod quantize;
pub mod train;

pub use error::{Error, Result};

/// Version of this crate, written into every file it makes.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
