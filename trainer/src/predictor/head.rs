//! The head: MSFE branches, fusion and gene decoder.

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use super::config::HeadConfig;
use super::fusion::Fusion;
use super::masks::Masks;
use super::msfe::{Branch, statistics};
use super::parameters;
use crate::Result;
use crate::diffusion::Weights;
use crate::train::random::Stream;

/// What a head sees of a batch of tiles.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The decoder's feature maps, coarsest first, each [N, C, H, W].
    pub maps: Vec<Tensor<4>>,
    /// Foundation features [N, F].
    pub foundation: Option<Tensor<2>>,
}

/// From z_fm and z_diff to expression: one of the heads that are averaged.
#[derive(Module, Debug)]
pub struct Member {
    /// Brings z_fm to its width before the fusion.
    pub foundation_proj: Option<Linear>,
    /// The fusion, where there are both kinds of features.
    pub fusion: Option<Fusion>,
    /// Hidden layers.
    pub hidden: Vec<Linear>,
    /// Output layer, to genes or to components.
    pub out: Linear,
    /// Past the hidden layers, without a bias.
    pub skip: Option<Linear>,
    #[module(skip)]
    activated: bool,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    input_dropout: f64,
}

/// Constants of a feature vector over the training tiles.
#[derive(Module, Debug)]
pub struct Standardization {
    /// Means.
    pub mean: Param<Tensor<1>>,
    /// Standard deviations.
    pub scale: Param<Tensor<1>>,
}

impl Standardization {
    /// (z - mean) / scale.
    pub fn forward(&self, z: Tensor<2>) -> Tensor<2> {
        (z - self.mean.val().unsqueeze()) / self.scale.val().unsqueeze()
    }

    fn identity(width: usize, device: &Device) -> Self {
        Self {
            mean: constant(Tensor::zeros([width], device)),
            scale: constant(Tensor::ones([width], device)),
        }
    }
}

/// A whole head.
#[derive(Module, Debug)]
pub struct Head {
    /// MSFE-Net, one branch a level, coarsest first.
    pub block: Vec<Branch>,
    /// Standardisation of z_fm.
    pub foundation_norm: Option<Standardization>,
    /// Standardisation of z_diff.
    pub diffusion_norm: Option<Standardization>,
    /// The heads that are averaged.
    pub member: Vec<Member>,
    /// Expression from its principal components; constant.
    pub components: Option<Linear>,
    #[module(skip)]
    config: HeadConfig,
}

impl Member {
    fn new(config: &HeadConfig, device: &Device) -> Self {
        let (foundation, diffusion) = (config.foundation_width(), config.diffusion_width());
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let mut width = match (foundation, diffusion) {
            (0, width) | (width, 0) => width,
            _ => Fusion::width(config, foundation, diffusion),
        };
        let foundation_proj = (foundation != config.foundation_dim)
            .then(|| linear(config.foundation_dim, foundation));
        let fusion = (foundation > 0 && diffusion > 0)
            .then(|| Fusion::new(config, foundation, diffusion, device));
        let output = config.components.unwrap_or(config.genes);
        let skip = (config.linear_skip && !config.hidden.is_empty())
            .then(|| LinearConfig::new(width, output).with_bias(false).init(device));
        let mut hidden = Vec::new();
        for next in &config.hidden {
            hidden.push(linear(width, *next));
            width = *next;
        }
        Self {
            foundation_proj,
            fusion,
            hidden,
            out: linear(width, output),
            skip,
            activated: config.activated,
            dropout: config.dropout,
            input_dropout: config.input_dropout,
        }
    }

