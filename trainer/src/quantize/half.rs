//! float16 weights and activations, with float32 islands where range or precision needs them.

use std::collections::{BTreeMap, BTreeSet};

use diffbulk::model::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType};
use diffbulk::model::widen::element_types;

use super::graph::{self, node, tensor};
use super::observe::Tiles;
use crate::Result;

/// Largest float16.
const LARGEST: f32 = 65504.0;

/// A value this close to the largest float16 counts as out of range: other tiles go further.
const MARGIN: f32 = 4.0;

const FLOAT: i32 = DataType::Float as i32;
const HALF: i32 = DataType::Float16 as i32;

/// Operators that stay float32 together.
pub type Islands = BTreeSet<String>;

/// Nodes whose inputs or outputs come near the end of float16's range on `tiles`, by place.
pub fn out_of_range(model: &ModelProto, tiles: Tiles) -> Result<BTreeSet<usize>> {
    let graph = graph::graph(model)?;
    let types = element_types(graph);
    let names: Vec<String> = graph
        .node
        .iter()
        .flat_map(|node| &node.output)
        .filter(|name| types.get(name.as_str()) == Some(&FLOAT))
        .cloned()
        .collect();
    let ranges = tiles.ranges(model, &names)?;
    let far: BTreeSet<&str> = names
        .iter()
        .zip(&ranges)
        .filter(|(_, (low, high))| low.abs().max(high.abs()) * MARGIN > LARGEST)
        .map(|(name, _)| name.as_str())
        .collect();
    let touches =
        |node: &NodeProto| node.input.iter().chain(&node.output).any(|n| far.contains(n.as_str()));
    Ok((0..graph.node.len()).filter(|&index| touches(&graph.node[index])).collect())
}

/// Operators of the graph that compute with floats.
pub fn operators(model: &ModelProto) -> Result<BTreeSet<String>> {
    let graph = graph::graph(model)?;
    let types = element_types(graph);
    let floats = |node: &&NodeProto| {
        node.op_type != "Cast"
            && node.output.iter().any(|name| types.get(name.as_str()) == Some(&FLOAT))
    };
    Ok(graph.node.iter().filter(floats).map(|node| node.op_type.clone()).collect())
}

/// `model` in float16, but for the `islands`, nodes in `places`, and its inputs and outputs.
pub fn write(
    model: &ModelProto,
    islands: &Islands,
    places: &BTreeSet<usize>,
) -> Result<ModelProto> {
    let source = graph::graph(model)?;
    let types = element_types(source);
    let constants: BTreeMap<&str, &TensorProto> =
        source.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let outputs: BTreeSet<&str> = source.output.iter().map(|output| output.name.as_str()).collect();
    let mut writer = Writer { graph: source.clone(), half: BTreeSet::new(), done: BTreeSet::new() };
    writer.graph.node.clear();
    for (index, old) in source.node.iter().enumerate() {
        let mut new = old.clone();
        let float = |name: &str| types.get(name) == Some(&FLOAT);
        let computes = old.op_type != "Cast" && old.output.iter().any(|name| float(name));
        let stays = !computes || islands.contains(&old.op_type) || places.contains(&index);
        for (place, input) in new.input.iter_mut().enumerate() {
            if !float(input) || (old.op_type == "Resize" && place > 0) {
                continue;
            }
            *input = match (stays, writer.half.contains(input.as_str())) {
                (true, true) => writer.cast(input, FLOAT),
                (false, false) => match constants.get(input.as_str()) {
                    Some(constant) => writer.constant(constant),
                    None => writer.cast(input, HALF),
                },
                _ => input.clone(),
            };
        }
        let mut whole = Vec::new();
        if !stays {
            for output in &mut new.output {
                if outputs.contains(output.as_str()) {
                    let half = format!("{output}.half");
                    whole.push((half.clone(), output.clone()));
                    *output = half;
                } else {
                    writer.half.insert(output.clone());
                }
            }
        }
        writer.graph.node.push(new);
        for (half, output) in whole {
            let cast = node("Cast", &[&half], &output, &[("to", i64::from(FLOAT))]);
            writer.graph.node.push(cast);
        }
    }
    graph::prune(&mut writer.graph);
    // Declared types of inner tensors no longer hold.
    writer.graph.value_info.clear();
    Ok(ModelProto { graph: Some(writer.graph), ..model.clone() })
}

struct Writer {
    graph: GraphProto,
    /// Tensors that are float16.
    half: BTreeSet<String>,
    done: BTreeSet<String>,
}

impl Writer {
    /// The tensor `name` as type `to`.
    fn cast(&mut self, name: &str, to: i32) -> String {
        let new = format!("{name}.{}", if to == HALF { "f16" } else { "f32" });
        if self.done.insert(new.clone()) {
            self.graph.node.push(node("Cast", &[name], &new, &[("to", i64::from(to))]));
        }
        new
    }

    /// The constant in float16.
    fn constant(&mut self, constant: &TensorProto) -> String {
        let new = format!("{}.f16", constant.name);
        if self.done.insert(new.clone()) {
            let dims: Vec<usize> = constant.dims.iter().map(|&dim| dim as usize).collect();
            let raw = graph::floats(constant)
                .into_iter()
                .flat_map(|value| burn::tensor::f16::from_f32(value).to_le_bytes())
                .collect();
            self.graph.initializer.push(tensor(&new, DataType::Float16, &dims, raw));
        }
        new
    }
}
