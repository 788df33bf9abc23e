//! DiffBulk runtime: spatial gene expression from an H&E slide, tile by tile.
//!
//! Data flows one way: [`slide`] opens the pixels, [`tissue`] and [`tiling`] say which tiles to
//! look at, [`model`] describes the ONNX file, [`engine`] runs it, [`predict`] ties them together
//! on bounded queues and [`output`] writes the rows; [`bench`] measures. [`cli`] only turns arguments into calls.

pub mod anndata;
pub mod bench;
pub mod cli;
pub mod engine;
mod error;
pub mod model;
pub mod output;
pub mod picture;
pub mod predict;
mod process;
pub mod scan_sim;
pub mod serve;
pub mod slide;
pub mod tiling;
pub mod tissue;
pub mod trust;

pub use error::{Error, Result};

/// Version of this crate, written into every output.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