    /// Output [N, components or genes] from standardised z_fm and z_diff; absent without either.
    pub fn forward(
        &self,
        foundation: Option<Tensor<2>>,
        diffusion: Option<Tensor<2>>,
        masks: &mut Masks,
    ) -> Option<Tensor<2>> {
        let diffusion = diffusion.map(|z| masks.drop(z, self.input_dropout));
        let foundation = foundation.map(|z| {
            let z = masks.drop(z, self.input_dropout);
            match &self.foundation_proj {
                Some(projection) => projection.forward(z),
                None => z,
            }
        });
        let fused = match (&self.fusion, foundation, diffusion) {
            (Some(fusion), Some(foundation), Some(diffusion)) => {
                fusion.forward(foundation, diffusion)
            }
            (_, Some(z), _) | (_, None, Some(z)) => z,
            (_, None, None) => return None,
        };
        let mut z = fused.clone();
        if self.activated {
            z = masks.drop(silu(z), self.dropout);
        }
        for layer in &self.hidden {
            z = masks.drop(silu(layer.forward(z)), self.dropout);
        }
        let out = self.out.forward(z);
        Some(match &self.skip {
            Some(skip) => out + skip.forward(fused),
            None => out,
        })
    }
}

/// File names of a head's configuration and parameters in its directory.
pub const CONFIG_FILE: &str = "head.json";
/// See [`CONFIG_FILE`].
pub const WEIGHTS_FILE: &str = "head.safetensors";

impl Head {
    /// A head with fresh parameters. Seed the device first to repeat them.
    pub fn new(config: &HeadConfig, device: &Device) -> Self {
        let block = config.branch_channels.iter().map(|c| Branch::new(*c, config, device));
        let norm = |width: usize| {
            (config.standardized && width > 0).then(|| Standardization::identity(width, device))
        };
        let components = config.components.map(|count| Linear {
            weight: constant(Tensor::zeros([count, config.genes], device)),
            bias: Some(constant(Tensor::zeros([config.genes], device))),
        });
        Self {
            block: block.collect(),
            foundation_norm: norm(config.foundation_dim),
            diffusion_norm: norm(config.diffusion_width()),
            member: (0..config.members).map(|_| Member::new(config, device)).collect(),
            components,
            config: config.clone(),
        }
    }

    /// A head whose parameters are drawn from `seed` alone, on any device.
    pub fn seeded(config: &HeadConfig, start: Start, seed: u64, device: &Device) -> Self {
        let fresh = Self::new(config, device);
        let before = parameters::parameters(&fresh);
        let mut after = Weights::new();
        for (index, (name, array)) in before.iter().enumerate() {
            let mut array = array.clone();
            let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
            let constant = layer == "components" || layer.ends_with("_norm");
            let weight = before.get(&format!("{layer}.weight"));
            let inputs = weight.map_or(0, |w| w.shape.iter().skip(1).product::<usize>());
            // Normalisations have vectors for weights, and c belongs to no layer.
            if !constant && weight.is_some_and(|w| w.shape.len() > 1) {
                let scale = 1.0 / (inputs.max(1) as f64).sqrt();
                let mut stream = Stream::keyed(seed, &[index as u64]);
                match start {
                    Start::Uniform => array.data.iter_mut().for_each(|value| {
                        *value = ((stream.uniform() * 2.0 - 1.0) * scale) as f32;
                    }),
                    Start::Calm if name.ends_with(".bias") => array.data.fill(0.0),
                    Start::Calm => {
                        let scale = scale * calm_gain(layer);
                        array.data.iter_mut().for_each(|value| {
                            *value = (stream.normal() * scale) as f32;
                        });
                    }
                }
            }
            after.insert(name, array);
        }
        // Every name and shape is its own, so nothing can be missing.
        parameters::with_parameters(fresh.clone(), &after, Path::new("seeded")).unwrap_or(fresh)
    }

    /// The head's shape.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// z_diff [N, [`HeadConfig::diffusion_width`]] before its standardisation: the branches'
    /// outputs, then the maps' own statistics where the head uses them; absent for a head without
    /// diffusion features.
    pub fn pool(&self, maps: &[Tensor<4>]) -> Option<Tensor<2>> {
        let mut pooled: Vec<_> =
            self.block.iter().zip(maps).map(|(branch, map)| branch.forward(map.clone())).collect();
        if self.config.map_statistics {
            let maps = maps.iter().take(self.block.len());
            pooled.extend(maps.map(|map| statistics(map.clone())));
        }
        (!pooled.is_empty()).then(|| Tensor::cat(pooled, 1))
    }

