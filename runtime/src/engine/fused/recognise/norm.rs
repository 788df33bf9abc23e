//! Normalisations: of a pixel over its channels (EDM2, arXiv:2312.02696, eq. 30 with a guarded
//! division), and of groups of channels over all pixels.

use super::graph::{Graph, Id, Op};
use super::moments::{mean_over, square_of};
use crate::engine::fused::list::{Activation, Channels};

/// `x / (sqrt(mean(x^2 over axis)) + epsilon)`: gives x, the axis and epsilon.
pub(super) fn root_mean_square_norm(graph: &Graph, id: Id) -> Option<(Id, usize, f32)> {
    let node = graph.maker(id).filter(|node| matches!(node.op, Op::Multiply))?;
    let &[a, b] = node.inputs.as_slice() else { return None };
    [(a, b), (b, a)].into_iter().find_map(|(x, inverse)| {
        let guarded =
            graph.before(inverse, |op| matches!(op, Op::Activate(Activation::Reciprocal)))?;
        let (node, epsilon) = graph.made_by(guarded, |op| match op {
            Op::Offset(Channels::One(epsilon)) => Some(*epsilon),
            _ => None,
        })?;
        let root = *node.inputs.first()?;
        let mean = graph.before(root, |op| matches!(op, Op::Activate(Activation::Sqrt)))?;
        let (of, axes, squared) = mean_over(graph, mean)?;
        match axes.as_slice() {
            &[axis] if of == x && squared => Some((x, axis, epsilon)),
            _ => None,
        }
    })
}

/// Over the channels of each pixel.
pub(super) fn pixel_norm(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let (x, axis, epsilon) = root_mean_square_norm(graph, id)?;
    let map = graph.dims(x).len() == 4 && graph.dims(x)[0] == 1;
    (map && axis == 1).then(|| (Op::Norm { epsilon }, vec![x]))
}

/// Each of the groups of channels minus its mean, over its standard deviation, over all pixels: an
/// instance normalisation of the map reshaped to `[1, groups, values]` and back.
pub(super) fn group_norm(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let mut inner = graph.before(id, |op| matches!(op, Op::Reshape))?;
    // Its own factor and offset, which are 1 and 0 where the channels' follow.
    while let Some(before) = graph.before(inner, |op| {
        matches!(op, Op::Scale(Channels::One(1.0)) | Op::Offset(Channels::One(0.0)))
    }) {
        inner = before;
    }
    let node = graph.maker(inner).filter(|node| matches!(node.op, Op::Multiply))?;
    let &[a, b] = node.inputs.as_slice() else { return None };
    let (distance, epsilon) = [(a, b), (b, a)].into_iter().find_map(|(distance, inverse)| {
        let guarded =
            graph.before(inverse, |op| matches!(op, Op::Activate(Activation::ReciprocalSqrt)))?;
        let (node, epsilon) = graph.made_by(guarded, |op| match op {
            Op::Offset(Channels::One(epsilon)) => Some(*epsilon),
            _ => None,
        })?;
        let (of, axes, squared) = mean_over(graph, *node.inputs.first()?)?;
        (of == distance && squared && axes == [2]).then_some((distance, epsilon))
    })?;
    let node = graph.maker(distance).filter(|node| matches!(node.op, Op::Subtract))?;
    let &[grouped, centre] = node.inputs.as_slice() else { return None };
    let (of, axes, squared) = mean_over(graph, centre)?;
    if of != grouped || squared || axes != [2] || square_of(graph, grouped).is_some() {
        return None;
    }
    let x = graph.through_reshapes(grouped);
    let (&[1, groups, _], &[1, channels, _, _]) = (graph.dims(grouped), graph.dims(x)) else {
        return None;
    };
    let fits = groups > 0 && channels % groups == 0 && graph.dims(id) == graph.dims(x);
    fits.then(|| (Op::GroupNorm { groups, epsilon }, vec![x]))
}
