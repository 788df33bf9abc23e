//! Moves functions of single values to where there are fewest values, and factors into weights.

use std::sync::Arc;

use tract_onnx::prelude::*;

use super::graph::{Graph, Id, Node, Op};
use crate::engine::fused::list::{Channels, Weights};

/// `f(concat(a, b))` is `concat(f(a), f(b))`, and `f(upsample(a))` is `upsample(f(a))`: what makes a
/// and b can then do it on the way.
pub(super) fn push_up(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    for node in nodes {
        push(graph, node);
    }
    graph.index();
    graph.sweep();
}

fn is_pointwise(op: &Op) -> bool {
    matches!(op, Op::Activate(_) | Op::Scale(_) | Op::Offset(_))
}

/// Appends `node`, or what it becomes.
fn push(graph: &mut Graph, node: Node) {
    graph.index();
    let above = match node.inputs.as_slice() {
        &[input] if is_pointwise(&node.op) => graph.maker(input).cloned(),
        _ => None,
    };
    let Some(above) = above else { return graph.nodes.push(node) };
    let map = graph.values[node.outputs[0]].layout.dims()[..2] != [1, 1];
    match above.op {
        Op::Upsample(_) => {
            let inner = graph.value_like(above.inputs[0], node.name.clone());
            push(
                graph,
                Node { inputs: above.inputs.clone(), outputs: vec![inner], ..node.clone() },
            );
            graph.nodes.push(Node { op: above.op, inputs: vec![inner], ..node });
        }
        Op::Concat if map => {
            let mut first = 0;
            let mut parts = vec![];
            for &part in &above.inputs {
                let count = graph.channels(part);
                let inner = graph.value_like(part, node.name.clone());
                let op = of_channels(&node.op, first, count);
                push(graph, Node { op, inputs: vec![part], outputs: vec![inner], ..node.clone() });
                parts.push(inner);
                first += count;
            }
            graph.nodes.push(Node { op: Op::Concat, inputs: parts, ..node });
        }
        _ => graph.nodes.push(node),
    }
}

/// The operation on `count` channels from `first` on.
fn of_channels(op: &Op, first: usize, count: usize) -> Op {
    let part = |channels: &Channels| match channels {
        Channels::One(value) => Channels::One(*value),
        Channels::Each(values) => {
            let part = &values[first..first + count];
            match part.split_first() {
                Some((one, rest)) if rest.iter().all(|v| v == one) => Channels::One(*one),
                _ => Channels::Each(part.into()),
            }
        }
    };
    match op {
        Op::Scale(channels) => Op::Scale(part(channels)),
        Op::Offset(channels) => Op::Offset(part(channels)),
        other => other.clone(),
    }
}

/// Concatenated inputs of convolutions and matrix products are read one by one, and factors on a
/// convolution's input move into its weights (exact up to rounding, padding included).
pub(super) fn into_weights(graph: &mut Graph) -> TractResult<()> {
    for k in 0..graph.nodes.len() {
        let parts = match &graph.nodes[k].op {
            Op::Conv(conv) if conv.groups == 1 => parts(graph, graph.nodes[k].inputs[0]),
            Op::Dense(_) => parts(graph, graph.nodes[k].inputs[0]),
            _ => continue,
        };
        let mut inputs = parts.clone();
        if let Op::Conv(conv) = &graph.nodes[k].op {
            let mut factors = vec![];
            for part in &mut inputs {
                let count = graph.channels(*part);
                match graph.made_by(*part, |op| match op {
                    Op::Scale(factor) => Some(factor.to_vec(count)),
                    _ => None,
                }) {
                    Some((node, factor)) => {
                        *part = node.inputs[0];
                        factors.extend(factor);
                    }
                    None => factors.extend(vec![1.0; count]),
                }
            }
            if inputs != parts {
                let mut conv = conv.clone();
                let taps = conv.kernel[0] * conv.kernel[1];
                let mut values = conv.weights.values().to_vec();
                for (at, value) in values.iter_mut().enumerate() {
                    *value *= factors[at / taps % conv.channels];
                }
                let tensor = Tensor::from_shape(conv.weights.shape(), &values)?;
                conv.weights = Weights::new(Arc::new(tensor))?;
                graph.nodes[k].op = Op::Conv(conv);
            }
        }
        graph.nodes[k].inputs = inputs;
    }
    graph.sweep();
    Ok(())
}

/// What `id` is a concatenation of, itself if it is none.
fn parts(graph: &Graph, id: Id) -> Vec<Id> {
    match graph.maker(id) {
        Some(node) if matches!(node.op, Op::Concat) => {
            node.inputs.iter().flat_map(|&input| parts(graph, input)).collect()
        }
        _ => vec![id],
    }
}
