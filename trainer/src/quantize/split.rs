//! Takes the two sides of a skip concatenation apart before they are quantised: their ranges
//! differ, and one scale for both would waste the integers of the smaller (Q-Diffusion).
//!
//! A convolution over a concatenation is the sum of convolutions over its sides. The
//! concatenation is moved down through what works on every value by itself until convolutions
//! read it; they are then split.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diffbulk::model::pb::{GraphProto, ModelProto, NodeProto};

use super::graph::{self, Kind, float_tensor, node};
use super::observe::Tiles;
use crate::Result;

/// A side's tensors and its number of channels.
type Sides = Vec<(String, usize)>;

/// A concatenation's sides are taken apart where their ranges differ by more than this factor.
pub const APART: f32 = 1.5;

/// Splits the convolutions behind concatenations whose sides' ranges on `tiles` differ by more
/// than `apart`; returns the model and the names of the split convolutions.
pub fn split(model: &ModelProto, tiles: Tiles, apart: f32) -> Result<(ModelProto, Vec<String>)> {
    let graph = graph::graph(model)?;
    let joins: Vec<&NodeProto> = graph.node.iter().filter(|node| joins_channels(node)).collect();
    if joins.is_empty() {
        return Ok((model.clone(), Vec::new()));
    }
    let names: Vec<String> = joins.iter().flat_map(|node| node.input.iter().cloned()).collect();
    let mut known: Vec<String> = names.clone();
    known.sort();
    known.dedup();
    let ranges: HashMap<&String, f32> = known
        .iter()
        .zip(tiles.ranges(model, &known)?)
        .map(|(name, (low, high))| (name, high.max(0.0) - low.min(0.0)))
        .collect();
    let differ = |node: &&&NodeProto| {
        let spans = node.input.iter().filter_map(|name| ranges.get(name));
        let (low, high) =
            spans.fold((f32::INFINITY, 0.0f32), |(low, high), &s| (low.min(s), high.max(s)));
        high > low * apart
    };
    let chosen: BTreeSet<String> =
        joins.iter().filter(differ).map(|node| node.output[0].clone()).collect();
    let channels = tiles.channel_counts(model, &known)?;
    let channels = known.into_iter().zip(channels).collect();
    let mut splitter = Splitter::new(graph, &chosen, channels);
    splitter.run()?;
    let names = splitter.split.clone();
    Ok((ModelProto { graph: Some(splitter.finish()), ..model.clone() }, names))
}

fn joins_channels(node: &NodeProto) -> bool {
    node.op_type == "Concat" && graph::integer(node, "axis") == Some(1) && node.input.len() > 1
}

struct Splitter<'a> {
    source: &'a GraphProto,
    graph: GraphProto,
    chosen: &'a BTreeSet<String>,
    channels: HashMap<String, usize>,
    /// Tensors that exist as sides.
    sides: BTreeMap<String, Sides>,
    split: Vec<String>,
}

impl<'a> Splitter<'a> {
    fn new(
        source: &'a GraphProto,
        chosen: &'a BTreeSet<String>,
        channels: HashMap<String, usize>,
    ) -> Self {
        let mut graph = source.clone();
        graph.node.clear();
        Self { source, graph, chosen, channels, sides: BTreeMap::new(), split: Vec::new() }
    }

    fn run(&mut self) -> Result<()> {
        for old in &self.source.node {
            let done = match old.op_type.as_str() {
                "Concat" => self.join(old),
                "Mul" | "Add" | "Sub" | "Sigmoid" | "Relu" => self.pointwise(old)?,
                "Conv" => self.convolution(old)?,
                _ => false,
            };
            // The whole tensor stays for whoever else reads it; what nobody reads goes below.
            if !done {
                self.graph.node.push(old.clone());
            }
        }
        Ok(())
    }

    fn join(&mut self, old: &NodeProto) -> bool {
        if self.chosen.contains(&old.output[0]) {
            let sides = old.input.iter().filter_map(|name| {
                self.channels.get(name).map(|&channels| (name.clone(), channels))
            });
            self.sides.insert(old.output[0].clone(), sides.collect());
        }
        false
    }

