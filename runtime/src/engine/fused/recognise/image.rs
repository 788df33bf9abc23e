//! How the image enters the networks.

use super::graph::{Graph, Id, Op};

/// ONNX SpaceToDepth, which tract writes as reshape, transpose, reshape: blocks of pixels become
/// channels in the order row in block, column in block, channel.
pub(super) fn space_to_depth(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    let mut inner = graph.before(id, |op| matches!(op, Op::Reshape))?;
    let mut order: Vec<usize> = (0..6).collect();
    while let Some((node, moved)) = graph.made_by(inner, |op| match op {
        Op::Transpose(moved) if moved.len() == 6 => Some(moved.clone()),
        _ => None,
    }) {
        order = order.iter().map(|&axis| moved[axis]).collect();
        inner = *node.inputs.first()?;
    }
    let x = graph.before(inner, |op| matches!(op, Op::Reshape))?;
    let (&[1, channels, height, width], &[1, _, rows, block, columns, other]) =
        (graph.dims(x), graph.dims(inner))
    else {
        return None;
    };
    let fits = order == [0, 3, 5, 1, 2, 4]
        && block == other
        && (rows * block, columns * block) == (height, width)
        && graph.dims(id) == [1, channels * block * block, rows, columns];
    fits.then(|| (Op::SpaceToDepth(block), vec![x]))
}
