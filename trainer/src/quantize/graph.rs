//! What there is to quantise in a float32 ONNX graph: layers with constant weights, and who reads
//! whose output.

use std::collections::HashMap;
use std::path::Path;

use diffbulk::model::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};

use crate::{Error, Result};

/// Operator of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A convolution over NCHW.
    Conv,
    /// A matrix product with a constant second factor and a bias.
    Gemm,
    /// A matrix product with a constant second factor.
    MatMul,
}

/// A node with constant float32 weights.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its place among the graph's nodes.
    pub node: usize,
    /// The node's name, or its output's where it has none.
    pub name: String,
    /// Its operator.
    pub kind: Kind,
    /// Tensor it reads.
    pub input: String,
    /// Initializer of its weights.
    pub weight: String,
    /// Shape of the weights.
    pub shape: Vec<usize>,
    /// Axis of the weights' output channels.
    pub axis: usize,
    /// Groups of channels that see only each other; 1 but for grouped convolutions.
    pub groups: usize,
    /// Initializer of its bias.
    pub bias: Option<String>,
    /// Tensor it writes.
    pub output: String,
    /// The tensor that other nodes see: its output, or that of the Relu or Clip that alone
    /// reads it.
    pub seen: String,
}

impl Layer {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of output channels.
    pub fn outputs(&self) -> usize {
        self.shape[self.axis]
    }

    /// Number of input channels.
    pub fn inputs(&self) -> usize {
        self.shape[1 - self.axis] * self.groups
    }
}

/// The graph of `model`.
pub fn graph(model: &ModelProto) -> Result<&GraphProto> {
    model.graph.as_ref().ok_or_else(|| Error::Request("the model has no graph".into()))
}

/// Initializers by name.
pub fn initializers(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
}

/// How often each tensor is read, graph outputs counted.
pub fn readers(graph: &GraphProto) -> HashMap<&str, usize> {
    let mut readers = HashMap::new();
    let outputs = graph.output.iter().map(|output| &output.name);
    for name in graph.node.iter().flat_map(|node| &node.input).chain(outputs) {
        *readers.entry(name.as_str()).or_default() += 1;
    }
    readers
}

/// All layers, in graph order.
pub fn layers(graph: &GraphProto) -> Vec<Layer> {
    let constants = initializers(graph);
    let readers = readers(graph);
    let float = |name: &str| {
        constants.get(name).copied().filter(|tensor| tensor.data_type == DataType::Float as i32)
    };
    let mut layers = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        let kind = match node.op_type.as_str() {
            "Conv" => Kind::Conv,
            "Gemm" if plain_gemm(node) => Kind::Gemm,
            "MatMul" => Kind::MatMul,
            _ => continue,
        };
        let ([input, weight, rest @ ..], [output]) =
            (node.input.as_slice(), node.output.as_slice())
        else {
            continue;
        };
        let Some(tensor) = float(weight) else { continue };
        let shape: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
        let axis = match kind {
            Kind::Conv => 0,
            Kind::Gemm if integer(node, "transB") == Some(1) => 0,
            _ => 1,
        };
        // Only what every target has integer kernels for: images and matrices.
        let rank = if kind == Kind::Conv { 4 } else { 2 };
        let bias = rest.first().filter(|name| !name.is_empty());
        if shape.len() != rank
            || float(input).is_some()
            || bias.is_some_and(|bias| {
                float(bias).is_none_or(|bias| bias.dims != [shape[axis] as i64])
            })
        {
            continue;
        }
        let groups = usize::try_from(integer(node, "group").unwrap_or(1)).unwrap_or(1).max(1);
        let alone = readers.get(output.as_str()) == Some(&1);
        let seen = graph.node[index + 1..]
            .iter()
            .find(|next| next.input.first() == Some(output))
            .filter(|next| alone && matches!(next.op_type.as_str(), "Relu" | "Clip"))
            .and_then(|next| next.output.first())
            .unwrap_or(output);
        layers.push(Layer {
            node: index,
            name: if node.name.is_empty() { output.clone() } else { node.name.clone() },
            kind,
            input: input.clone(),
            weight: weight.clone(),
            groups,
            shape,
            axis,
            bias: bias.cloned(),
            output: output.clone(),
            seen: seen.clone(),
        });
    }
    layers
}

/// Whether a Gemm is x W + b.
fn plain_gemm(node: &NodeProto) -> bool {
    let one = |name: &str| float_attribute(node, name).is_none_or(|value| value == 1.0);
    one("alpha") && one("beta") && integer(node, "transA").unwrap_or(0) == 0
}

/// An integer attribute.
pub fn integer(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.i)
}

fn float_attribute(node: &NodeProto, name: &str) -> Option<f32> {
    node.attribute.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.f)
}

/// The values of a float32 initializer.
pub fn floats(tensor: &TensorProto) -> Vec<f32> {
    if tensor.raw_data.is_empty() {
        return tensor.float_data.clone();
    }
    let word = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    tensor.raw_data.chunks_exact(4).map(word).collect()
}

/// The values of the float32 initializer called `name`.
pub fn constant(graph: &GraphProto, name: &str) -> Result<Vec<f32>> {
    graph
        .initializer
        .iter()
        .find(|tensor| tensor.name == name)
        .map(floats)
        .ok_or_else(|| Error::Check(format!("the graph has no constant `{name}`")))
}

/// A tensor of raw little-endian bytes.
pub fn tensor(name: &str, kind: DataType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|&dim| dim as i64).collect(),
        data_type: kind as i32,
        raw_data,
        ..Default::default()
    }
}

/// A float32 tensor.
pub fn float_tensor(name: &str, dims: &[usize], data: &[f32]) -> TensorProto {
    let raw = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, DataType::Float, dims, raw)
}

/// A node with one output of its own name.
pub fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        name: output.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes
            .iter()
            .map(|&(name, i)| AttributeProto {
                name: name.to_owned(),
                r#type: AttributeType::Int as i32,
                i,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// Removes initializers that nothing reads any more.
pub fn prune(graph: &mut GraphProto) {
    let used: std::collections::HashSet<String> =
        graph.node.iter().flat_map(|node| node.input.iter().cloned()).collect();
    graph.initializer.retain(|tensor| used.contains(&tensor.name));
}

/// The model as a file in memory, for running it; `origin` names it in errors.
pub fn file(model: &ModelProto, origin: &Path) -> Result<diffbulk::model::OnnxFile> {
    Ok(diffbulk::model::OnnxFile::from_proto(model.clone(), origin)?)
}
