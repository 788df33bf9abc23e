//! Stored parameters on a device, and the effective weights the network computes with.
//!
//! A magnitude-preserving weight is stored raw and used as `gain / sqrt(fan_in) * w / (eps +
//! rms(w))` per output. The network is differentiated with respect to these effective weights,
//! which all micro-batches of a step share; [`Parameters::pull_back`] then carries the summed
//! gradient through the normalisation once.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::config::{Config, ParameterSpec, Role};
use super::ops::EPSILON;
use super::weights::{Array, Weights};
use crate::train::random::Stream;
use crate::{Error, Result};

/// All tensors of a checkpoint on one device, flat, in the order of their names.
#[derive(Debug, Clone)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    values: Vec<Tensor<1>>,
}

/// Weights as the network multiplies by them, flat and by name.
#[derive(Debug, Clone)]
pub struct Effective {
    entries: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
}

impl Effective {
    /// The tensor of this name with `D` dimensions.
    pub fn get<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let (shape, tensor) = self
            .entries
            .get(name)
            .ok_or_else(|| Error::Request(format!("the network has no weight called '{name}'")))?;
        let shape: [usize; D] = shape.as_slice().try_into().map_err(|_| {
            Error::Request(format!("weight '{name}' has shape {shape:?}, not {D} dimensions"))
        })?;
        Ok(tensor.clone().reshape(shape))
    }

    /// A copy whose tensors are leaves of a new gradient graph.
    pub fn differentiable(&self) -> Self {
        let entries = self.entries.iter().map(|(name, (shape, tensor))| {
            (name.clone(), (shape.clone(), tensor.clone().autodiff().require_grad()))
        });
        Self { entries: entries.collect() }
    }

    /// The leaf of this name.
    pub fn leaf(&self, name: &str) -> Option<&Tensor<1>> {
        self.entries.get(name).map(|(_, t)| t)
    }
}

impl Parameters {
    /// Fresh parameters: normal magnitude-preserving weights, zero gains, LayerNorm at identity,
    /// uniform Xavier matrices, all decided by `seed`.
    pub fn initialize(config: &Config, seed: u64, device: &Device) -> Self {
        let specs = config.parameters();
        let values = specs
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                // Every tensor has its own stream: adding one leaves the others as they were.
                let mut stream = Stream::new(seed, 0x1000 + index as u64);
                Tensor::from_data(TensorData::new(initial(spec, &mut stream), [spec.len()]), device)
            })
            .collect();
        Self { specs, values }
    }

    /// Parameters from named arrays. The error text tells which tensor is missing or misshapen.
    pub fn from_weights(
        config: &Config,
        weights: &Weights,
        device: &Device,
    ) -> std::result::Result<Self, String> {
        let specs = config.parameters();
        let mut values = Vec::with_capacity(specs.len());
        for spec in &specs {
            let array = weights.get(&spec.name).ok_or_else(|| {
                format!(
                    "has no tensor '{}', which its config.json asks for; use the files of one \
                     training run together",
                    spec.name
                )
            })?;
            if array.shape != spec.shape {
                return Err(format!(
                    "tensor '{}' has shape {:?} where config.json asks for {:?}; use the files of \
                     one training run together",
                    spec.name, array.shape, spec.shape
                ));
            }
            values.push(Tensor::from_data(
                TensorData::new(array.data.clone(), [array.data.len()]),
                device,
            ));
        }
        Ok(Self { specs, values })
    }

    /// Named arrays on the host.
    pub fn to_weights(&self) -> Result<Weights> {
        let mut weights = Weights::new();
        for (spec, value) in self.specs.iter().zip(&self.values) {
            weights.insert(&spec.name, Array::new(spec.shape.clone(), host(value.clone())?));
        }
        Ok(weights)
    }

    /// Descriptions in the order of [`Parameters::values`].
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Flat tensors in the order of [`Parameters::specs`].
    pub fn values(&self) -> &[Tensor<1>] {
        &self.values
    }

    /// Replaces the tensors, which must keep their lengths.
    pub fn set_values(&mut self, values: Vec<Tensor<1>>) {
        debug_assert_eq!(values.len(), self.values.len());
        self.values = values;
    }

    /// Number of trained values.
    pub fn trained_len(&self) -> usize {
        self.specs.iter().filter(|s| s.role.trained()).map(ParameterSpec::len).sum()
    }

    fn find(&self, name: &str) -> Option<&Tensor<1>> {
        let index = self.specs.binary_search_by(|s| s.name.as_str().cmp(name)).ok()?;
        Some(&self.values[index])
    }

    /// Forced normalisation: every magnitude-preserving weight back to unit root mean square per
    /// output, so that the effective learning rate does not decay as weights grow.
    pub fn force_normalization(&mut self) {
        for (spec, value) in self.specs.iter().zip(self.values.iter_mut()) {
            if matches!(spec.role, Role::Normalized { .. }) {
                let rows = rows(spec, value.clone());
                let scale = row_scale(&rows);
                *value = (rows / scale).reshape([spec.len()]);
            }
        }
    }

    /// The weights the network computes with.
    pub fn effective(&self) -> Effective {
        let mut entries = BTreeMap::new();
        for (spec, value) in self.specs.iter().zip(&self.values) {
            let tensor = match &spec.role {
                Role::Normalized { gain } => {
                    let rows = rows(spec, value.clone());
                    let scale = row_scale(&rows).mul_scalar((spec.fan_in() as f64).sqrt());
                    let weight = rows / scale;
                    let weight = match gain.as_ref().and_then(|g| self.find(g)) {
                        Some(gain) => weight * gain.clone().reshape([1, 1]),
                        None => weight,
                    };
                    weight.reshape([spec.len()])
                }
                Role::Gain => continue,
                _ => value.clone(),
            };
            entries.insert(spec.name.clone(), (spec.shape.clone(), tensor));
        }
        Effective { entries }
    }

    /// Gradients of the stored parameters from those of the effective weights, in the order of
    /// [`Parameters::specs`]; `gradient` returns nothing for a weight that had no influence.
    ///
    /// With `r = rms(w)`, `n = eps + r` and `e = s w / n`: `dw = s (g / n - w (g . w) / (n^2 r
    /// fan_in))`, and the gain's gradient is `sum(g . w / n) / sqrt(fan_in)`.
    pub fn pull_back(
        &self,
        mut gradient: impl FnMut(&str) -> Option<Tensor<1>>,
    ) -> Vec<Option<Tensor<1>>> {
        let mut result: Vec<Option<Tensor<1>>> = vec![None; self.specs.len()];
        let mut gains: BTreeMap<&str, Tensor<1>> = BTreeMap::new();
        for (index, (spec, value)) in self.specs.iter().zip(&self.values).enumerate() {
            let Role::Normalized { gain } = &spec.role else {
                if spec.role.trained() && spec.role != Role::Gain {
                    result[index] = gradient(&spec.name);
                }
                continue;
            };
            let Some(g) = gradient(&spec.name) else { continue };
            let fan_in = spec.fan_in() as f64;
            let (w, g) = (rows(spec, value.clone()), rows(spec, g));
            let n = row_scale(&w);
            let r = n.clone().sub_scalar(EPSILON).clamp_min(1e-20);
            let along = (g.clone() * w.clone()).sum_dim(1);
            let mut scale = Tensor::full([1, 1], fan_in.powf(-0.5), &w.device());
            if let Some(name) = gain
                && let Some(factor) = self.find(name)
            {
                scale = scale.clone() * factor.clone().reshape([1, 1]);
                let total = (along.clone() / n.clone()).sum().mul_scalar(fan_in.powf(-0.5));
                gains.insert(name, total);
            }
            let shrink = along / (n.clone().square() * r.mul_scalar(fan_in));
            result[index] = Some(((g / n - w * shrink) * scale).reshape([spec.len()]));
        }
        for (index, spec) in self.specs.iter().enumerate() {
            if let Some(total) = gains.remove(spec.name.as_str()) {
                result[index] = Some(total);
            }
        }
        result
    }
}

