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
        let prefix = if config.members > 1 { format!("member{member}.") } else { String::new() };
        members.push(head.member(graph, &prefix, foundation.as_ref(), diffusion.as_ref())?);
    }
    head.decode(graph, &members)
}

fn check_inputs(maps: &[Flow], foundation: Option<&Features>, config: &HeadConfig) -> Result<()> {
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

/// Mean and standard deviation of every channel of a map, `[N, 2 C]`.
fn statistics(graph: &mut Graph, name: &str, map: &Flow) -> Value {
    graph.scoped(name, |graph| {
        let mean = graph.spatial_mean("mean", &map.value);
        let deviation = graph.spatial_std("std", &map.value);
        let both = graph.concat("both", &[&mean, &deviation], 1);
        // A factor still to be applied is positive, so it is the deviation's, too.
        let scale = graph.scalar("scale", map.scale);
        graph.mul("scaled", &both, &scale)
    })
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
    /// z_diff: every branch's pooled output, then the maps' statistics, side by side.
    fn pool(&self, graph: &mut Graph, maps: &[Flow]) -> Result<Option<Features>> {
        let mut pooled = Vec::with_capacity(maps.len());
        for (index, map) in maps.iter().enumerate() {
            pooled.push(self.branch(graph, &format!("block{}", index + 1), map)?);
        }
        if self.config.map_statistics {
            for (index, map) in maps.iter().enumerate() {
                pooled.push(statistics(graph, &format!("statistics{}", index + 1), map));
            }
        }
        let width = self.config.diffusion_width();
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
            let gamma = graph.f32("gamma", &[1, out, 1, 1], gamma);
            let beta = graph.f32("beta", &[1, out, 1, 1], beta);
            let x = graph.mul("scaled", &x, &gamma);
            let x = graph.add("shifted", &x, &beta);
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
        if let Some(index) = scale.iter().position(|s| s.is_nan() || *s == 0.0) {
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
        if self.config.activated {
            z.value = graph.silu(&format!("{prefix}fused.silu"), &z.value);
        }
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
        let hint = |name: &str| format!("{prefix}{name}");
        let layer = |name: &str, out: usize, input: usize| {
            Linear::read(self.weights, &hint(name), out, input)
        };
        let kind = self.config.fusion;
        let fm = foundation.width;
        let projects = kind == FusionKind::GatedResidual
            || self.config.projected
            || (kind == FusionKind::Add && fm != diffusion.width);
        let seen = if projects {
            let projection = layer("fusion_proj", fm, diffusion.width)?;
            projection.write(graph, &hint("fusion_proj"), &diffusion.value)
        } else {
            diffusion.clone()
        };
        let value = match kind {
            FusionKind::GatedResidual => {
                let both = [&foundation.value, &diffusion.value];
                let both = graph.concat(&hint("gate.input"), &both, 1);
                let gate = layer("gate.0", fm, fm + diffusion.width)?;
                let gate = gate.write(graph, &hint("gate.0"), &both);
                let gate = graph.op("Sigmoid", &hint("gate"), &[&gate.value], vec![]);
                let residual = graph.mul(&hint("gated"), &seen.value, &gate);
                graph.add(&hint("fused"), &foundation.value, &residual)
            }
            FusionKind::Concat => {
                let c = graph.scalar(&hint("c"), f64::from(self.share(prefix)?));
                let weighted = graph.mul(&hint("weighted"), &seen.value, &c);
                let value = graph.concat(&hint("fused"), &[&foundation.value, &weighted], 1);
                return Ok(Features { value, width: fm + seen.width });
            }
            FusionKind::Add => {
                let share = f64::from(self.share(prefix)?);
                let c = graph.scalar(&hint("c"), share);
                let rest = graph.scalar(&hint("c.rest"), 1.0 - share);
                let main = graph.mul(&hint("weighted_foundation"), &foundation.value, &c);
                let rest = graph.mul(&hint("weighted_diffusion"), &seen.value, &rest);
                graph.add(&hint("fused"), &main, &rest)
            }
            FusionKind::Film => {
                let mut gamma = layer("film_gamma", fm, seen.width)?;
                gamma.bias.iter_mut().for_each(|bias| *bias += 1.0);
                let gamma = gamma.write(graph, &hint("film_gamma"), &seen.value);
                let beta = layer("film_beta", fm, seen.width)?;
                let beta = beta.write(graph, &hint("film_beta"), &seen.value);
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use burn::tensor::{Device, TensorData};
    use tract_onnx::prelude::Tensor;

    use super::super::onnx::{Dim, Element, OPSET};
    use super::super::testing::{Loaded, assert_close, row};
    use super::*;
    use crate::diffusion::{Array, Weights};
    use crate::predictor::{Head as Trained, Inputs, Start};

    /// A head over given maps `(channels, side)`, as a graph of its own.
    fn load(config: &HeadConfig, weights: &Checkpoint, maps: &[(usize, usize)]) -> Loaded {
        let mut graph = Graph::new("head", OPSET);
        let flows: Vec<Flow> = maps
            .iter()
            .enumerate()
            .map(|(index, &(channels, side))| {
                let dims = [channels, side, side].map(Dim::Fixed);
                let dims = [&[Dim::Symbol("N")], &dims[..]].concat();
                let value = graph.input(&format!("map{index}"), Element::F32, &dims);
                // A pending factor: the branches have to make up for it.
                let half = graph.scalar("half", 0.5);
                let value = graph.mul("halved", &value, &half);
                Flow { value, scale: 2.0, channels, side }
            })
            .collect();
        let width = config.foundation_dim;
        let foundation = (width > 0).then(|| {
            let dims = [Dim::Symbol("N"), Dim::Fixed(width)];
            Features { value: graph.input("foundation", Element::F32, &dims), width }
        });
        let out = expression(&mut graph, &flows, foundation.as_ref(), config, weights).unwrap();
        let dims = [Dim::Symbol("N"), Dim::Fixed(config.genes)];
        graph.output("expression", &out, Element::F32, &dims);
        Loaded::new(&graph.finish(Vec::new()))
    }

    #[test]
    fn gated_head_is_the_references() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fusion_gated");
        let config = HeadConfig::load(&folder.join("config.json")).unwrap();
        let weights = Checkpoint::read(&folder.join("weights.safetensors")).unwrap();
        let io = Weights::load(&folder.join("io.safetensors")).unwrap();
        let names = ["coarsest", "1", "2", "finest"].map(|name| format!("features.{name}"));
        let arrays: Vec<&Array> = names.iter().map(|name| io.get(name).unwrap()).collect();
        let maps: Vec<_> = arrays.iter().map(|a| (a.shape[1], a.shape[2])).collect();
        let loaded = load(&config, &weights, &maps);
        let expected = io.get("prediction").unwrap();
        for index in 0..expected.shape[0] {
            let mut inputs: Vec<Tensor> = arrays
                .iter()
                .map(|a| {
                    let shape = [1, a.shape[1], a.shape[2], a.shape[3]];
                    Tensor::from_shape(&shape, row(a, index)).unwrap()
                })
                .collect();
            let foundation = row(io.get("foundation").unwrap(), index);
            inputs.push(Tensor::from_shape(&[1, foundation.len()], foundation).unwrap());
            let found = &loaded.run(inputs)[0].1;
            assert_close(row(expected, index), found, expected.max_abs(), "prediction");
        }
    }

    /// Values between -1 and 1 that differ from place to place.
    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + salt * 101) as f32 * 0.7).sin()).collect()
    }

    fn agrees_with_training(change: impl Fn(&mut serde_json::Value)) {
        let mut shape = serde_json::json!({
            "fusion": "gated_residual", "c": 0.3, "c_learnable": true, "genes": 7,
            "branch_channels": [6, 4], "branch_out": 4, "groups": 2, "foundation_dim": 5,
        });
        change(&mut shape);
        let config: HeadConfig = serde_json::from_value(shape.clone()).unwrap();
        let device = Device::flex();
        let origin = Path::new("test");
        let mut weights = Trained::seeded(&config, Start::Uniform, 3, &device).to_weights();
        let names: Vec<String> = weights.iter().map(|(name, _)| name.to_owned()).collect();
        for (salt, name) in names.iter().enumerate() {
            // Constants that training sets start at the identity, which would hide mistakes.
            if name.contains("norm") || name.starts_with("components") {
                let array = weights.get(name).unwrap().clone();
                let data = values(array.data.len(), salt).iter().map(|v| 1.5 + v).collect();
                weights.insert(name.clone(), Array::new(array.shape, data));
            }
        }
        let trained = Trained::from_weights(&config, &weights, origin, &device).unwrap();
        let sides = [3, 6];
        let maps: Vec<(usize, usize)> = config.branch_channels.iter().copied().zip(sides).collect();
        let mut burn_maps = Vec::new();
        let mut inputs = Vec::new();
        for (salt, &(channels, side)) in maps.iter().enumerate() {
            let data = values(channels * side * side, salt);
            let shape = [1, channels, side, side];
            inputs.push(Tensor::from_shape(&shape, &data).unwrap());
            burn_maps.push(burn::tensor::Tensor::<4>::from_data(
                TensorData::new(data, shape.to_vec()),
                &device,
            ));
        }
        let width = config.foundation_dim;
        let data = values(width, 9);
        let mut foundation = None;
        if width > 0 {
            inputs.push(Tensor::from_shape(&[1, width], &data).unwrap());
            foundation = Some(burn::tensor::Tensor::<2>::from_data(
                TensorData::new(data, vec![1, width]),
                &device,
            ));
        }
        let expected = trained.forward(&Inputs { maps: burn_maps, foundation }).unwrap();
        let expected: Vec<f32> = expected.into_data().try_into_vec::<f32>().unwrap();
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let found = load(&config, &Checkpoint::new(origin, weights), &maps).run(inputs);
        assert_close(&expected, &found[0].1, largest, &shape.to_string());
    }

    #[test]
    fn every_fusion_agrees_with_training() {
        for fusion in ["gated_residual", "concat", "add", "film"] {
            agrees_with_training(|shape| shape["fusion"] = fusion.into());
            agrees_with_training(|shape| {
                shape["fusion"] = fusion.into();
                shape["projected"] = true.into();
            });
            agrees_with_training(|shape| {
                shape["fusion"] = fusion.into();
                shape["c_learnable"] = false.into();
                shape["foundation_width"] = 8.into();
            });
        }
    }

    #[test]
    fn richer_heads_agree_with_training() {
        agrees_with_training(|shape| {
            shape["standardized"] = true.into();
            shape["hidden"] = serde_json::json!([6, 3]);
            shape["linear_skip"] = true.into();
            shape["components"] = 2.into();
            shape["members"] = 3.into();
        });
        agrees_with_training(|shape| {
            shape["map_statistics"] = true.into();
            shape["standardized"] = true.into();
            shape["members"] = 2.into();
        });
        agrees_with_training(|shape| {
            shape["map_statistics"] = true.into();
            shape["foundation_dim"] = 0.into();
        });
        agrees_with_training(|shape| {
            shape["branch_channels"] = serde_json::json!([]);
            shape["standardized"] = true.into();
            shape["members"] = 2.into();
        });
        agrees_with_training(|shape| {
            shape["foundation_dim"] = 0.into();
            shape["hidden"] = serde_json::json!([4]);
        });
    }

    #[test]
    fn features_of_another_network_are_refused() {
        let config: HeadConfig = serde_json::from_value(serde_json::json!({
            "fusion": "concat", "genes": 2, "branch_channels": [], "foundation_dim": 5,
        }))
        .unwrap();
        let mut graph = Graph::new("head", OPSET);
        let value = graph.input("foundation", Element::F32, &[Dim::Symbol("N"), Dim::Fixed(4)]);
        let features = Features { value, width: 4 };
        let weights = Checkpoint::new(Path::new("test"), Weights::new());
        let error = expression(&mut graph, &[], Some(&features), &config, &weights);
        assert!(error.unwrap_err().to_string().contains("4 features"));
    }
}
