//! Fits the list to the shaders: each operator becomes one that a lowering knows, with further
//! operators for what it cannot do on its way.

use tract_onnx::prelude::Datum;

use super::join::join;
use super::map::dims;
use super::shader::Abilities;
use super::{integer, tiling, winograd};
use crate::engine::fused::{
    BufferId, BufferSpec, Core, FusedGraph, FusedOp, Input, IntegerConv, Layout, Step,
};

/// `graph` with operators that can be lowered one by one, for a device of these abilities. Buffers have
/// no places yet.
pub(super) fn legalise(mut graph: FusedGraph, abilities: Abilities) -> FusedGraph {
    join(&mut graph);
    let ops = std::mem::take(&mut graph.ops);
    let mut legal = Legal { graph, name: String::new(), abilities };
    for op in ops {
        legal.name.clone_from(&op.name);
        legal.op(op);
    }
    legal.graph
}

struct Legal {
    graph: FusedGraph,
    /// Of the operator in work.
    name: String,
    abilities: Abilities,
}

impl Legal {
    fn op(&mut self, mut op: FusedOp) {
        let (enlarged, most) = match &op.core {
            Core::Conv(conv) | Core::IntegerConv(IntegerConv { conv, .. }) if conv.groups == 1 => {
                (2, usize::MAX)
            }
            Core::Conv(_) | Core::IntegerConv(_) | Core::Pool(_) => (1, 1),
            Core::Map => return self.graph.ops.push(op),
            _ => (1, usize::MAX),
        };
        for input in &mut op.inputs {
            if !(input.upsample == 1 || input.upsample == enlarged) {
                *input = self.gathered(&[*input]);
            }
        }
        if op.inputs.len() > most {
            op.inputs = vec![self.gathered(&op.inputs)];
        }
        self.split_at_norm(op);
    }

    /// A pixel norm needs all channels of a pixel: an operator of its own.
    fn split_at_norm(&mut self, mut op: FusedOp) {
        let Some(at) = op.steps.iter().position(|step| matches!(step, Step::Norm { .. })) else {
            return self.lowered(op);
        };
        if matches!(op.core, Core::Pool(_))
            || integer::takes_norm(&op, self.abilities)
            || self.takes_norm(&op)
        {
            return self.lowered(op);
        }
        let rest = op.steps.split_off(at);
        let buffer = match op.steps.last() {
            Some(Step::Store(buffer)) => *buffer,
            _ => {
                let stored = rest.iter().find_map(|step| match step {
                    Step::Store(buffer) => Some(*buffer),
                    _ => None,
                });
                let layout =
                    stored.map_or(Layout::vector(0), |id| self.graph.buffers[id].layout.clone());
                let buffer = self.temporary(layout);
                op.steps.push(Step::Store(buffer));
                buffer
            }
        };
        self.lowered(op);
        self.map(&[Input { buffer, upsample: 1 }], rest);
    }

    /// Whether the workgroups of a convolution of reals have all channels of their pixels, of which they
    /// take one norm.
    fn takes_norm(&self, op: &FusedOp) -> bool {
        let Core::Conv(conv) = &op.core else { return false };
        let norms = op.steps.iter().filter(|step| matches!(step, Step::Norm { .. })).count();
        conv.groups == 1
            && norms == 1
            && tiling::takes_norm(self.abilities, conv.outputs.div_ceil(4))
            && self.winograd(op).is_none()
    }

    /// Sizes of the scratch of a convolution that is computed by Winograd's transforms.
    fn winograd(&self, op: &FusedOp) -> Option<[Layout; 2]> {
        let Core::Conv(conv) = &op.core else { return None };
        // Transformed values would lose too much in float16.
        let able = self.abilities.shared && !self.abilities.half;
        able.then(|| winograd::scratch(conv, op, &self.graph.buffers)).flatten()
    }

    /// An operator as it is lowered, with the scratch it needs.
    fn lowered(&mut self, mut op: FusedOp) {
        if let Some(layouts) = self.winograd(&op) {
            op.outputs = layouts.map(|layout| self.temporary(layout)).to_vec();
        }
        self.graph.ops.push(op);
    }

    fn map(&mut self, inputs: &[Input], steps: Vec<Step>) {
        self.graph.ops.push(FusedOp {
            name: self.name.clone(),
            core: Core::Map,
            inputs: inputs.to_vec(),
            steps,
            outputs: vec![],
        });
    }

    /// The inputs, enlarged and concatenated, in a buffer of their own.
    fn gathered(&mut self, inputs: &[Input]) -> Input {
        let (mut size, mut channels) = ([0; 2], 0);
        for input in inputs {
            let [height, width, count] = dims(&self.graph.buffers[input.buffer]);
            size = [height * input.upsample, width * input.upsample];
            channels += count;
        }
        let layout = Layout::Map { height: size[0], width: size[1], channels };
        let buffer = self.temporary(layout);
        self.map(inputs, vec![Step::Store(buffer)]);
        Input { buffer, upsample: 1 }
    }

    fn temporary(&mut self, layout: Layout) -> BufferId {
        self.graph.buffers.push(BufferSpec {
            name: self.name.clone(),
            element: f32::datum_type(),
            layout,
            offset: 0,
        });
        self.graph.buffers.len() - 1
    }
}
