//! The metadata that travels inside a model's ONNX file.
//!
//! Every field of [`Metadata`] is one entry of `metadata_props`: key `diffbulk.<field>`, value
//! JSON. This file is the schema's only home; the trainer writes it through these types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of this schema; a file with a newer one is refused.
pub const SCHEMA_VERSION: u32 = 1;

/// Prefix of every key in `metadata_props`.
pub const KEY_PREFIX: &str = "diffbulk.";

/// Everything needed to use a model rightly that is not in its graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Model name, for example `her2st-edge`.
    pub name: String,
    /// Model version.
    pub version: String,
    /// Gene symbols in output order.
    pub panel: Vec<String>,
    /// Side of the square input tile in pixels.
    pub tile_px: u32,
    /// Micrometres per pixel the tile must have.
    pub um_per_px: f64,
    /// Unit of the output, for example `ln(1 + counts per 10,000)`.
    pub unit: String,
    /// Arithmetic of weights and activations: `float32`, `float16`, `int8`.
    pub precision: String,
    /// How it was quantised; absent for float32.
    #[serde(default)]
    pub quantization: Option<serde_json::Value>,
    /// Multiply-accumulates of everything that runs for one tile.
    pub macs_per_tile: u64,
    /// Licence of the weights.
    pub license: String,
    /// What it was trained on, with licence and attribution.
    pub training_data: Vec<TrainingData>,
    /// Held-out figures, each with what it was measured on.
    #[serde(default)]
    pub metrics: Vec<Metric>,
    /// Held-out Pearson correlation of each panel gene (absent where undefined).
    #[serde(default)]
    pub gene_pearson: BTreeMap<String, f64>,
    /// Statistics of training inputs for the confidence figure.
    #[serde(default)]
    pub confidence: Option<Confidence>,
    /// What made the file.
    pub provenance: Provenance,
}

/// One training data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingData {
    /// Name of the data set.
    pub name: String,
    /// Where it comes from (DOI or address).
    pub source: String,
    /// Its licence.
    pub license: String,
    /// Slides or sections used.
    pub slides: Vec<String>,
}

/// One held-out figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What, for example `mean per-gene Pearson`.
    pub name: String,
    /// On which held-out slides and split.
    pub split: String,
    /// The figure.
    pub value: f64,
}

/// Mean and standard deviation over training tiles of simple image statistics; a tile's
/// confidence falls with its distance from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// Names of the statistics, in order.
    pub statistics: Vec<String>,
    /// Mean of each over the training tiles.
    pub mean: Vec<f64>,
    /// Standard deviation of each over the training tiles.
    pub std: Vec<f64>,
}

/// What made the file, so that it can be made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Crate and version that wrote the file.
    pub crate_version: String,
    /// SHA-256 of the training configuration.
    pub config_sha256: String,
    /// Seed of the training.
    pub seed: u64,
    /// Image encoder inside the graph, with its licence.
    pub encoder: String,
}
