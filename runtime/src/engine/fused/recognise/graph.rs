//! The graph between tract's and the list: few kinds of nodes, every shape known, constants folded
//! into the nodes that use them.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::engine::fused::list::{Activation, Attention, Channels, Conv, Dense, Layout, Pool};

/// Index into [`Graph::values`].
pub(super) type Id = usize;

/// What flows along an edge.
#[derive(Debug, Clone)]
pub(super) struct Value {
    /// Name of the graph node that makes it.
    pub(super) name: String,
    pub(super) element: DatumType,
    /// Dimensions in the graph's own axis order.
    pub(super) dims: Vec<usize>,
    /// How its elements lie in memory.
    pub(super) layout: Layout,
    /// Its elements, where they are constant.
    pub(super) constant: Option<Arc<Tensor>>,
}

/// One operation.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) op: Op,
    /// What it reads, constants left out that `op` holds.
    pub(super) inputs: Vec<Id>,
    pub(super) outputs: Vec<Id>,
    /// The tract node it was read from, for what stays unrecognised.
    pub(super) origin: usize,
}

/// Kinds of operations.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Activate(Activation),
    Scale(Channels),
    Offset(Channels),
    Add,
    Subtract,
    Multiply,
    Conv(Conv),
    Dense(Dense),
    Pool(Pool),
    Upsample(usize),
    /// Concatenation along channels.
    Concat,
    /// uint8 to float.
    Pixels,
    /// Change of layout.
    Layout,
    // Not executed as they are: what patterns are made of.
    Sum(Vec<usize>),
    MeanOfSquares(Vec<usize>),
    /// Other dimensions, the same elements in row-major order.
    Reshape,
    /// Other dimensions, the same memory.
    Rename,
    Transpose(Vec<usize>),
    Slice {
        axis: usize,
        start: usize,
        end: usize,
    },
    Softmax(Vec<usize>),
    /// Axis letters of two inputs and the output.
    EinSum([String; 3]),
    /// One channel of ones after the others.
    Ones,
    // Recognised patterns.
    SpaceToDepth(usize),
    Norm {
        epsilon: f32,
    },
    GroupNorm {
        groups: usize,
        epsilon: f32,
    },
    Mean,
    Deviation,
    Attention(Attention),
    /// tract's own.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) values: Vec<Value>,
    /// In an order in which every value is made before it is read.
    pub(super) nodes: Vec<Node>,
    pub(super) inputs: Vec<Id>,
    pub(super) outputs: Vec<Id>,
    /// Which value each outlet of tract's graph is.
    pub(super) outlets: HashMap<OutletId, Id>,
    /// Node that makes each value.
    makers: Vec<Option<usize>>,
}

/// The layout that values of these dimensions are kept in.
pub(super) fn layout_of(dims: &[usize]) -> Layout {
    match dims {
        [1, channels, height, width] => {
            Layout::Map { height: *height, width: *width, channels: *channels }
        }
        _ => {
            let len: usize = dims.iter().product();
            if dims.iter().all(|&n| n == 1 || n == len) && dims.len() < 4 {
                Layout::vector(len)
            } else {
                Layout::Plain(dims.to_vec())
            }
        }
    }
}

/// True when the elements lie in row-major order of the graph's own axes.
pub(super) fn is_row_major(layout: &Layout) -> bool {
    match layout {
        Layout::Plain(_) => true,
        Layout::Map { height, width, channels } => *channels == 1 || height * width == 1,
    }
}

impl Graph {
    pub(super) fn value(&mut self, value: Value) -> Id {
        self.values.push(value);
        self.values.len() - 1
    }

    /// A value like `id`, for a node that is put before or after another.
    pub(super) fn value_like(&mut self, id: Id, name: String) -> Id {
        let value = Value { name, constant: None, ..self.values[id].clone() };
        self.value(value)
    }

    pub(super) fn dims(&self, id: Id) -> &[usize] {
        &self.values[id].dims
    }

    /// Number of channels of a map.
    pub(super) fn channels(&self, id: Id) -> usize {
        self.values[id].layout.dims()[2]
    }

    pub(super) fn constant(&self, id: Id) -> Option<&Arc<Tensor>> {
        self.values[id].constant.as_ref()
    }

    /// Notes anew which node makes which value; due after nodes were changed.
    pub(super) fn index(&mut self) {
        self.makers = vec![None; self.values.len()];
        for (k, node) in self.nodes.iter().enumerate() {
            for &output in &node.outputs {
                self.makers[output] = Some(k);
            }
        }
    }

    pub(super) fn maker(&self, id: Id) -> Option<&Node> {
        self.makers.get(id).copied().flatten().map(|k| &self.nodes[k])
    }

    /// The node that makes `id`, if `accept` finds in it what is looked for.
    pub(super) fn made_by<T>(
        &self,
        id: Id,
        accept: impl Fn(&Op) -> Option<T>,
    ) -> Option<(&Node, T)> {
        let node = self.maker(id)?;
        accept(&node.op).map(|found| (node, found))
    }

    /// The single input of the node that makes `id`, if `accept` says that it is the kind wanted.
    pub(super) fn before(&self, id: Id, accept: impl Fn(&Op) -> bool) -> Option<Id> {
        let node = self.maker(id)?;
        match node.inputs.as_slice() {
            [input] if accept(&node.op) => Some(*input),
            _ => None,
        }
    }

    /// Goes up through reshapes, which change the dimensions and nothing else.
    pub(super) fn through_reshapes(&self, mut id: Id) -> Id {
        while let Some(input) = self.before(id, |op| matches!(op, Op::Reshape)) {
            id = input;
        }
        id
    }

    /// Lets every node that reads `from` read `to`, which is made before it.
    pub(super) fn redirect(&mut self, from: Id, to: Id) {
        for input in self.nodes.iter_mut().flat_map(|node| &mut node.inputs) {
            if *input == from {
                *input = to;
            }
        }
    }

    /// How often each value is read, outputs of the graph included.
    pub(super) fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        for &id in self.nodes.iter().flat_map(|node| &node.inputs).chain(&self.outputs) {
            uses[id] += 1;
        }
        uses
    }

    /// Drops nodes whose values nobody reads.
    pub(super) fn sweep(&mut self) {
        let mut uses = self.uses();
        let mut keep = vec![true; self.nodes.len()];
        for (k, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().all(|&output| uses[output] == 0) {
                keep[k] = false;
                for &input in &node.inputs {
                    uses[input] -= 1;
                }
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(true));
        self.index();
    }
}
