//! Mean and standard deviation of each channel over all pixels.

use super::graph::{Graph, Id, Op};
use crate::engine::fused::list::{Activation, Channels};

/// A sum over `axes` divided by the number of its terms, as one value per remaining index: gives what
/// is averaged, its axes, and whether its squares are.
pub(super) fn mean_over(graph: &Graph, id: Id) -> Option<(Id, Vec<usize>, bool)> {
    if let Some((node, axes)) = graph.made_by(id, |op| match op {
        Op::MeanOfSquares(axes) => Some(axes.clone()),
        _ => None,
    }) {
        return Some((*node.inputs.first()?, axes, true));
    }
    let (node, factor) = graph.made_by(id, |op| match op {
        Op::Scale(Channels::One(factor)) => Some(*factor),
        _ => None,
    })?;
    let (node, axes) = graph.made_by(*node.inputs.first()?, |op| match op {
        Op::Sum(axes) => Some(axes.clone()),
        _ => None,
    })?;
    let summed = *node.inputs.first()?;
    let terms: usize = axes.iter().map(|&axis| graph.dims(summed)[axis]).product();
    if (factor * terms as f32 - 1.0).abs() > 1e-5 {
        return None;
    }
    match square_of(graph, summed) {
        Some(x) => Some((x, axes, true)),
        None => Some((summed, axes, false)),
    }
}

/// What `id` is the square of.
pub(super) fn square_of(graph: &Graph, id: Id) -> Option<Id> {
    if let Some(x) = graph.before(id, |op| matches!(op, Op::Activate(Activation::Square))) {
        return Some(x);
    }
    let node = graph.maker(id).filter(|node| matches!(node.op, Op::Multiply))?;
    match node.inputs.as_slice() {
        &[a, b] if a == b => Some(a),
        _ => None,
    }
}

/// Mean over rows and columns.
pub(super) fn mean(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let (x, axes, squared) = mean_over(graph, id)?;
    let over_pixels = axes == [2, 3] && graph.dims(x).len() == 4 && graph.dims(x)[0] == 1;
    (over_pixels && !squared).then(|| (Op::Mean, vec![x]))
}

/// The root of the mean squared distance from the mean.
pub(super) fn deviation(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let root = graph.before(id, |op| matches!(op, Op::Activate(Activation::Sqrt)))?;
    let variance = graph.through_reshapes(root);
    let (distance, axes, squared) = mean_over(graph, variance)?;
    let node = graph.maker(distance).filter(|node| matches!(node.op, Op::Subtract))?;
    let &[x, centre] = node.inputs.as_slice() else { return None };
    let of_x = graph.before(centre, |op| matches!(op, Op::Mean))? == x;
    (of_x && squared && axes == [2, 3]).then(|| (Op::Deviation, vec![x]))
}
