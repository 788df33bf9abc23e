//! Writes a table of scales as QDQ: `QuantizeLinear` and `DequantizeLinear` around float operators
//! (onnxruntime, OpenVINO, TensorRT and this project's own engine read it).

use std::collections::{BTreeMap, BTreeSet};

use diffbulk::model::pb::{GraphProto, ModelProto, NodeProto, tensor_proto::DataType};

use super::graph::{self, Layer, float_tensor, node, tensor};
use super::scheme::{Affine, Channels};
use super::table::{LayerPrecision, LayerScales, Table};
use crate::Result;

/// Name of the operator form in metadata.
pub const FORM: &str = "QDQ";

/// `model` with the layers of `table` between quantise and dequantise nodes.
pub fn write(model: &ModelProto, layers: &[Layer], table: &Table) -> Result<ModelProto> {
    let source = graph::graph(model)?;
    let outputs: BTreeSet<&str> = source.output.iter().map(|output| output.name.as_str()).collect();
    let mut writer = Writer::new(source, table);
    // Everybody reads what an int8 layer wrote as integers; a tensor that only int8 layers read
    // as integers stays float for the others.
    let written: BTreeSet<&str> = layers
        .iter()
        .filter(|layer| writer.precision(layer) == LayerPrecision::Int8)
        .map(|layer| layer.seen.as_str())
        .filter(|seen| table.activations.contains_key(*seen) && !outputs.contains(seen))
        .collect();
    // Nobody reads integers of the graph's outputs, so they get none, unless a layer does.
    let read: BTreeSet<&str> = layers
        .iter()
        .filter(|layer| writer.precision(layer) == LayerPrecision::Int8)
        .map(|layer| layer.input.as_str())
        .chain(written.iter().copied())
        .collect();
    let by_node: BTreeMap<usize, &Layer> = layers.iter().map(|layer| (layer.node, layer)).collect();

    for input in source.input.iter().filter(|input| read.contains(input.name.as_str())) {
        writer.quantise(&input.name);
    }
    for (index, old) in source.node.iter().enumerate() {
        let mut new = old.clone();
        for input in &mut new.input {
            if written.contains(input.as_str()) {
                *input = dequantised(input);
            }
        }
        if let Some(layer) = by_node.get(&index) {
            writer.layer(layer, &mut new);
        }
        writer.graph.node.push(new);
        for output in old.output.iter().filter(|output| read.contains(output.as_str())) {
            writer.quantise(output);
        }
    }
    Ok(writer.finish(model))
}

/// Name of a tensor's integers.
pub fn quantised(name: &str) -> String {
    format!("{name}.q")
}

/// Name of the reals its integers stand for.
pub fn dequantised(name: &str) -> String {
    format!("{name}.dq")
}

/// A graph under construction, its nodes still to come.
pub struct Writer<'a> {
    /// The graph.
    pub graph: GraphProto,
    table: &'a Table,
    done: BTreeSet<String>,
}

impl<'a> Writer<'a> {
    /// A graph like `source` without nodes.
    pub fn new(source: &GraphProto, table: &'a Table) -> Self {
        let mut graph = source.clone();
        graph.node.clear();
        Self { graph, table, done: BTreeSet::new() }
    }

    /// A layer's arithmetic.
    pub fn precision(&self, layer: &Layer) -> LayerPrecision {
        self.scales(layer).map_or(LayerPrecision::Float, |scales| scales.precision)
    }

