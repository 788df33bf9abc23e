//! Outputs: every format is a [`Sink`] of the same [`Row`]s.

pub mod atomic;

use std::path::PathBuf;

use crate::Result;
use crate::model::Metadata;
use crate::slide::SlideInfo;

/// One predicted tile.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The tile.
    pub tile: crate::tiling::Tile,
    /// Fraction of the tile that is tissue, 0 to 1.
    pub tissue: f32,
    /// How close the tile is to what the model was trained on, 0 to 1.
    pub confidence: f32,
    /// One value per gene of [`Context::genes`].
    pub expression: Vec<f32>,
}

/// What every sink knows before the first row.
#[derive(Debug, Clone)]
pub struct Context {
    /// Directory the outputs go to.
    pub directory: PathBuf,
    /// File stem of the outputs, usually the slide's.
    pub stem: String,
    /// Genes that are written, in order.
    pub genes: Vec<String>,
    /// Metadata of the model.
    pub model: Metadata,
    /// SHA-256 of the model file, hexadecimal.
    pub model_sha256: String,
    /// The slide's file name.
    pub slide_name: String,
    /// The slide's facts.
    pub slide: SlideInfo,
    /// um per level-0 px that was used (the file's or the user's).
    pub um_per_px: f64,
    /// An overview of the slide for pictures.
    pub thumbnail: image::RgbImage,
    /// Level-0 px per thumbnail px.
    pub thumbnail_downsample: f64,
}

/// Writes rows into one file format. The file appears under its final name only in
/// [`Sink::finish`].
pub trait Sink: Send {
    /// Takes the next row; rows come in tile order.
    fn push(&mut self, row: &Row) -> Result<()>;

    /// Completes the output and returns the files made.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>>;
}
