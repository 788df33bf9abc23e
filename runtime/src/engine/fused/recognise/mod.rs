//! From tract's typed graph to the list of fused operators.
//!
//! [`import`] reads the graph into few kinds of nodes; each pattern here looks, from the last node of
//! what an exporter writes for one operation upwards, for the chain that makes it, and puts one node
//! in its place; [`super::lower`] makes operators of what is left. A node that nothing recognises
//! stays tract's.

mod activation;
mod attention;
mod fold;
mod graph;
mod image;
mod import;
mod lower;
mod moments;
mod norm;
#[cfg(test)]
mod tests;

use tract_onnx::prelude::*;

use self::graph::{Graph, Id, Op};
use super::list::FusedGraph;

pub(super) use self::lower::whole;

/// What puts a single node in the place of a chain: for the node that makes `Id`, the new operation
/// and its inputs.
type Pattern = fn(&Graph, Id) -> Option<(Op, Vec<Id>)>;

/// In this order: later patterns are made of what earlier ones find.
const PATTERNS: &[Pattern] = &[
    activation::silu,
    activation::clip,
    moments::mean,
    moments::deviation,
    attention::attention,
    norm::group_norm,
    norm::pixel_norm,
    image::space_to_depth,
];

/// The fused operators of `model`, with buffers but without their places.
///
/// # Errors
/// When a shape is not a number, or an operator's constants contradict each other.
pub(super) fn recognise(model: &TypedModel) -> TractResult<FusedGraph> {
    let mut graph = import::import(model)?;
    for pattern in PATTERNS {
        apply(&mut graph, *pattern);
    }
    activation::skip_idle(&mut graph);
    fold::push_up(&mut graph);
    activation::share(&mut graph);
    fold::into_weights(&mut graph)?;
    lower::lower(model, graph)
}

fn apply(graph: &mut Graph, pattern: Pattern) {
    for k in 0..graph.nodes.len() {
        if let [output] = graph.nodes[k].outputs[..]
            && let Some((op, inputs)) = pattern(graph, output)
        {
            let node = &mut graph.nodes[k];
            node.op = op;
            node.inputs = inputs;
        }
    }
    graph.sweep();
}