/// `[outputs, fan_in]` view of a flat weight.
fn rows(spec: &ParameterSpec, value: Tensor<1>) -> Tensor<2> {
    value.reshape([spec.shape[0], spec.fan_in()])
}

/// `eps + rms` of every row, `[outputs, 1]`.
fn row_scale(rows: &Tensor<2>) -> Tensor<2> {
    let fan_in = rows.dims()[1] as f64;
    let norm = rows.clone().square().sum_dim(1).sqrt();
    norm.mul_scalar(fan_in.powf(-0.5)).add_scalar(EPSILON)
}

/// Values of a tensor on the host.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().convert::<f32>().try_into_vec::<f32>().map_err(|e| {
        Error::Check(format!("a tensor could not be read back from its device: {e:?}"))
    })
}

fn initial(spec: &ParameterSpec, stream: &mut Stream) -> Vec<f32> {
    let count = spec.len();
    let uniform = |stream: &mut Stream, limit: f64| -> Vec<f32> {
        (0..count).map(|_| ((2.0 * stream.uniform() - 1.0) * limit) as f32).collect()
    };
    match &spec.role {
        Role::Normalized { .. } => stream.normals(count),
        Role::Gain | Role::Bias => vec![0.0; count],
        Role::Scale => vec![1.0; count],
        Role::Embedding | Role::Query => {
            stream.normals(count).into_iter().map(|v| v * EMBEDDING_STD).collect()
        }
        Role::Linear => {
            let (out, fan_in) = (spec.shape[0] as f64, spec.fan_in() as f64);
            uniform(stream, (6.0 / (out + fan_in)).sqrt())
        }
        Role::Frequencies => stream
            .normals(count)
            .into_iter()
            .map(|v| (f64::from(v) * std::f64::consts::TAU) as f32)
            .collect(),
        Role::Phases => {
            (0..count).map(|_| (stream.uniform() * std::f64::consts::TAU) as f32).collect()
        }
    }
}

/// Standard deviation of a fresh gene embedding.
const EMBEDDING_STD: f32 = 1.0;

/// A fresh embedding row for a gene added to an existing vocabulary.
pub fn fresh_embedding(width: usize, stream: &mut Stream) -> Vec<f32> {
    stream.normals(width).into_iter().map(|v| v * EMBEDDING_STD).collect()
}
