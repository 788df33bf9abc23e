//! One JSON line a step.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What one training step measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Images trained on so far.
    pub images: u64,
    /// Mean uncertainty-weighted loss of the batch.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of the whole gradient.
    pub gradient_norm: f64,
    /// Images per second of this step.
    pub images_per_second: f64,
}

/// The file `metrics.jsonl` of a model directory.
pub struct MetricsFile {
    path: PathBuf,
    file: std::fs::File,
}

impl MetricsFile {
    /// Opens the file for appending and drops lines after `step`, which a resumed run writes again.
    pub fn open(directory: &Path, step: u64) -> Result<Self> {
        let path = directory.join("metrics.jsonl");
        let old = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let kept: String = old
            .lines()
            .filter(|line| {
                serde_json::from_str::<StepMetrics>(line).is_ok_and(|metrics| metrics.step <= step)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        super::atomic::write(&path, kept.as_bytes())?;
        let file =
            std::fs::OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file })
    }

    /// Appends a step.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        let line = serde_json::to_string(metrics)
            .map_err(|e| Error::Check(format!("step {} cannot be logged: {e}", metrics.step)))?;
        writeln!(self.file, "{line}").map_err(Error::io(&self.path))
    }
}
