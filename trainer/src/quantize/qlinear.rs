//! Writes the same table as `QLinearConv` and `QLinearMatMul`: integer operators that say
//! themselves what they compute (plain tract reads it).

use std::collections::BTreeMap;

use diffbulk::model::pb::{ModelProto, NodeProto};

use super::graph::{self, Kind, Layer, node};
use super::qdq::{Writer, quantised};
use super::table::{LayerPrecision, Table};
use crate::Result;

/// Name of the operator form in metadata.
pub const FORM: &str = "QLinear";

/// `model` with the int8 layers of `table` as integer operators. An int8 layer whose output has
/// no integers in the table stays float, and so does a Gemm: its operator has no bias, and the
/// range of what comes before the bias is not in the table.
pub fn write(model: &ModelProto, layers: &[Layer], table: &Table) -> Result<ModelProto> {
    let source = graph::graph(model)?;
    let mut writer = Writer::new(source, table);
    let by_node: BTreeMap<usize, &Layer> = layers.iter().map(|layer| (layer.node, layer)).collect();
    let mut integers: BTreeMap<String, String> = BTreeMap::new();
    for (index, old) in source.node.iter().enumerate() {
        match by_node.get(&index).map(|layer| (layer, writer.precision(layer))) {
            Some((layer, LayerPrecision::Int8)) if layer.kind != Kind::Gemm => {
                integer_layer(&mut writer, &mut integers, layer, old);
            }
            Some((layer, LayerPrecision::Weights8)) => {
                let mut new = old.clone();
                if let Some((weights, scales)) = writer
                    .scales(layer)
                    .and_then(|scales| scales.weights.as_ref().map(|weights| (weights, scales)))
                {
                    let [w, scale, zero] = writer.weights(&layer.weight, weights);
                    let dq = format!("{}.dq", layer.name);
                    let axis = [("axis", layer.axis as i64)];
                    let inputs = [w.as_str(), scale.as_str(), zero.as_str()];
                    writer.graph.node.push(node("DequantizeLinear", &inputs, &dq, &axis));
                    new.input[1] = dq;
                    if let (Some(bias), Kind::Conv | Kind::Gemm) = (&scales.bias, layer.kind) {
                        new.input.truncate(2);
                        new.input.push(writer.float_bias(layer, bias));
                    }
                }
                writer.graph.node.push(new);
            }
            _ => writer.graph.node.push(old.clone()),
        }
    }
    Ok(writer.finish(model))
}

fn integer_layer(
    writer: &mut Writer,
    integers: &mut BTreeMap<String, String>,
    layer: &Layer,
    old: &NodeProto,
) {
    let parts =
        (writer.scales(layer), writer.activation(&layer.input), writer.activation(&layer.seen));
    let (Some(scales), Some(input), Some(output)) = parts else {
        writer.graph.node.push(old.clone());
        return;
    };
    let Some(channels) = &scales.weights else { return };
    let x = integers.get(&layer.input).cloned().unwrap_or_else(|| {
        let q = quantised(&layer.input);
        let [scale, zero] = writer.affine(&layer.input, input);
        let inputs = [layer.input.as_str(), scale.as_str(), zero.as_str()];
        writer.graph.node.push(node("QuantizeLinear", &inputs, &q, &[]));
        q
    });
    integers.insert(layer.input.clone(), x.clone());
    let [x_scale, x_zero] = writer.affine(&layer.input, input);
    // The activation after the layer reads the same integers: their range is what it lets through.
    let [y_scale, y_zero] = writer.affine(&layer.seen, output);
    let [w, w_scale, w_zero] = writer.weights(&layer.weight, channels);
    let y = format!("{}.q", layer.output);
    let mut inputs = vec![x, x_scale, x_zero, w, w_scale, w_zero, y_scale.clone(), y_zero.clone()];
    let op = if layer.kind == Kind::Conv {
        if let Some(bias) = &scales.bias {
            let products: Vec<f32> =
                channels.scales.iter().map(|scale| scale * input.scale).collect();
            let [integers, _] = writer.bias(layer, bias, &products);
            inputs.push(integers);
        }
        "QLinearConv"
    } else {
        "QLinearMatMul"
    };
    let attribute = if layer.kind == Kind::Conv { old.attribute.clone() } else { Vec::new() };
    writer.graph.node.push(NodeProto {
        op_type: op.to_owned(),
        // The dequantise node below has the name of its output, which the layer may have as well.
        name: y.clone(),
        input: inputs,
        output: vec![y.clone()],
        attribute,
        ..Default::default()
    });
    let back = [y.as_str(), y_scale.as_str(), y_zero.as_str()];
    writer.graph.node.push(node("DequantizeLinear", &back, &layer.output, &[]));
    // What the activation in between cuts off, the range of the integers cuts off already.
    integers.insert(layer.seen.clone(), y.clone());
}