    /// A layer's numbers.
    pub fn scales(&self, layer: &Layer) -> Option<&'a LayerScales> {
        self.table.layers.get(&layer.name)
    }

    /// The integers of the tensor `name`, if it has any.
    pub fn activation(&self, name: &str) -> Option<Affine> {
        self.table.activations.get(name).copied()
    }

    /// Adds a tensor's scale and zero point; returns their names.
    pub fn affine(&mut self, name: &str, affine: Affine) -> [String; 2] {
        let names = [format!("{name}.scale"), format!("{name}.zero")];
        if self.done.insert(names[0].clone()) {
            let zero = tensor(&names[1], DataType::Uint8, &[], vec![affine.zero_point]);
            let scale = float_tensor(&names[0], &[], &[affine.scale]);
            self.graph.initializer.extend([scale, zero]);
        }
        names
    }

    /// Adds quantise and dequantise nodes after the tensor `name`, if it has integers.
    fn quantise(&mut self, name: &str) {
        let Some(affine) = self.activation(name) else { return };
        let [scale, zero] = self.affine(name, affine);
        let (q, dq) = (quantised(name), dequantised(name));
        self.graph.node.push(node("QuantizeLinear", &[name, &scale, &zero], &q, &[]));
        self.graph.node.push(node("DequantizeLinear", &[&q, &scale, &zero], &dq, &[]));
    }

    /// Adds a weight's integers, scales and zero points; returns their names.
    pub fn weights(&mut self, name: &str, channels: &Channels) -> [String; 3] {
        let names = ["int8", "scale", "zero"].map(|part| format!("{name}.{part}"));
        if self.done.insert(names[0].clone()) {
            let bytes = channels.values.iter().map(|&value| value as u8).collect();
            let count = channels.scales.len();
            self.graph.initializer.extend([
                tensor(&names[0], DataType::Int8, &channels.shape, bytes),
                float_tensor(&names[1], &[count], &channels.scales),
                tensor(&names[2], DataType::Int8, &[count], vec![0; count]),
            ]);
        }
        names
    }

    /// Adds the bias as integers of scale input x weight; returns their name and their scales'.
    pub fn bias(&mut self, layer: &Layer, bias: &[f32], scales: &[f32]) -> [String; 2] {
        let names = ["bias.int32", "bias.scale"].map(|part| format!("{}.{part}", layer.name));
        let integers = bias.iter().zip(scales).flat_map(|(bias, scale)| {
            ((f64::from(*bias) / f64::from(*scale)).round_ties_even() as i32).to_le_bytes()
        });
        let integers = tensor(&names[0], DataType::Int32, &[bias.len()], integers.collect());
        let scales = float_tensor(&names[1], &[scales.len()], scales);
        self.graph.initializer.extend([integers, scales]);
        names
    }

    /// Puts a layer's integers in the place of its floats.
    fn layer(&mut self, layer: &Layer, node_: &mut NodeProto) {
        let Some(scales) = self.scales(layer) else { return };
        let Some(channels) = &scales.weights else { return };
        let [w, scale, zero] = self.weights(&layer.weight, channels);
        let dq = dequantised(&layer.weight);
        if self.done.insert(dq.clone()) {
            let axis = [("axis", layer.axis as i64)];
            self.graph.node.push(node("DequantizeLinear", &[&w, &scale, &zero], &dq, &axis));
        }
        node_.input[1] = dq;
        let input = self.activation(&layer.input);
        let bias = match (scales.precision, input) {
            (LayerPrecision::Int8, Some(input)) => {
                node_.input[0] = dequantised(&layer.input);
                scales.bias.as_ref().map(|bias| {
                    let products: Vec<f32> =
                        channels.scales.iter().map(|scale| scale * input.scale).collect();
                    let [integers, products] = self.bias(layer, bias, &products);
                    let dq = format!("{}.bias.dq", layer.name);
                    let inputs = [integers.as_str(), products.as_str()];
                    self.graph.node.push(node("DequantizeLinear", &inputs, &dq, &[("axis", 0)]));
                    dq
                })
            }
            _ => scales.bias.as_ref().map(|bias| self.float_bias(layer, bias)),
        };
        if let Some(bias) = bias.filter(|_| layer.kind != graph::Kind::MatMul) {
            node_.input.truncate(2);
            node_.input.push(bias);
        }
    }

    /// Adds a bias as reals; returns its name.
    pub fn float_bias(&mut self, layer: &Layer, bias: &[f32]) -> String {
        let name = format!("{}.bias.float", layer.name);
        self.graph.initializer.push(float_tensor(&name, &[bias.len()], bias));
        name
    }

    /// The finished model, with everything else of `model`.
    pub fn finish(mut self, model: &ModelProto) -> ModelProto {
        graph::prune(&mut self.graph);
        ModelProto { graph: Some(self.graph), ..model.clone() }
    }
}
