//! Quantised files from float32 ones: any ONNX graph with one image in and one vector out.
//!
//! [`observe`] runs the graph over calibration tiles, [`calibrate`] turns what was seen into
//! ranges, and [`table`] is the one table of scales that comes out. [`qdq`] and [`qlinear`] write
//! it as two forms of graph; [`weight_only`] and [`half`] are the precisions without a
//! calibration. [`split`] prepares skip concatenations, [`sensitivity`] finds which layers to
//! leave out, [`rounding`] rounds weights for what they see, [`measure`] says how far the result is from float32, and [`command`] ties it
//! together and refuses what is too far.

pub mod calibrate;
pub mod command;
mod graph;
pub mod half;
mod job;
mod material;
pub mod measure;
pub mod observe;
pub mod qdq;
pub mod qlinear;
pub mod recipe;
pub mod rounding;
pub mod scheme;
pub mod sensitivity;
pub mod split;
pub mod table;
#[cfg(test)]
mod tests;
pub mod weight_only;

pub use recipe::{Precision, QuantizeFlags};