    /// z_fm and z_diff as the members see them.
    pub fn standardize(
        &self,
        foundation: Option<Tensor<2>>,
        pooled: Option<Tensor<2>>,
    ) -> (Option<Tensor<2>>, Option<Tensor<2>>) {
        let apply = |norm: &Option<Standardization>, z: Tensor<2>| match norm {
            Some(norm) => norm.forward(z),
            None => z,
        };
        let foundation = foundation.filter(|_| self.config.foundation_dim > 0);
        (
            foundation.map(|z| apply(&self.foundation_norm, z)),
            pooled.map(|z| apply(&self.diffusion_norm, z)),
        )
    }

    /// Expression [N, genes] from z_fm and z_diff: the members' mean.
    pub fn decode(
        &self,
        foundation: Option<Tensor<2>>,
        pooled: Option<Tensor<2>>,
    ) -> Option<Tensor<2>> {
        let (foundation, diffusion) = self.standardize(foundation, pooled);
        let outputs = self.member.iter().filter_map(|member| {
            member.forward(foundation.clone(), diffusion.clone(), &mut Masks::none())
        });
        let mean = outputs.reduce(|a, b| a + b)? / self.member.len() as f32;
        Some(match &self.components {
            Some(components) => components.forward(mean),
            None => mean,
        })
    }

    /// Expression [N, genes] of a batch.
    pub fn forward(&self, inputs: &Inputs) -> Option<Tensor<2>> {
        self.decode(inputs.foundation.clone(), self.pool(&inputs.maps))
    }

    /// The parameters under their names in files. A head of one member has no `member1.` in
    /// them, which makes the published head's names.
    pub fn to_weights(&self) -> Weights {
        rename(parameters::parameters(self), |name| self.file_name(name))
    }

    /// Gradients under the same names.
    pub fn gradients(&self, gradients: &burn::tensor::Gradients) -> Weights {
        rename(parameters::gradients(self, gradients), |name| self.file_name(name))
    }

    /// A head with these parameters; `path` is named in errors.
    pub fn from_weights(
        config: &HeadConfig,
        weights: &Weights,
        path: &Path,
        device: &Device,
    ) -> Result<Self> {
        let head = Self::new(config, device);
        let mut own = Weights::new();
        for (name, _) in parameters::identities(&head) {
            if let Some(array) = weights.get(&head.file_name(&name)) {
                own.insert(name, array.clone());
            }
        }
        parameters::with_parameters(head, &own, path)
    }

    /// Reads `head.json` and `head.safetensors` of a directory.
    pub fn load(directory: &Path, device: &Device) -> Result<Self> {
        let config = HeadConfig::load(&directory.join(CONFIG_FILE))?;
        let path = directory.join(WEIGHTS_FILE);
        Self::from_weights(&config, &Weights::load(&path)?, &path, device)
    }

    fn file_name(&self, name: &str) -> String {
        let name = match name.strip_prefix("member1.") {
            Some(rest) if self.config.members == 1 => rest,
            _ => name,
        };
        name.replacen("fusion.", "", 1)
    }
}

/// How parameters start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Weights and biases uniform in +-1/sqrt(inputs), as PyTorch's layers start.
    #[default]
    Uniform,
    /// Biases zero and weights normal with 1/sqrt(inputs), smaller for the layers that the
    /// prediction hangs on: it starts at the mean, with half-open gates and a weak residual.
    Calm,
}

fn calm_gain(layer: &str) -> f64 {
    let name = layer.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap_or(layer);
    match name {
        "out" | "gate" | "skip" => 0.1,
        "fusion_proj" | "film_gamma" | "film_beta" => 0.5,
        _ => 1.0,
    }
}

fn constant<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(value).set_require_grad(false)
}

fn rename(weights: Weights, name: impl Fn(&str) -> String) -> Weights {
    let mut renamed = Weights::new();
    weights.iter().for_each(|(old, array)| renamed.insert(name(old), array.clone()));
    renamed
}
