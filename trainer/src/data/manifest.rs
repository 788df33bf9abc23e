//! `dataset.json`: what a dataset is, where it comes from and what became of every source row.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::normalize::Unit;
use super::report::SectionReport;
use crate::{Error, Result};

/// Version of the dataset directory; a newer one is refused.
pub const FORMAT_VERSION: u32 = 1;

/// Name of the manifest in the dataset directory.
pub const FILE: &str = "dataset.json";

/// The contents of `dataset.json`. It is written last, so a directory without it is not whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Program and version that made the dataset.
    pub created_by: String,
    /// Name of the data set, for cards and model metadata.
    pub name: String,
    /// Layout it was imported from.
    pub layout: String,
    /// Where the data comes from (DOI, address or citation), as the user gave it.
    pub source: String,
    /// Licence of the data, as the user gave it.
    pub license: String,
    /// Unit of the values in `adata.h5ad`.
    pub unit: Unit,
    /// Side of the tiles in pixels.
    pub tile_px: usize,
    /// Micrometres per pixel of the tiles.
    pub um_per_px: f64,
    /// Number of paired tiles.
    pub tiles: usize,
    /// Number of genes.
    pub genes: usize,
    /// SHA-256 of the pixels of the paired tiles in order; names cached image features.
    pub images_sha256: String,
    /// The unlabelled tiles, where there are any.
    pub unlabelled: Option<UnlabelledInfo>,
    /// Sections that could not be used, with the reason.
    pub sections_left_out: Vec<(String, String)>,
    /// The account of every section that was used.
    pub sections: Vec<SectionReport>,
}

/// How the unlabelled tiles were laid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnlabelledInfo {
    /// Number of tiles.
    pub tiles: usize,
    /// Distance between neighbours in pixels of the tiles.
    pub stride_px: f64,
    /// Smallest fraction of a tile that is tissue.
    pub min_tissue: f64,
    /// SHA-256 of the pixels in order.
    pub images_sha256: String,
}

impl Manifest {
    /// Reads the manifest of the dataset in `directory`.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        if !path.is_file() {
            return Err(Error::data(
                directory,
                "is not a paired dataset (it has no dataset.json); make one with `diffbulk-train \
                 prepare`",
            ));
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let version = serde_json::from_slice::<serde_json::Value>(&text)
            .ok()
            .and_then(|value| value.get("format_version")?.as_u64());
        if version.is_some_and(|version| version > u64::from(FORMAT_VERSION)) {
            return Err(Error::data(
                &path,
                "was written by a newer version; use that one, or prepare the dataset again",
            ));
        }
        serde_json::from_slice(&text).map_err(|error| {
            Error::data(&path, format!("cannot be read ({error}); prepare the dataset again"))
        })
    }

    /// Writes the manifest into `directory`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::data(&path, format!("cannot be written ({error})")))?;
        std::fs::write(&path, text).map_err(Error::io(&path))
    }

    /// The entry for a model's metadata when it is trained on `slides` of this dataset.
    pub fn training_data(&self, slides: Vec<String>) -> diffbulk::model::TrainingData {
        diffbulk::model::TrainingData {
            name: self.name.clone(),
            source: self.source.clone(),
            license: self.license.clone(),
            slides,
        }
    }
}
