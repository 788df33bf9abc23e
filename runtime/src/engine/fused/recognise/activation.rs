//! Functions of one value, written as several nodes.

use super::graph::{Graph, Id, Op};
use crate::engine::fused::list::{Activation, Channels};

/// `x * sigmoid(x)`.
pub(super) fn silu(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let node = graph.maker(id).filter(|node| matches!(node.op, Op::Multiply))?;
    let &[a, b] = node.inputs.as_slice() else { return None };
    let sigmoid_of = |id| graph.before(id, |op| matches!(op, Op::Activate(Activation::Sigmoid)));
    let x = match (sigmoid_of(a), sigmoid_of(b)) {
        (_, Some(x)) if x == a => a,
        (Some(x), _) if x == b => b,
        _ => return None,
    };
    Some((Op::Activate(Activation::Silu), vec![x]))
}

/// A lower limit and an upper one.
pub(super) fn clip(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let limits = |op: &Op| match op {
        Op::Activate(Activation::Clip { low, high }) => Some((*low, *high)),
        _ => None,
    };
    let (outer, (low, high)) = graph.made_by(id, limits)?;
    let (inner, (before_low, before_high)) = graph.made_by(*outer.inputs.first()?, limits)?;
    // First the inner limits, then the outer: with crossed limits the outer one decides.
    let clamp = |value: f32| value.max(low).min(high);
    let clip = Activation::Clip { low: clamp(before_low), high: clamp(before_high) };
    Some((Op::Activate(clip), inner.inputs.clone()))
}

/// Readers of a value times 1 or plus 0 read the value itself.
pub(super) fn skip_idle(graph: &mut Graph) {
    let idle =
        |op: &Op| matches!(op, Op::Scale(Channels::One(1.0)) | Op::Offset(Channels::One(0.0)));
    for k in 0..graph.nodes.len() {
        if let (true, &[input], &[output]) =
            (idle(&graph.nodes[k].op), &graph.nodes[k].inputs[..], &graph.nodes[k].outputs[..])
        {
            graph.nodes[k].op = Op::Rename;
            graph.redirect(output, input);
        }
    }
    graph.sweep();
}

/// The same function of the same value is computed once.
pub(super) fn share(graph: &mut Graph) {
    for k in 0..graph.nodes.len() {
        let node = &graph.nodes[k];
        let (&[input], &[output]) = (&node.inputs[..], &node.outputs[..]) else { continue };
        let twin = graph.nodes[..k].iter().find(|other| {
            other.inputs == [input]
                && match (&node.op, &other.op) {
                    (Op::Activate(a), Op::Activate(b)) => a == b,
                    (Op::Scale(a), Op::Scale(b)) | (Op::Offset(a), Op::Offset(b)) => a == b,
                    _ => false,
                }
        });
        if let Some(&[first]) = twin.map(|twin| &twin.outputs[..]) {
            graph.redirect(output, first);
        }
    }
    graph.sweep();
}
