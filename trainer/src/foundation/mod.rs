//! Frozen image encoders: an ONNX file run once over the tiles of a dataset, its features cached.
//!
//! An [`Encoder`] is any ONNX file from a normalised image to a vector; a [`View`] is one way of
//! looking at a tile (a symmetry, a stain jitter); [`features`] runs the encoder over the tiles
//! under some views, once: what was computed is kept in the dataset's directory.

mod cache;
mod encoder;
mod preprocess;
mod run;
mod view;

pub use encoder::{Encoder, EncoderFlags, EncoderInfo, METADATA_KEY};
pub use preprocess::{normalise, resize_bilinear};
pub use run::{features, view_features};
pub use view::View;

#[cfg(test)]
pub(crate) mod testing;
