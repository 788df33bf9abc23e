//! Inverted residual blocks: expansion, depthwise convolution and projection, which one kernel runs
//! in bands of rows so that the wide maps between them are never whole.

use diffbulk_kernels::InvertedResidualSpec;

use super::legalise;
use crate::engine::fused::{BufferId, Conv, Core, FusedGraph, FusedOp, Padding, Step};

/// Operators in a block.
pub(super) const LINKS: usize = 3;

/// The first operators of all blocks in `graph` for which bands pay.
pub(super) fn blocks(graph: &FusedGraph) -> Vec<usize> {
    let mut found = vec![];
    let mut at = 0;
    while at < graph.ops.len() {
        let is_block = graph.ops.get(at..at + LINKS).is_some_and(|ops| is_block(graph, ops));
        if is_block {
            found.push(at);
        }
        at += if is_block { LINKS } else { 1 };
    }
    found
}

fn is_block(graph: &FusedGraph, ops: &[FusedOp]) -> bool {
    let [Core::Conv(expand), Core::Conv(depthwise), Core::Conv(project)] =
        [&ops[0].core, &ops[1].core, &ops[2].core]
    else {
        return false;
    };
    is_pointwise(&ops[0], expand)
        && is_pointwise(&ops[2], project)
        && depthwise.groups > 1
        && depthwise.dilation == [1, 1]
        && is_only_for(graph, &ops[0], &ops[1])
        && is_only_for(graph, &ops[1], &ops[2])
        && adds_no_enlarged_map(&ops[2])
        && spec(graph, &ops[1], [expand, depthwise, project]).pays()
}

/// The block's shape; `middle` is the depthwise operator.
pub(super) fn spec(
    graph: &FusedGraph,
    middle: &FusedOp,
    [expand, depthwise, project]: [&Conv; LINKS],
) -> InvertedResidualSpec {
    let [height, width, _] = graph.buffers[middle.inputs[0].buffer].layout.dims();
    let Padding { top, bottom, left, right } = depthwise.padding;
    InvertedResidualSpec {
        height,
        width,
        in_channels: expand.channels,
        expanded_channels: expand.outputs,
        out_channels: project.outputs,
        kernel: depthwise.kernel,
        stride: depthwise.stride,
        padding: [top, left, bottom, right],
    }
}

/// A 1x1 convolution of one map, each pixel for itself.
fn is_pointwise(op: &FusedOp, conv: &Conv) -> bool {
    conv.groups == 1
        && conv.kernel == [1, 1]
        && conv.stride == [1, 1]
        && conv.padding == Padding::default()
        && matches!(op.inputs[..], [input] if input.upsample == 1)
}

/// The block's kernel adds only maps of its own size.
fn adds_no_enlarged_map(op: &FusedOp) -> bool {
    op.steps.iter().all(|step| !matches!(step, Step::Add { input, .. } if input.upsample != 1))
}

/// True when all that `maker` makes is one map that `reader` alone reads, with no more than a bias and
/// an activation on the way.
fn is_only_for(graph: &FusedGraph, maker: &FusedOp, reader: &FusedOp) -> bool {
    let writes: Vec<BufferId> = maker.writes().collect();
    let [map] = writes[..] else { return false };
    let plain = maker.steps.iter().all(|step| {
        matches!(step, Step::Offset(_) | Step::Store(_)) || legalise::activation(step).is_some()
    });
    let reads = graph.ops.iter().flat_map(FusedOp::reads).filter(|&read| read == map).count();
    plain
        && reads == 1
        && !graph.outputs.contains(&map)
        && matches!(reader.inputs[..], [input] if input.buffer == map)
}
