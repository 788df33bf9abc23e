//! Weights that a quantised file stores as integers, as the reals they stand for.
//!
//! tract works them out too, by operators of its own, which takes most of the time of loading such a file.

use std::collections::{HashMap, HashSet};

use super::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataType};

/// Replaces every `DequantizeLinear` of constants by a constant of its values, `(q - zero point) * scale`, along an axis
/// or for all alike. What is not exactly that stays as it is.
pub fn dequantise_weights(graph: &mut GraphProto) {
    let constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut made = vec![];
    let mut done = HashSet::new();
    for (k, node) in graph.node.iter().enumerate() {
        if let Some(tensor) = dequantised(node, &constants) {
            made.push(tensor);
            done.insert(k);
        }
    }
    if made.is_empty() {
        return;
    }
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        !done.contains(&(k - 1))
    });
    let outputs = graph.output.iter().map(|output| output.name.as_str());
    let used: HashSet<&str> =
        graph.node.iter().flat_map(|node| &node.input).map(String::as_str).chain(outputs).collect();
    // Inner graphs may read what no node of this one does.
    let inner = graph
        .node
        .iter()
        .flat_map(|node| &node.attribute)
        .any(|a| a.g.is_some() || !a.graphs.is_empty());
    graph.initializer.retain(|tensor| inner || used.contains(tensor.name.as_str()));
    graph.initializer.extend(made);
}

/// Whether [`dequantise_weights`] has anything to do.
pub fn has_integer_weights(model: &ModelProto) -> bool {
    let Some(graph) = &model.graph else { return false };
    let constants: HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    graph.node.iter().any(|node| {
        node.op_type == "DequantizeLinear"
            && node.input.first().is_some_and(|name| constants.contains(name.as_str()))
    })
}

fn dequantised(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Option<TensorProto> {
    if node.op_type != "DequantizeLinear" || !node.domain.is_empty() || node.output.len() != 1 {
        return None;
    }
    let constant = |k: usize| constants.get(node.input.get(k)?.as_str()).copied();
    let (tensor, scales) = (constant(0)?, floats(constant(1)?)?);
    let zeros = match node.input.get(2).map(String::as_str) {
        None | Some("") => vec![0],
        Some(_) => integers(constant(2)?)
            .filter(|_| constant(2).map(|zero| zero.data_type) == Some(tensor.data_type))?,
    };
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name).map(|a| a.i);
    if attribute("block_size").unwrap_or(0) != 0 || attribute("output_dtype").unwrap_or(0) != 0 {
        return None;
    }
    let values = integers(tensor)?;
    let dims: Vec<usize> =
        tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    let steps = scales.len().max(zeros.len());
    // Values that follow each other with one scale.
    let inner = if steps == 1 {
        values.len().max(1)
    } else {
        let axis = attribute("axis").unwrap_or(1);
        let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
        let axis = usize::try_from(axis).ok().filter(|axis| *axis < dims.len())?;
        if dims[axis] != steps {
            return None;
        }
        dims[axis + 1..].iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?
    };
    let fits = |len: usize| len == 1 || len == steps;
    if inner == 0 || !fits(scales.len()) || !fits(zeros.len()) {
        return None;
    }
    let mut raw_data = Vec::with_capacity(values.len() * size_of::<f32>());
    for (index, values) in values.chunks(inner).enumerate() {
        let scale = scales[if scales.len() == 1 { 0 } else { index % steps }];
        let zero = zeros[if zeros.len() == 1 { 0 } else { index % steps }] as f32;
        raw_data.extend(values.iter().flat_map(|q| ((*q as f32 - zero) * scale).to_le_bytes()));
    }
    Some(TensorProto {
        name: node.output[0].clone(),
        dims: tensor.dims.clone(),
        data_type: DataType::Float as i32,
        raw_data,
        ..Default::default()
    })
}

