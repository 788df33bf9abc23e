//! Writes the stage-2 head: MSFE branches, fusion, gene decoder.
//!
//! The members' output layers and their mean are one linear layer over all that they take.

use super::onnx::{Attribute, Graph, Kernel, Value, Window};
use super::unet::Flow;
use super::weights::Checkpoint;
use crate::predictor::{FusionKind, HeadConfig};
use crate::{Error, Result};

/// Epsilon of the branches' group normalisation.
const GROUP_NORM_EPSILON: f32 = 1e-5;

/// A vector per tile in the graph, `[N, width]`.
#[derive(Debug, Clone)]
pub struct Features {
    /// The tensor.
    pub value: Value,
    /// Its width.
    pub width: usize,
}

/// Weights and bias of a linear layer, `[output, input]`.
#[derive(Debug, Clone, PartialEq)]
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
    input: usize,
}

impl Linear {
    fn read(weights: &Checkpoint, name: &str, out: usize, input: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.shaped(&format!("{name}.weight"), &[out, input])?.to_vec(),
            bias: weights.shaped(&format!("{name}.bias"), &[out])?.to_vec(),
            input,
        })
    }

    fn scaled(mut self, factor: f32) -> Self {
        for value in self.weight.iter_mut().chain(&mut self.bias) {
            *value *= factor;
        }
        self
    }

    fn write(&self, graph: &mut Graph, hint: &str, x: &Value) -> Features {
        let shape = [self.bias.len(), self.input];
        let value = graph.linear(hint, x, &self.weight, shape, Some(&self.bias));
        Features { value, width: self.bias.len() }
    }
}

/// Writes the head into `graph` and returns the expression, `[N, genes]`.
///
/// `maps` are the U-Net's features, coarsest first; `foundation` the encoder's, not standardised.
pub fn expression(
    graph: &mut Graph,
    maps: &[Flow],
    foundation: Option<&Features>,
    config: &HeadConfig,
    weights: &Checkpoint,
) -> Result<Value> {
    check_inputs(maps, foundation, config)?;
    let head = Head { config, weights };
    let pooled = head.pool(graph, maps)?;
    let diffusion = head.standardize(graph, "diffusion_norm", pooled)?;
    let foundation = head.standardize(graph, "foundation_norm", foundation.cloned())?;
    let mut members = Vec::with_capacity(config.members);
    for member in 1..=config.members {
        // A single member's tensors bear the published names, without a prefix.
        let prefix =
            if config.members > 1 { format!("member{member}.") } else { String::new() };
        members.push(head.member(graph, &prefix, foundation.as_ref(), diffusion.as_ref())?);
    }
    head.decode(graph, &members)
}

fn check_inputs(
    maps: &[Flow],
    foundation: Option<&Features>,
    config: &HeadConfig,
) -> Result<()> {
    let channels: Vec<usize> = maps.iter().map(|map| map.channels).collect();
    if channels != config.branch_channels {
        return Err(Error::Request(format!(
            "the U-Net's decoder levels have {channels:?} channels and the head was trained on \
             {:?}; export it with the U-Net it was trained on",
            config.branch_channels
        )));
    }
    let width = foundation.map_or(0, |features| features.width);
    if width != config.foundation_dim {
        return Err(Error::Request(format!(
            "the encoder gives {width} features and the head was trained on {}; export it with the \
             encoder it was trained on",
            config.foundation_dim
        )));
    }
    Ok(())
}

/// What a member gives to its output: features, and their weights `[outputs, width]`.
struct Member {
    terms: Vec<(Features, Vec<f32>)>,
    bias: Vec<f32>,
}

struct Head<'a> {
    config: &'a HeadConfig,
    weights: &'a Checkpoint,
}

