//! Where every buffer lies: one arena, planned once.

use super::list::{ALIGNMENT, FusedGraph};

/// Gives every buffer an offset such that no two that are alive at the same time overlap, and sets
/// the arena's size. A buffer lives from the operator that first writes it to the last that reads
/// it; inputs from the start, outputs to the end.
pub fn plan(graph: &mut FusedGraph) {
    let lives = lifetimes(graph);
    // Largest first, each at the lowest place that is free for all its life.
    let mut order: Vec<usize> = (0..graph.buffers.len()).collect();
    order.sort_by_key(|&id| (std::cmp::Reverse(graph.buffers[id].bytes()), id));
    let mut placed: Vec<usize> = vec![];
    graph.arena_bytes = 0;
    for id in order {
        let size = graph.buffers[id].bytes().next_multiple_of(ALIGNMENT);
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&other| {
                let (a, b) = (&lives[id], &lives[other]);
                a.0 <= b.1 && b.0 <= a.1
            })
            .map(|&other| {
                let buffer = &graph.buffers[other];
                (buffer.offset, buffer.offset + buffer.bytes().next_multiple_of(ALIGNMENT))
            })
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + size <= start {
                break;
            }
            offset = offset.max(end);
        }
        graph.buffers[id].offset = offset;
        graph.arena_bytes = graph.arena_bytes.max(offset + size);
        placed.push(id);
    }
}

/// First and last operator during which each buffer is alive.
fn lifetimes(graph: &FusedGraph) -> Vec<(usize, usize)> {
    let mut lives = vec![(usize::MAX, 0); graph.buffers.len()];
    for (k, op) in graph.ops.iter().enumerate() {
        for id in op.reads().chain(op.writes()) {
            lives[id].0 = lives[id].0.min(k);
            lives[id].1 = lives[id].1.max(k);
        }
    }
    for &id in &graph.inputs {
        lives[id].0 = 0;
    }
    for &id in &graph.outputs {
        lives[id] = (lives[id].0.min(graph.ops.len()), graph.ops.len());
    }
    lives
}
