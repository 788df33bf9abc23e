//! Fold what is constant at inference and write ONNX.
//!
//! [`onnx`] builds graphs and [`inline`] takes in those of others. [`unet`] writes the folded
//! U-Net and [`macs`] counts the work. [`encoder`] writes an image encoder from the weights that
//! [`pytorch`] reads.

pub mod efficientnet;
pub mod encoder;
pub mod inline;
pub mod macs;
pub mod onnx;
pub mod pytorch;
pub mod record;
pub mod unet;
pub mod weights;

pub use encoder::{ENCODER_KEY, EncoderInfo};
