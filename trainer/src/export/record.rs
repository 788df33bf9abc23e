//! What goes into a model's metadata from the files of training and evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diffbulk::model::{Confidence, Metric, TrainingData};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// File name of a [`HeadFacts`] in a head's directory.
pub const RECORD_FILE: &str = "training.json";

/// What a head was trained on and for; everything of a model's metadata that the weights do not
/// tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Gene symbols in output order.
    pub panel: Vec<String>,
    /// Side of the square tile in pixels.
    pub tile_px: usize,
    /// Micrometres per pixel.
    pub um_per_px: f64,
    /// Unit of the output.
    pub unit: String,
    /// Sources of the tiles.
    pub training_data: Vec<TrainingData>,
    /// Seed of the training.
    pub seed: u64,
    /// SHA-256 of the training's configuration.
    pub config_sha256: String,
    /// Image statistics of the training tiles.
    pub confidence: Option<Confidence>,
}

/// The record of a trained head as an export reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct HeadFacts {
    /// What goes into the model's metadata.
    #[serde(flatten)]
    pub exported: TrainingRecord,
    /// The U-Net it was trained on.
    #[serde(default)]
    pub unet: Option<NetworkFacts>,
    /// The encoder it was trained on.
    #[serde(default)]
    pub encoder: Option<NetworkFacts>,
}

/// A frozen network under a head.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetworkFacts {
    /// SHA-256 of its weights' file.
    pub sha256: String,
    /// Slides it was trained on, as far as they are known.
    #[serde(default)]
    pub slides: Vec<String>,
}

impl HeadFacts {
    /// Reads the record of a head's directory.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(RECORD_FILE);
        let facts: Self = read_json(&path)?;
        let tile_px = facts.exported.tile_px;
        if tile_px == 0 || tile_px > 8192 {
            let problem = format!("tiles of {tile_px} px cannot be; train it again");
            return Err(Error::model(&path, problem));
        }
        Ok(facts)
    }

    /// The dataset with every slide that the head or its U-Net has seen.
    pub fn training_data(&self) -> Vec<TrainingData> {
        let mut data = self.exported.training_data.clone();
        if let (Some(first), Some(unet)) = (data.first_mut(), &self.unet) {
            let seen: BTreeSet<&String> = first.slides.iter().chain(&unet.slides).collect();
            first.slides = seen.into_iter().cloned().collect();
        }
        data
    }
}

/// Held-out figures of one model out of an evaluation's file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeldOut {
    /// Mean per-gene Pearson of every fold.
    pub metrics: Vec<Metric>,
    /// Pearson correlation of each gene, the mean over the folds that have it.
    pub gene_pearson: BTreeMap<String, f64>,
}

/// The parts of `evaluate`'s JSON that are read.
#[derive(Deserialize)]
struct Evaluation {
    folds: Vec<Fold>,
}

#[derive(Deserialize)]
struct Fold {
    train: Vec<String>,
    test: Vec<String>,
    kind: String,
    models: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    model: String,
    pearson: Option<f64>,
    gene_pearson: BTreeMap<String, f64>,
}

impl HeldOut {
    /// Reads the figures of the row `model` from an evaluation; per-gene ones from the folds
    /// within a patient where there are any, since they are the more.
    pub fn load(path: &Path, model: &str) -> Result<Self> {
        let evaluation: Evaluation = read_json(path)?;
        let mut metrics = Vec::new();
        let mut genes: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let within = evaluation.folds.iter().any(|fold| fold.kind == WITHIN_PATIENT);
        for fold in &evaluation.folds {
            let Some(measured) = fold.models.iter().find(|row| row.model == model) else {
                continue;
            };
            if let Some(value) = measured.pearson {
                metrics.push(Metric {
                    name: "mean per-gene Pearson".to_owned(),
                    split: format!(
                        "held out {}, trained on {} ({})",
                        fold.test.join(", "),
                        fold.train.join(", "),
                        fold.kind.replace('_', " ")
                    ),
                    value,
                });
            }
            if !within || fold.kind == WITHIN_PATIENT {
                for (gene, &value) in &measured.gene_pearson {
                    genes.entry(gene.clone()).or_default().push(value);
                }
            }
        }
        if metrics.is_empty() {
            let rows: BTreeSet<&str> = evaluation
                .folds
                .iter()
                .flat_map(|fold| fold.models.iter().map(|row| row.model.as_str()))
                .collect();
            let rows: Vec<&str> = rows.into_iter().collect();
            return Err(Error::data(
                path,
                format!("has no figures of '{model}'; name one of its rows: {}", rows.join(", ")),
            ));
        }
        let gene_pearson = genes
            .into_iter()
            .map(|(gene, values)| {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (gene, mean)
            })
            .collect();
        Ok(Self { metrics, gene_pearson })
    }
}

/// How an evaluation names folds whose test sections are of a training patient.
const WITHIN_PATIENT: &str = "within_patient";

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::data(path, format!("cannot be read ({error}); write it again")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_head_and_unet_are_told_together() {
        let facts: HeadFacts = serde_json::from_value(serde_json::json!({
            "panel": ["A"], "unit": "u", "tile_px": 224, "um_per_px": 0.5, "seed": 1,
            "config_sha256": "", "confidence": null,
            "training_data": [{"name": "d", "source": "s", "license": "l", "slides": ["C2"]}],
            "unet": {"sha256": "", "slides": ["B4", "C2"]}, "encoder": null,
        }))
        .unwrap();
        assert_eq!(facts.training_data()[0].slides, ["B4", "C2"]);
    }

    #[test]
    fn figures_of_one_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evaluation.json");
        let fold = |test: &str, kind: &str, pearson: f64| {
            serde_json::json!({
                "name": test, "train": ["C3"], "test": [test], "kind": kind,
                "models": [{"model": "fused", "pearson": pearson, "mse": 1.0,
                            "gene_pearson": {"ERBB2": pearson}}],
            })
        };
        let folds = serde_json::json!({"folds": [
            fold("C2", "within_patient", 0.25), fold("C5", "within_patient", 0.75),
            fold("B4", "across_patients", -0.5)]});
        std::fs::write(&path, folds.to_string()).unwrap();
        let held_out = HeldOut::load(&path, "fused").unwrap();
        assert_eq!(held_out.metrics.len(), 3);
        assert_eq!(held_out.metrics[2].split, "held out B4, trained on C3 (across patients)");
        assert_eq!(held_out.gene_pearson["ERBB2"], 0.5);
        let message = HeldOut::load(&path, "mean").unwrap_err().to_string();
        assert!(message.contains("fused"), "{message}");
    }
}
