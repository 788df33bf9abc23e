//! Where buffers lie in the arena.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::ensure;

use super::arena::Place;
use super::residual;
use crate::engine::fused::{BufferId, BufferSpec, Core, FusedGraph, FusedOp, Input, Layout, plan};

/// Gives buffers their places. A block that starts at one of `blocks` runs as one operator, and what
/// flows inside it needs none.
///
/// # Errors
/// When an operator's results would overlap what it uses besides, which running relies on.
pub(super) fn place_buffers(graph: &mut FusedGraph, blocks: &[usize]) -> TractResult<()> {
    let mut outline = FusedGraph { ops: vec![], ..graph.clone() };
    let mut at = 0;
    while at < graph.ops.len() {
        if !blocks.contains(&at) {
            outline.ops.push(graph.ops[at].clone());
            at += 1;
            continue;
        }
        let links = &graph.ops[at..at + residual::LINKS];
        at += residual::LINKS;
        let last = &links[residual::LINKS - 1];
        let inner: Vec<BufferId> =
            links[..residual::LINKS - 1].iter().flat_map(FusedOp::writes).collect();
        let reads = links.iter().flat_map(FusedOp::reads).filter(|read| !inner.contains(read));
        outline.ops.push(FusedOp {
            name: last.name.clone(),
            core: Core::Map,
            inputs: reads.map(|buffer| Input { buffer, upsample: 1 }).collect(),
            steps: vec![],
            outputs: last.writes().collect(),
        });
        for id in inner {
            outline.buffers[id].layout = Layout::vector(0);
        }
    }
    plan(&mut outline);
    for op in &outline.ops {
        disjoint(op, &outline.buffers)?;
    }
    for (buffer, placed) in graph.buffers.iter_mut().zip(&outline.buffers) {
        buffer.offset = placed.offset;
    }
    graph.arena_bytes = outline.arena_bytes;
    Ok(())
}

fn disjoint(op: &FusedOp, buffers: &[BufferSpec]) -> TractResult<()> {
    let bytes = |id: BufferId| buffers[id].offset..buffers[id].offset + buffers[id].bytes();
    let writes: Vec<BufferId> = op.writes().collect();
    for (k, &write) in writes.iter().enumerate() {
        for other in op.reads().chain(writes[k + 1..].iter().copied()) {
            let (a, b) = (bytes(write), bytes(other));
            ensure!(
                a.end <= b.start || b.end <= a.start,
                "{} writes over buffer b{other} that it uses",
                op.name
            );
        }
    }
    Ok(())
}

/// The place of a buffer.
pub(super) fn place(buffer: &BufferSpec) -> Place {
    Place { offset: buffer.offset, len: buffer.layout.len() }
}
