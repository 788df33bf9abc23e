//! Which maps are kept as bytes: those whose values lie on a grid anyway, and those that only integer
//! convolutions of one grid read.

use std::collections::HashMap;

use tract_onnx::prelude::Datum;

use crate::engine::fused::{
    Activation, BufferId, BufferSpec, Core, FusedGraph, FusedOp, Grid, Input, Step,
};

/// Grids of the maps that are kept as bytes.
pub(super) type Grids = HashMap<BufferId, Grid>;

/// Finds those maps, and gives every integer convolution bytes of its own grid to read: where a map is something
/// else as well, a copy.
pub(super) fn keep(graph: &mut FusedGraph) -> Grids {
    let mut grids = Grids::new();
    for id in 0..graph.buffers.len() {
        if !graph.inputs.contains(&id)
            && !graph.outputs.contains(&id)
            && let Some(grid) = grid(graph, id)
        {
            grids.insert(id, grid);
        }
    }
    let mut copies: HashMap<BufferId, Vec<(Grid, BufferId)>> = HashMap::new();
    for mut op in std::mem::take(&mut graph.ops) {
        if let Core::IntegerConv(conv) = &op.core {
            let wanted = conv.input;
            for input in &mut op.inputs {
                let id = input.buffer;
                if grids.get(&id) == Some(&wanted) {
                    continue;
                }
                let known = copies.entry(id).or_default();
                if let Some((_, copy)) = known.iter().find(|(grid, _)| *grid == wanted) {
                    input.buffer = *copy;
                    continue;
                }
                let copy = graph.buffers.len();
                graph.buffers.push(BufferSpec { offset: 0, ..graph.buffers[id].clone() });
                graph.ops.push(FusedOp {
                    name: op.name.clone(),
                    core: Core::Map,
                    inputs: vec![Input { buffer: id, upsample: 1 }],
                    steps: vec![Step::Store(copy)],
                    outputs: vec![],
                });
                grids.insert(copy, wanted);
                known.push((wanted, copy));
                input.buffer = copy;
            }
        }
        graph.ops.push(op);
    }
    for &id in grids.keys() {
        graph.buffers[id].element = u8::datum_type();
    }
    grids
}

/// The grid of the bytes that map `id` can be kept as.
fn grid(graph: &FusedGraph, id: BufferId) -> Option<Grid> {
    // What integer convolutions want, if nothing else reads it.
    let mut wanted = Common::Nothing;
    let mut as_it_is = false;
    for op in &graph.ops {
        let is_input = op.inputs.iter().any(|input| input.buffer == id);
        match &op.core {
            Core::IntegerConv(conv) if is_input => wanted.meet(Some(conv.input)),
            Core::Map
            | Core::Pool(_)
            | Core::Attention(_)
            | Core::GroupNorm { .. }
            | Core::Moments { .. }
                if is_input =>
            {
                as_it_is = true;
            }
            _ if is_input => return None,
            _ => {}
        }
        as_it_is |= op.steps.iter().any(|step| match step {
            Step::Add { input, .. } | Step::Multiply(input) => input.buffer == id,
            _ => false,
        });
        if op.outputs.contains(&id) {
            return None;
        }
    }
    let mut stored = Common::Nothing;
    for op in &graph.ops {
        let mut now = None;
        for step in &op.steps {
            match step {
                Step::Activate(Activation::Snap(grid)) => now = Some(*grid),
                Step::Store(to) if *to == id => stored.meet(now),
                Step::Store(_) => {}
                _ => now = None,
            }
        }
    }
    match (stored, wanted) {
        (Common::Nothing, _) => None,
        (_, Common::Grid(grid)) if !as_it_is => Some(grid),
        (Common::Grid(grid), _) => Some(grid),
        _ => None,
    }
}

/// What several have in common.
#[derive(Clone, Copy)]
enum Common {
    Nothing,
    Grid(Grid),
    Various,
}

impl Common {
    fn meet(&mut self, grid: Option<Grid>) {
        *self = match (*self, grid) {
            (Self::Nothing, Some(grid)) => Self::Grid(grid),
            (Self::Grid(known), Some(grid)) if known == grid => Self::Grid(grid),
            _ => Self::Various,
        };
    }
}