impl Head<'_> {
    /// z_diff: every branch's pooled output, side by side.
    fn pool(&self, graph: &mut Graph, maps: &[Flow]) -> Result<Option<Features>> {
        let mut pooled = Vec::with_capacity(maps.len());
        for (index, map) in maps.iter().enumerate() {
            pooled.push(self.branch(graph, &format!("block{}", index + 1), map)?);
        }
        let width = pooled.len() * self.config.branch_out;
        let pooled: Vec<&Value> = pooled.iter().collect();
        Ok(match pooled.as_slice() {
            [] => None,
            [value] => Some(Features { value: (*value).clone(), width }),
            values => Some(Features { value: graph.concat("z_diff", values, 1), width }),
        })
    }

    fn branch(&self, graph: &mut Graph, name: &str, map: &Flow) -> Result<Value> {
        let (out, groups) = (self.config.branch_out, self.config.groups);
        let shape = [out, map.channels, 3, 3];
        let raw = self.weights.shaped(&format!("{name}.conv.weight"), &shape)?;
        let data = raw.iter().map(|&w| (f64::from(w) * map.scale) as f32).collect();
        let kernel = Kernel { out, input: map.channels, side: 3, data };
        let bias = self.weights.shaped(&format!("{name}.conv.bias"), &[out])?;
        let gamma = self.weights.shaped(&format!("{name}.norm.weight"), &[out])?;
        let beta = self.weights.shaped(&format!("{name}.norm.bias"), &[out])?;
        Ok(graph.scoped(name, |graph| {
            let x = graph.conv("conv", &map.value, &kernel, Some(bias), Window::same(3));
            // A group's values are those of one long channel.
            let x = graph.reshape("groups", &x, &[0, groups as i64, -1]);
            let ones = graph.f32("norm.one", &[groups], &vec![1.0; groups]);
            let zeros = graph.f32("norm.zero", &[groups], &vec![0.0; groups]);
            let epsilon = ("epsilon", Attribute::Float(GROUP_NORM_EPSILON));
            let x = graph.op("InstanceNormalization", "norm", &[&x, &ones, &zeros], vec![epsilon]);
            let side = map.side as i64;
            let x = graph.reshape("map", &x, &[0, out as i64, side, side]);
            let gamma = graph.f32("norm.gamma", &[1, out, 1, 1], gamma);
            let beta = graph.f32("norm.beta", &[1, out, 1, 1], beta);
            let x = graph.mul("norm.scaled", &x, &gamma);
            let x = graph.add("norm.shifted", &x, &beta);
            let x = graph.silu("silu", &x);
            graph.spatial_mean("pooled", &x)
        }))
    }

    /// `(z - mean) / scale` with the constants `name`, where the head standardises.
    fn standardize(
        &self,
        graph: &mut Graph,
        name: &str,
        z: Option<Features>,
    ) -> Result<Option<Features>> {
        let Some(mut z) = z else { return Ok(None) };
        if !self.config.standardized {
            return Ok(Some(z));
        }
        let mean = self.weights.shaped(&format!("{name}.mean"), &[z.width])?;
        let scale = self.weights.shaped(&format!("{name}.scale"), &[z.width])?;
        if let Some(index) = scale.iter().position(|s| !(s.abs() > 0.0)) {
            return Err(Error::Request(format!(
                "the head's {name}.scale is {} at {index}, which divides by nothing; train it again",
                scale[index]
            )));
        }
        let inverse: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
        let mean = graph.f32(&format!("{name}.mean"), &[z.width], mean);
        let inverse = graph.f32(&format!("{name}.inverse"), &[z.width], &inverse);
        let centred = graph.op("Sub", &format!("{name}.centred"), &[&z.value, &mean], vec![]);
        z.value = graph.mul(name, &centred, &inverse);
        Ok(Some(z))
    }

    fn member(
        &self,
        graph: &mut Graph,
        prefix: &str,
        foundation: Option<&Features>,
        diffusion: Option<&Features>,
    ) -> Result<Member> {
        let foundation = match foundation {
            Some(f) if self.config.foundation_width() != f.width => {
                let name = format!("{prefix}foundation_proj");
                let width = self.config.foundation_width();
                let layer = Linear::read(self.weights, &name, width, f.width)?;
                Some(layer.write(graph, &name, &f.value))
            }
            other => other.cloned(),
        };
        let fused = match (foundation, diffusion) {
            (Some(foundation), Some(diffusion)) => {
                self.fuse(graph, prefix, &foundation, diffusion)?
            }
            (Some(z), None) => z,
            (None, Some(z)) => z.clone(),
            (None, None) => {
                return Err(Error::Request("the head uses neither kind of features".to_owned()));
            }
        };
        let mut z = fused.clone();
        for (index, &width) in self.config.hidden.iter().enumerate() {
            let name = format!("{prefix}hidden{}", index + 1);
            let layer = Linear::read(self.weights, &name, width, z.width)?;
            z = layer.write(graph, &name, &z.value);
            z.value = graph.silu(&format!("{name}.silu"), &z.value);
        }
        let outputs = self.outputs();
        let out = Linear::read(self.weights, &format!("{prefix}out"), outputs, z.width)?;
        let mut terms = vec![(z, out.weight)];
        if self.config.linear_skip && !self.config.hidden.is_empty() {
            let name = format!("{prefix}skip.weight");
            let skip = self.weights.shaped(&name, &[outputs, fused.width])?.to_vec();
            terms.push((fused, skip));
        }
        Ok(Member { terms, bias: out.bias })
    }

    /// Numbers that a member predicts: components or genes.
    fn outputs(&self) -> usize {
        self.config.components.unwrap_or(self.config.genes)
    }

    fn fuse(
        &self,
        graph: &mut Graph,
        prefix: &str,
        foundation: &Features,
        diffusion: &Features,
    ) -> Result<Features> {
        let layer = |name: &str, out: usize, input: usize| {
            Linear::read(self.weights, &format!("{prefix}{name}"), out, input)
        };
        let hint = |name: &str| format!("{prefix}{name}");
        let (fm, diff) = (foundation.width, diffusion.width);
        let value = match self.config.fusion {
            FusionKind::GatedResidual => {
                let both = [&foundation.value, &diffusion.value];
                let both = graph.concat(&hint("gate.input"), &both, 1);
                let gate = layer("gate.0", fm, fm + diff)?.write(graph, &hint("gate.0"), &both);
                let gate = graph.op("Sigmoid", &hint("gate"), &[&gate.value], vec![]);
                let residual = layer("fusion_proj", fm, diff)?;
                let residual = residual.write(graph, &hint("fusion_proj"), &diffusion.value);
                let residual = graph.mul(&hint("gated"), &residual.value, &gate);
                graph.add(&hint("fused"), &foundation.value, &residual)
            }
            FusionKind::Concat => {
                let c = graph.scalar(&hint("c"), f64::from(self.share(prefix)?));
                let weighted = graph.mul(&hint("weighted"), &diffusion.value, &c);
                let value = graph.concat(&hint("fused"), &[&foundation.value, &weighted], 1);
                return Ok(Features { value, width: fm + diff });
            }
            FusionKind::Add => {
                let share = self.share(prefix)?;
                let name = hint("fusion_proj");
                let rest = if self.weights.has(&format!("{name}.weight")) {
                    let projection = layer("fusion_proj", fm, diff)?.scaled(1.0 - share);
                    projection.write(graph, &name, &diffusion.value).value
                } else {
                    let rest = graph.scalar(&hint("c.rest"), f64::from(1.0 - share));
                    graph.mul(&hint("weighted"), &diffusion.value, &rest)
                };
                let c = graph.scalar(&hint("c"), f64::from(share));
                let main = graph.mul(&hint("foundation"), &foundation.value, &c);
                graph.add(&hint("fused"), &main, &rest)
            }
            FusionKind::Film => {
                let mut gamma = layer("film_gamma", fm, diff)?;
                gamma.bias.iter_mut().for_each(|bias| *bias += 1.0);
                let gamma = gamma.write(graph, &hint("film_gamma"), &diffusion.value);
                let beta = layer("film_beta", fm, diff)?;
                let beta = beta.write(graph, &hint("film_beta"), &diffusion.value);
                let scaled = graph.mul(&hint("modulated"), &foundation.value, &gamma.value);
                graph.add(&hint("fused"), &scaled, &beta.value)
            }
        };
        Ok(Features { value, width: fm })
    }

    /// The weight c of concat and add.
    fn share(&self, prefix: &str) -> Result<f32> {
        if self.config.c_learnable {
            let raw = self.weights.scalar(&format!("{prefix}c"))?;
            Ok(1.0 / (1.0 + (-raw).exp()))
        } else {
            Ok(self.config.c)
        }
    }

    /// Genes from the members: the mean of their outputs, then the components.
    fn decode(&self, graph: &mut Graph, members: &[Member]) -> Result<Value> {
        let outputs = self.outputs();
        let count = members.len() as f64;
        let terms: Vec<&(Features, Vec<f32>)> =
            members.iter().flat_map(|member| &member.terms).collect();
        let input = terms.iter().map(|(z, _)| z.width).sum();
        let mut weight = Vec::with_capacity(outputs * input);
        for output in 0..outputs {
            for (z, own) in &terms {
                let row = &own[output * z.width..(output + 1) * z.width];
                weight.extend(row.iter().map(|&w| (f64::from(w) / count) as f32));
            }
        }
        let bias = (0..outputs)
            .map(|o| members.iter().map(|m| f64::from(m.bias[o])).sum::<f64>() / count)
            .map(|b| b as f32)
            .collect();
        let values: Vec<&Value> = terms.iter().map(|(z, _)| &z.value).collect();
        let joined = match values.as_slice() {
            [value] => (*value).clone(),
            values => graph.concat("members", values, 1),
        };
        let expression = Linear { weight, bias, input }.write(graph, "out", &joined);
        Ok(match self.config.components {
            Some(count) => {
                let components =
                    Linear::read(self.weights, "components", self.config.genes, count)?;
                components.write(graph, "components", &expression.value).value
            }
            None => expression.value,
        })
    }
}
