//! `training.json`: what a finished head knows of its own training.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::features::{file_sha256, hex};
use super::recipe::Recipe;
use crate::export::record::{RECORD_FILE, TrainingRecord};
use crate::predictor::{CONFIG_FILE, Head, HeadConfig, WEIGHTS_FILE};
use crate::train::atomic;
use crate::train::source::SourceSummary;
use crate::{Error, Result};

/// Contents of `training.json`: what an export needs, and what tells one training from another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// What an exported model says of itself.
    #[serde(flatten)]
    pub exported: TrainingRecord,
    /// SHA-256 of the pixels of the dataset's tiles.
    pub images_sha256: String,
    /// The U-Net whose features it needs.
    pub unet: Option<UNetReference>,
    /// The encoder whose features it needs.
    pub encoder: Option<EncoderReference>,
    /// How it was trained.
    pub recipe: Recipe,
    /// Crate and version that trained it.
    pub trained_by: String,
}

/// A stage-1 model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UNetReference {
    /// SHA-256 of its weights.
    pub sha256: String,
    /// Slides it was trained on.
    pub slides: Vec<String>,
}

/// A foundation encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderReference {
    /// Its name.
    pub name: String,
    /// Licence of its weights.
    pub license: String,
    /// SHA-256 of its ONNX file.
    pub sha256: String,
    /// Number of its features.
    pub features: usize,
}

impl HeadRecord {
    /// Sets the checksum of everything that decides the training: equal ones make equal heads.
    pub fn seal(mut self, shape: &HeadConfig) -> Result<Self> {
        self.exported.config_sha256 = String::new();
        let text = serde_json::to_vec(&(&self, shape)).map_err(unwritable)?;
        self.exported.config_sha256 = hex(&Sha256::digest(&text));
        Ok(self)
    }

    /// The checksum.
    pub fn key(&self) -> &str {
        &self.exported.config_sha256
    }

    /// Slides it was trained on.
    pub fn slides(&self) -> Vec<String> {
        self.exported.training_data.iter().flat_map(|data| data.slides.clone()).collect()
    }

    /// Writes `head.safetensors`, `training.json` and then `head.json` to a directory.
    pub fn save(&self, head: &Head, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
        head.to_weights().save(&directory.join(WEIGHTS_FILE))?;
        write_json(&directory.join(RECORD_FILE), self)?;
        write_json(&directory.join(CONFIG_FILE), head.config())
    }

    /// Reads `training.json` of a directory.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(RECORD_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|e| {
            Error::model(&path, format!("is not a trained head's record: {e}; train it again"))
        })
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(unwritable)?;
    text.push('\n');
    atomic::write(path, text.as_bytes())
}

fn unwritable(e: serde_json::Error) -> Error {
    Error::Check(format!("the head's record cannot be written: {e}"))
}

/// The slides a stage-1 model was trained on, as its directory says.
pub fn unet_reference(directory: &Path) -> Result<UNetReference> {
    let weights = directory.join("weights.safetensors");
    let path = directory.join("pretrain.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let problem = format!(
            "cannot be read ({e}), so nobody knows which slides the U-Net has seen; name a \
             directory that `diffbulk-train pretrain` wrote"
        );
        Error::model(&path, problem)
    })?;
    let described: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::model(&path, format!("is not JSON: {e}; train the U-Net again")))?;
    let sources = described.pointer("/settings/sources").and_then(serde_json::Value::as_array);
    let Some(sources) = sources.filter(|sources| !sources.is_empty()) else {
        let problem = "does not list what the U-Net was trained on; train it again";
        return Err(Error::model(&path, problem));
    };
    let mut slides = Vec::new();
    for source in sources {
        let source: SourceSummary = serde_json::from_value(source.clone()).map_err(|e| {
            Error::model(&path, format!("does not list the slides the U-Net has seen: {e}"))
        })?;
        slides.extend(source.slides);
    }
    slides.sort();
    slides.dedup();
    Ok(UNetReference { sha256: file_sha256(&weights)?, slides })
}