    /// Repeats a pointwise operator for every side. The other operand may be another split tensor,
    /// a scalar, or one constant a channel.
    fn pointwise(&mut self, old: &NodeProto) -> Result<bool> {
        let Some(sides) = old.input.iter().find_map(|name| self.sides.get(name)).cloned() else {
            return Ok(false);
        };
        let total: usize = sides.iter().map(|(_, channels)| channels).sum();
        let mut inputs: Vec<Vec<String>> = vec![Vec::new(); sides.len()];
        for name in &old.input {
            if let Some(own) = self.sides.get(name) {
                if own.len() != sides.len() {
                    return Ok(false);
                }
                own.iter().zip(&mut inputs).for_each(|((own, _), inputs)| inputs.push(own.clone()));
                continue;
            }
            let Some(constant) = self.source.initializer.iter().find(|t| t.name == *name) else {
                return Ok(false);
            };
            let values = graph::floats(constant);
            let per_channel =
                constant.dims == [1, total as i64, 1, 1] || constant.dims == [total as i64, 1, 1];
            match (values.len(), per_channel) {
                (1, _) => inputs.iter_mut().for_each(|inputs| inputs.push(name.clone())),
                (_, true) => {
                    let mut start = 0;
                    for (side, (inputs, (_, channels))) in inputs.iter_mut().zip(&sides).enumerate()
                    {
                        let part = format!("{name}.side{side}");
                        let values = &values[start..start + channels];
                        let tensor = float_tensor(&part, &[1, *channels, 1, 1], values);
                        if !self.graph.initializer.iter().any(|t| t.name == part) {
                            self.graph.initializer.push(tensor);
                        }
                        inputs.push(part);
                        start += channels;
                    }
                }
                _ => return Ok(false),
            }
        }
        let mut made = Vec::new();
        for (side, (inputs, (_, channels))) in inputs.into_iter().zip(&sides).enumerate() {
            let output = format!("{}.side{side}", old.output[0]);
            self.graph.node.push(NodeProto {
                name: output.clone(),
                input: inputs,
                output: vec![output.clone()],
                ..old.clone()
            });
            made.push((output, *channels));
        }
        self.sides.insert(old.output[0].clone(), made);
        Ok(false)
    }

    /// One convolution a side, and their sum; the bias stays with the first.
    fn convolution(&mut self, old: &NodeProto) -> Result<bool> {
        let Some(sides) = old.input.first().and_then(|name| self.sides.get(name)).cloned() else {
            return Ok(false);
        };
        let layers = graph::layers(self.source);
        let Some(layer) = layers.iter().find(|layer| {
            layer.kind == Kind::Conv && layer.output == old.output[0] && layer.groups == 1
        }) else {
            return Ok(false);
        };
        let data = graph::constant(self.source, &layer.weight)?;
        let window: usize = layer.shape[2..].iter().product();
        let row = layer.shape[1] * window;
        let mut start = 0;
        let mut sum: Option<String> = None;
        for (side, (input, channels)) in sides.iter().enumerate() {
            let weight = format!("{}.side{side}", layer.weight);
            let own: Vec<f32> = data
                .chunks_exact(row)
                .flat_map(|row| &row[start * window..(start + channels) * window])
                .copied()
                .collect();
            let shape = [layer.shape[0], *channels, layer.shape[2], layer.shape[3]];
            self.graph.initializer.push(float_tensor(&weight, &shape, &own));
            let output = format!("{}.side{side}", old.output[0]);
            let mut inputs = vec![input.clone(), weight];
            inputs.extend(layer.bias.clone().filter(|_| side == 0));
            self.graph.node.push(NodeProto {
                name: output.clone(),
                input: inputs,
                output: vec![output.clone()],
                ..old.clone()
            });
            let last = side + 1 == sides.len();
            sum = Some(match sum {
                None => output,
                Some(sum) => {
                    let whole = old.output[0].clone();
                    let name = if last { whole } else { format!("{whole}.sum{side}") };
                    self.graph.node.push(node("Add", &[&sum, &output], &name, &[]));
                    name
                }
            });
            start += channels;
        }
        self.split.push(layer.name.clone());
        Ok(true)
    }

    /// The graph without what nobody reads any more.
    fn finish(mut self) -> GraphProto {
        let mut needed: BTreeSet<String> =
            self.graph.output.iter().map(|output| output.name.clone()).collect();
        let mut kept = Vec::new();
        for node in self.graph.node.drain(..).rev() {
            if node.output.iter().any(|output| needed.contains(output)) {
                needed.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.graph.node = kept;
        graph::prune(&mut self.graph);
        self.graph
    }
}
