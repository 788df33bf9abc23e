//! The state of a stage-1 run in one file: everything the next step depends on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::ema::{Averages, TRACKED};
use super::optimizer::Adam;
use crate::diffusion::parameters::host;
use crate::diffusion::{Array, Config, Parameters, Weights};
use crate::{Error, Result};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps taken.
    pub step: u64,
    /// Images trained on.
    pub images: u64,
    /// Time spent training.
    pub seconds: f64,
}

/// Parameters, optimiser and averages.
#[derive(Debug, Clone)]
pub struct State {
    /// The parameters.
    pub parameters: Parameters,
    /// Moments of the gradients.
    pub adam: Adam,
    /// Averages of the parameters.
    pub averages: Averages,
}

impl State {
    /// A fresh state decided by `seed`.
    pub fn new(config: &Config, seed: u64, device: &Device) -> Self {
        let parameters = Parameters::initialize(config, seed, device);
        Self { adam: Adam::new(&parameters), averages: Averages::new(&parameters), parameters }
    }

    /// Groups of tensors by the prefix they are stored under.
    fn groups(&self) -> Vec<(String, &[Tensor<1>])> {
        let mut groups = vec![
            ("parameters".to_owned(), self.parameters.values()),
            ("adam.first".to_owned(), self.adam.first.as_slice()),
            ("adam.second".to_owned(), self.adam.second.as_slice()),
        ];
        for (width, values) in TRACKED.iter().zip(&self.averages.values) {
            groups.push((format!("average.{width:.3}"), values.as_slice()));
        }
        groups
    }
}

/// Path of the checkpoint in a model directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("checkpoint.safetensors")
}

/// Stores a run; the file appears only when it is whole.
pub fn save(
    directory: &Path,
    state: &State,
    progress: Progress,
    settings: &impl Serialize,
) -> Result<()> {
    let path = path(directory);
    let text = |value: serde_json::Result<String>| {
        value.map_err(|e| Error::model(&path, format!("cannot be written: {e}")))
    };
    let metadata = HashMap::from([
        ("progress".to_owned(), text(serde_json::to_string(&progress))?),
        ("settings".to_owned(), text(serde_json::to_string(settings))?),
    ]);
    let mut weights = Weights::new();
    for (prefix, values) in state.groups() {
        for (spec, value) in state.parameters.specs().iter().zip(values) {
            let array = Array::new(spec.shape.clone(), host(value.clone())?);
            weights.insert(format!("{prefix}/{}", spec.name), array);
        }
    }
    weights.save_with(&path, Some(metadata))
}

/// A stored run.
#[derive(Debug)]
pub struct Checkpoint<S> {
    /// Where it stands.
    pub progress: Progress,
    /// What it was started with.
    pub settings: S,
    weights: Weights,
    path: PathBuf,
}

/// Reads a run's file.
pub fn load<S: for<'a> Deserialize<'a>>(directory: &Path) -> Result<Checkpoint<S>> {
    let path = path(directory);
    let (weights, metadata) = Weights::load_with(&path)?;
    let part = |name: &str| {
        metadata.get(name).map(String::as_str).ok_or_else(|| {
            Error::model(&path, format!("has no '{name}' in its header, so it cannot be resumed"))
        })
    };
    let broken =
        |e: serde_json::Error| Error::model(&path, format!("is from another version: {e}"));
    Ok(Checkpoint {
        progress: serde_json::from_str(part("progress")?).map_err(broken)?,
        settings: serde_json::from_str(part("settings")?).map_err(broken)?,
        weights,
        path,
    })
}

impl<S> Checkpoint<S> {
    /// The state on a device.
    pub fn state(&self, config: &Config, device: &Device) -> Result<State> {
        let specs = config.parameters();
        let group = |prefix: &str| -> Result<Vec<Tensor<1>>> {
            let tensors = specs.iter().map(|spec| {
                let name = format!("{prefix}/{}", spec.name);
                let array = self.weights.get(&name).filter(|a| a.shape == spec.shape);
                let data = array.map(|a| a.data.clone()).ok_or_else(|| {
                    Error::model(
                        &self.path,
                        format!("does not hold tensor '{name}' as configured; start a new run"),
                    )
                })?;
                let count = data.len();
                Ok(Tensor::from_data(TensorData::new(data, [count]), device))
            });
            tensors.collect()
        };
        let mut parameters = Parameters::initialize(config, 0, device);
        parameters.set_values(group("parameters")?);
        let adam = Adam { first: group("adam.first")?, second: group("adam.second")? };
        let averages = TRACKED.iter().map(|w| group(&format!("average.{w:.3}")));
        let averages = Averages { values: averages.collect::<Result<_>>()? };
        Ok(State { parameters, adam, averages })
    }
}
