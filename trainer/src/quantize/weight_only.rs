//! Weights of 8 or 4 bits in blocks, turned back into floats when the model is loaded.
//!
//! The blocks are rows of a matrix, so that operators of every operator set can turn them back:
//! `DequantizeLinear` per row for 8 bits; for 4 bits two weights a byte, taken apart by `Floor`
//! and subtraction. (`DequantizeLinear` with `block_size` would need operator set 21.)

use diffbulk::model::pb::{ModelProto, tensor_proto::DataType};

use super::graph::{self, Kind, Layer, float_tensor, node, tensor};
use super::rounding::Moments;
use super::scheme::Channels;
use super::table::InputMeans;
use crate::Result;

/// Weights that share a scale.
pub const BLOCK: usize = 32;

/// Zero of the 4-bit numbers, which are stored as 0 to 15.
const ZERO4: i8 = 8;

/// `model` with all `layers`' weights in blocks of [`BLOCK`] and `bits` bits (8 or 4). Layers whose
/// weights do not fill whole blocks keep one scale an output channel. With `means`, biases make up
/// for the mean of the weights' errors; with `moments`, weights are rounded for what they see.
pub fn write(
    model: &ModelProto,
    layers: &[Layer],
    bits: u8,
    means: Option<&InputMeans>,
    moments: Option<&Moments>,
) -> Result<ModelProto> {
    let mut graph = graph::graph(model)?.clone();
    let mut nodes = Vec::new();
    let mut renamed = std::collections::BTreeMap::new();
    for layer in layers {
        let data = graph::constant(&graph, &layer.weight)?;
        // Blocks lie along the last axes, so the output channels' axis has to be the first.
        let row = layer.weights() / layer.shape[0];
        let block = if row.is_multiple_of(BLOCK) { BLOCK } else { row };
        // Two weights a byte need an even number; a few odd rows keep 8 bits.
        let bits = if block.is_multiple_of(2) { bits } else { 8 };
        let shape = [layer.weights() / block, block];
        let mut blocks = Channels::of(&data, &shape, 0, bits, &[]);
        if let Some(moments) = moments {
            blocks.round(layer, &data, bits, moments);
        }
        if let Some(means) = means.filter(|_| layer.kind != Kind::MatMul) {
            let bias = layer.bias.as_ref().map(|name| graph::constant(&graph, name)).transpose()?;
            if let Some(bias) = means.corrected(layer, bias, &data, &blocks.dequantize()) {
                let own = format!("{}.bias.corrected", layer.name);
                graph.initializer.push(float_tensor(&own, &[bias.len()], &bias));
                let inputs = &mut graph.node[layer.node].input;
                inputs.truncate(2);
                inputs.push(own);
            }
        }
        // Two layers may have the same weights.
        if renamed.contains_key(&layer.weight) {
            continue;
        }
        let name = layer.weight.as_str();
        let part = |part: &str| format!("{name}.{part}");
        let rows = part("rows");
        if bits == 8 {
            let (values, scale, zero) = (part("int8"), part("scale"), part("zero"));
            let bytes = blocks.values.iter().map(|&value| value as u8).collect();
            graph.initializer.extend([
                tensor(&values, DataType::Int8, &shape, bytes),
                float_tensor(&scale, &shape[..1], &blocks.scales),
                tensor(&zero, DataType::Int8, &shape[..1], vec![0; shape[0]]),
            ]);
            let axis = [("axis", 0)];
            nodes.push(node("DequantizeLinear", &[&values, &scale, &zero], &rows, &axis));
        } else {
            let packed = part("int4");
            let half = shape[1] / 2;
            graph.initializer.extend([
                tensor(&packed, DataType::Uint8, &[shape[0], half], pack(&blocks.values, block)),
                float_tensor(&part("scale"), &[shape[0], 1], &blocks.scales),
                float_tensor(&part("sixteenth"), &[], &[1.0 / 16.0]),
                float_tensor(&part("sixteen"), &[], &[16.0]),
                float_tensor(&part("eight"), &[], &[f32::from(ZERO4)]),
            ]);
            let cast = [("to", DataType::Float as i64)];
            nodes.push(node("Cast", &[&packed], &part("bytes"), &cast));
            let mut step = |op: &str, inputs: &[&str], output: &str| {
                let names: Vec<String> = inputs.iter().map(|&input| part(input)).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let axis: &[(&str, i64)] = if op == "Concat" { &[("axis", 1)] } else { &[] };
                nodes.push(node(op, &names, &part(output), axis));
            };
            step("Mul", &["bytes", "sixteenth"], "shifted");
            step("Floor", &["shifted"], "high");
            step("Mul", &["high", "sixteen"], "high16");
            step("Sub", &["bytes", "high16"], "low");
            step("Concat", &["low", "high"], "nibbles");
            step("Sub", &["nibbles", "eight"], "centred");
            step("Mul", &["centred", "scale"], "rows");
        }
        let (dims, float) = (part("dims"), part("float"));
        let raw = layer.shape.iter().flat_map(|&dim| (dim as i64).to_le_bytes()).collect();
        graph.initializer.push(tensor(&dims, DataType::Int64, &[layer.shape.len()], raw));
        nodes.push(node("Reshape", &[&rows, &dims], &float, &[]));
        renamed.insert(layer.weight.clone(), float);
    }
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(float) = renamed.get(input) {
                input.clone_from(float);
            }
        }
    }
    nodes.append(&mut graph.node);
    graph.node = nodes;
    graph::prune(&mut graph);
    Ok(ModelProto { graph: Some(graph), ..model.clone() })
}

/// Rows of `block` numbers of -7 to 7 as bytes: the row's first half in the low nibbles, its
/// second half in the high ones.
fn pack(values: &[i8], block: usize) -> Vec<u8> {
    let nibble = |value: i8| (value + ZERO4) as u8;
    values
        .chunks_exact(block)
        .flat_map(|row| {
            let (low, high) = row.split_at(block / 2);
            low.iter().zip(high).map(move |(&low, &high)| nibble(low) | nibble(high) << 4)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_by_hand() {
        assert_eq!(pack(&[-7, 0, 7, 1], 4), [0x1 | 0xf << 4, 0x8 | 0x9 << 4]);
    }
}
