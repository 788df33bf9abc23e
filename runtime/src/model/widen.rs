//! float16 graphs as float32 ones, for machines without half-precision arithmetic.
//!
//! Weights keep their float16 values. [`widen`] computes everything between them in float32; with
//! [`Rounding::Kept`] every float16 tensor is rounded to float16 as the file asks, which is what
//! onnxruntime does on such machines.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType, type_proto,
};

const FLOAT: i32 = DataType::Float as i32;
const HALF: i32 = DataType::Float16 as i32;

/// What becomes of values between the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each float16 tensor is rounded to float16.
    Kept,
    /// They stay float32: faster, and closer to what the model was before.
    Left,
}

/// `proto` with all float16 arithmetic in float32; itself where it has none.
pub fn widen(proto: &ModelProto, rounding: Rounding) -> Cow<'_, ModelProto> {
    let Some(source) = &proto.graph else { return Cow::Borrowed(proto) };
    let types = element_types(source);
    if !types.values().any(|&kind| kind == HALF) {
        return Cow::Borrowed(proto);
    }
    let mut model = proto.clone();
    let mut graph = source.clone();
    graph.initializer.iter_mut().filter(|t| t.data_type == HALF).for_each(widen_tensor);
    graph.value_info.clear();
    graph.node = Vec::with_capacity(source.node.len());
    for old in &source.node {
        let mut node = old.clone();
        let cast = old.op_type == "Cast" && matches!(integer(old, "to"), Some(FLOAT | HALF));
        let from_float = old
            .input
            .first()
            .and_then(|name| types.get(name))
            .is_some_and(|kind| matches!(*kind, FLOAT | HALF));
        if cast && from_float {
            node.op_type = "Identity".into();
            node.attribute.clear();
        } else if cast {
            node.attribute = vec![attribute("to", i64::from(FLOAT))];
        }
        let halves: Vec<String> =
            old.output.iter().filter(|name| types.get(*name) == Some(&HALF)).cloned().collect();
        if rounding == Rounding::Left || halves.is_empty() {
            graph.node.push(node);
            continue;
        }
        for output in &mut node.output {
            if halves.contains(output) {
                output.push_str(".wide");
            }
        }
        graph.node.push(node);
        for name in halves {
            let (wide, rounded) = (format!("{name}.wide"), format!("{name}.rounded"));
            // The node before may have the name of its output, so the last one needs another.
            graph.node.push(cast_node(&rounded, &wide, &rounded, HALF));
            graph.node.push(cast_node(&format!("{name}.widened"), &rounded, &name, FLOAT));
        }
    }
    model.graph = Some(graph);
    Cow::Owned(model)
}

fn attribute(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), r#type, i, ..Default::default() }
}

fn cast_node(name: &str, input: &str, output: &str, to: i32) -> NodeProto {
    NodeProto {
        op_type: "Cast".into(),
        name: name.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        attribute: vec![attribute("to", i64::from(to))],
        ..Default::default()
    }
}

fn integer(node: &NodeProto, name: &str) -> Option<i32> {
    let found = node.attribute.iter().find(|attribute| attribute.name == name)?;
    i32::try_from(found.i).ok()
}

fn widen_tensor(tensor: &mut TensorProto) {
    let bits: Vec<u16> = match tensor.raw_data.is_empty() {
        true => tensor.int32_data.iter().map(|&bits| bits as u16).collect(),
        false => {
            tensor.raw_data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
        }
    };
    tensor.raw_data =
        bits.into_iter().flat_map(|bits| half_to_single(bits).to_le_bytes()).collect();
    tensor.int32_data.clear();
    tensor.data_type = FLOAT;
}

/// The value of a float16.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// Element types (ONNX numbers) of all tensors of a graph: declared ones, what operators make of
/// them, and otherwise that of the first input.
pub fn element_types(graph: &GraphProto) -> BTreeMap<String, i32> {
    let mut types: BTreeMap<String, i32> = BTreeMap::new();
    for tensor in &graph.initializer {
        types.insert(tensor.name.clone(), tensor.data_type);
    }
    for input in &graph.input {
        let declared = input.r#type.as_ref().and_then(|kind| kind.value.as_ref());
        if let Some(type_proto::Value::TensorType(tensor)) = declared {
            types.insert(input.name.clone(), tensor.elem_type);
        }
    }
    for node in &graph.node {
        let first = node.input.iter().find_map(|name| types.get(name)).copied();
        let made = match node.op_type.as_str() {
            "Cast" => integer(node, "to"),
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => Some(DataType::Int64 as i32),
            "Equal" | "Greater" | "Less" | "Not" | "And" | "Or" => Some(DataType::Bool as i32),
            "Constant" => {
                let value = node.attribute.iter().find_map(|attribute| attribute.t.as_ref());
                Some(value.map_or(FLOAT, |tensor| tensor.data_type))
            }
            "ConstantOfShape" | "DequantizeLinear" => Some(FLOAT),
            "QuantizeLinear" => node.input.get(2).and_then(|name| types.get(name)).copied(),
            "Where" => node.input.get(1).and_then(|name| types.get(name)).copied(),
            _ => first,
        };
        if let Some(made) = made {
            for output in &node.output {
                types.insert(output.clone(), made);
            }
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_by_hand() {
        for (bits, value) in [
            (0x0000u16, 0.0f32),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half_to_single(bits), value, "{bits:#x}");
        }
        assert!(half_to_single(0x7e00).is_nan());
        assert_eq!(half_to_single(0xfc00), f32::NEG_INFINITY);
    }

    #[test]
    fn a_graph_without_halves_is_left_alone() {
        let proto = super::super::testing::tiny_linear(2, 1, &[1.0, 2.0]);
        assert!(matches!(widen(&proto, Rounding::Kept), Cow::Borrowed(_)));
    }
}
