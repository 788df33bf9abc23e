//! Fold what is constant at inference and write ONNX.
//!
//! [`onnx`] builds graphs and [`inline`] takes in those of others. [`unet`] and [`head`] write
//! their parts of the fused predictor, [`fused`] joins them and [`macs`] counts the work;
//! [`command`] is `export`. [`encoder`] writes an image encoder from the weights that [`pytorch`]
//! reads. [`record`] is what training leaves for the metadata; [`check`] compares an exported
//! file with the modules it was made from.

pub mod check;
pub mod command;
pub mod efficientnet;
pub mod encoder;
pub mod fused;
pub mod head;
pub mod inline;
pub mod macs;
pub mod onnx;
pub mod pytorch;
mod random;
pub mod record;
#[cfg(test)]
mod testing;
pub mod unet;
pub mod weights;

pub use fused::{EncoderPart, Fused, Parts, UnetPart, fuse};