/// Elements of an int8, uint8 or int32 tensor, as many as its shape has.
fn integers(tensor: &TensorProto) -> Option<Vec<i32>> {
    let raw = &tensor.raw_data;
    let stored = || tensor.int32_data.clone();
    let values = match DataType::try_from(tensor.data_type).ok()? {
        _ if is_elsewhere(tensor) => return None,
        DataType::Int8 | DataType::Uint8 | DataType::Int32 if raw.is_empty() => stored(),
        DataType::Int8 => raw.iter().map(|&byte| i32::from(byte as i8)).collect(),
        DataType::Uint8 => raw.iter().map(|&byte| i32::from(byte)).collect(),
        DataType::Int32 => {
            raw.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
        }
        _ => return None,
    };
    holds(tensor, values.len()).then_some(values)
}

/// Elements of a float32 tensor, as many as its shape has.
fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 || is_elsewhere(tensor) {
        return None;
    }
    let values: Vec<f32> = match tensor.raw_data.is_empty() {
        true => tensor.float_data.clone(),
        false => {
            tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
    };
    holds(tensor, values.len()).then_some(values)
}

fn is_elsewhere(tensor: &TensorProto) -> bool {
    !tensor.external_data.is_empty() || tensor.segment.is_some()
}

fn holds(tensor: &TensorProto, values: usize) -> bool {
    let elements = tensor
        .dims
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?));
    elements == Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pb::{AttributeProto, ValueInfoProto};

    fn tensor(name: &str, dims: &[i64], data_type: DataType, raw_data: Vec<u8>) -> TensorProto {
        let (name, dims, data_type) = (name.into(), dims.into(), data_type as i32);
        TensorProto { name, dims, data_type, raw_data, ..Default::default() }
    }

    fn node(op_type: &str, input: &[&str], output: &str, axis: i64) -> NodeProto {
        NodeProto {
            op_type: op_type.into(),
            input: input.iter().map(|name| (*name).into()).collect(),
            output: vec![output.into()],
            attribute: vec![AttributeProto { name: "axis".into(), i: axis, ..Default::default() }],
            ..Default::default()
        }
    }

    fn graph(axis: i64) -> GraphProto {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        GraphProto {
            node: vec![
                node("DequantizeLinear", &["w", "s", "z"], "reals", axis),
                node("Mul", &["x", "reals"], "y", 0),
            ],
            initializer: vec![
                tensor("w", &[2, 3], DataType::Int8, vec![1, 2, 3, 0xff, 0x80, 127]),
                tensor("s", &[2], DataType::Float, bytes(&[0.5, 2.0])),
                tensor("z", &[2], DataType::Int8, vec![0, 1]),
            ],
            output: vec![ValueInfoProto { name: "y".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn integers_along_an_axis_become_reals() {
        for axis in [0, -2] {
            let mut graph = graph(axis);
            dequantise_weights(&mut graph);
            assert_eq!(graph.node.len(), 1);
            let [reals] = &graph.initializer[..] else { panic!("{:?}", graph.initializer) };
            assert_eq!((reals.name.as_str(), &reals.dims[..]), ("reals", &[2, 3][..]));
            assert_eq!(floats(reals).unwrap(), [0.5, 1.0, 1.5, -4.0, -258.0, 252.0]);
        }
    }

    #[test]
    fn what_does_not_fit_stays() {
        let mut wrong_axis = graph(1);
        let mut beyond = graph(7);
        let mut short = graph(0);
        short.initializer[0].raw_data.pop();
        let mut not_constant = graph(0);
        not_constant.initializer.remove(0);
        let mut other_zero = graph(0);
        other_zero.initializer[2].data_type = DataType::Uint8 as i32;
        let mut huge = graph(0);
        huge.initializer[0].dims = vec![i64::MAX, i64::MAX];
        for graph in [
            &mut wrong_axis,
            &mut beyond,
            &mut short,
            &mut not_constant,
            &mut other_zero,
            &mut huge,
        ] {
            let before = graph.clone();
            dequantise_weights(graph);
            assert_eq!(*graph, before);
        }
    }
}
