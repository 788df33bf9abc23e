//! A list of fused operators prepared for this machine: weights packed, places fixed. Immutable and
//! shared by all sessions. What an operator is while it waits to run is here; [`super::prepare`] makes
//! it.

use std::sync::Arc;

use diffbulk_kernels as kernels;
use kernels::{Conv2d, InvertedResidual, Isa, PixelNorm};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::TractErrorContext;

use super::arena::Place;
use super::integer;
use super::legalise::legalise;
use super::places::{place, place_buffers};
use super::prepare::Prepare;
use super::residual;
use crate::engine::fused::{BufferId, Channels, FusedGraph, Pool, TractOp};
use crate::process::release_free_memory;

/// A release takes a fraction of a millisecond.
const OPERATORS_BETWEEN_RELEASES: usize = 24;

/// Everything that sessions share.
pub(super) struct Program {
    pub(super) ops: Vec<Op>,
    pub(super) isa: Isa,
    pub(super) arena_bytes: usize,
    /// Floats of scratch that each thread needs.
    pub(super) scratch: usize,
    pub(super) inputs: Vec<Slot>,
    pub(super) outputs: Vec<Slot>,
}

/// A buffer that the caller fills or reads.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) place: Place,
    pub(super) element: DatumType,
}

/// An operator that is ready to run.
pub(super) struct Op {
    pub(super) work: Work,
    /// Number of parts it can be cut into: rows, channels or outputs.
    pub(super) parts: usize,
    /// Cuts waste nothing at multiples of this many parts.
    pub(super) unit: usize,
    /// Run by one thread alone.
    pub(super) alone: bool,
    pub(super) about: About,
}

/// An operator in words.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// Name of its node.
    pub(super) name: String,
    /// Its line in the list.
    pub(super) line: String,
    /// What computes it.
    pub(super) kernel: String,
    /// Multiply-accumulates of the direct form.
    pub(super) macs: u64,
}

/// One kernel call.
pub(super) enum Work {
    Image {
        kernel: kernels::ImageInput,
        image: Place,
        dst: Place,
    },
    Conv {
        kernel: Box<Conv2d>,
        sources: Vec<Place>,
        out: Out,
    },
    /// A convolution with integers; where bytes are not its results, reals go through `out`.
    Integer {
        conv: Box<integer::Ready>,
        out: Option<Out>,
    },
    /// A function of each pixel.
    Pointwise {
        source: Place,
        factors: Option<Vec<f32>>,
        out: Out,
    },
    /// The same, each pixel four times.
    Upsample {
        source: Place,
        dims: [usize; 3],
        factors: Option<Vec<f32>>,
        out: Out,
    },
    MeanPool {
        source: Place,
        dims: [usize; 3],
        out: Out,
    },
    Pool {
        pool: Pool,
        source: Place,
        dims: [usize; 3],
        dst: Place,
        out_dims: [usize; 3],
    },
    Attention {
        kernel: kernels::Attention,
        source: Place,
        dst: Place,
        channels: usize,
        width: usize,
    },
    GroupNorm {
        kernel: kernels::GroupNorm,
        source: Place,
        dst: Option<Place>,
        mean: Option<Place>,
    },
    Moments {
        source: Place,
        channels: usize,
        mean: Option<Place>,
        deviation: Option<Place>,
    },
    Dense {
        kernel: kernels::Dense,
        inputs: Vec<Place>,
        steps: Vec<PlainStep>,
    },
    /// Expansion, depthwise convolution and projection.
    Residual {
        kernel: Box<InvertedResidual>,
        source: Place,
        out: Out,
    },
    Plain(Plain),
    Layout {
        from: Place,
        to: Place,
        dims: [usize; 3],
        into_map: bool,
    },
    Tract {
        op: Arc<TractOp>,
        inputs: Vec<Port>,
        outputs: Vec<Port>,
        state: usize,
    },
}

/// Where a kernel's results go, and what happens to them on the way.
pub(super) struct Out {
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) residual: Option<Added>,
    pub(super) norm: Option<PixelNorm>,
    pub(super) activation: kernels::Activation,
    pub(super) dst: Place,
    pub(super) second: Option<(f32, kernels::Activation, Place)>,
}

/// What is added to a kernel's sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Added {
    pub(super) place: Place,
    pub(super) scale: f32,
    /// A map of half the height and width.
    pub(super) enlarged: bool,
}

/// Steps for the plain interpreter, which knows them all.
pub(super) struct Plain {
    pub(super) inputs: Vec<Window>,
    pub(super) steps: Vec<PlainStep>,
    pub(super) width: usize,
    pub(super) channels: usize,
}

/// A map as a plain operator reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) place: Place,
    pub(super) dims: [usize; 3],
    pub(super) upsample: usize,
}

/// One step of the plain interpreter.
pub(super) enum PlainStep {
    Scale(Channels),
    Offset(Channels),
    Add(Window, f32),
    Multiply(Window),
    Norm(f32),
    Activate(crate::engine::fused::Activation),
    Store(Place),
}

/// A buffer as tract sees it.
pub(super) struct Port {
    pub(super) place: Place,
    pub(super) element: DatumType,
    /// In the graph's own axis order.
    pub(super) shape: Vec<usize>,
    /// Height, width and channels where the buffer is a map in another order than the graph's.
    pub(super) map: Option<[usize; 3]>,
}

impl Program {
    /// Prepares `graph` for instruction set `isa`.
    ///
    /// # Errors
    /// When an operator contradicts itself.
    pub(super) fn new(graph: FusedGraph, isa: Isa) -> TractResult<Self> {
        let mut graph = legalise(graph);
        let readers = integer::keep_bytes(&mut graph);
        let chains = residual::blocks(&graph);
        place_buffers(&mut graph, &chains)?;
        let quantised = graph.is_quantised();
        let ops = std::mem::take(&mut graph.ops);
        let mut prepare = Prepare::new(&graph, readers, isa, quantised);
        // Each operator's weights are let go as soon as they are packed.
        let mut ready = vec![];
        let mut chains = chains.into_iter().peekable();
        let mut ops = ops.into_iter().enumerate();
        while let Some((k, op)) = ops.next() {
            let name = op.name.clone();
            let op = match chains.next_if(|start| *start == k) {
                Some(_) => {
                    let mut links = vec![op];
                    links.extend(ops.by_ref().take(residual::LINKS - 1).map(|(_, op)| op));
                    prepare.block(&links)
                }
                None => prepare.op(op),
            };
            ready.push(op.with_context(|| format!("preparing {name}"))?);
            // What the graph held is needed for what is packed next.
            if ready.len().is_multiple_of(OPERATORS_BETWEEN_RELEASES) {
                release_free_memory();
            }
        }
        let ops = ready;
        let scratch = prepare.scratch;
        let slot = |&id: &BufferId| Slot {
            place: place(&graph.buffers[id]),
            element: graph.buffers[id].element,
        };
        Ok(Self {
            ops,
            isa,
            arena_bytes: graph.arena_bytes,
            scratch,
            inputs: graph.inputs.iter().map(slot).collect(),
            outputs: graph.outputs.iter().map(slot).collect(),
        })
    }

    /// All operators in words, and what they take together.
    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        for (k, op) in self.ops.iter().enumerate() {
            text.push_str(&format!("{k:>3}  {}\n", op.about.line));
        }
        let left = self.tract_ops().count();
        let macs: u64 = self.ops.iter().map(|op| op.about.macs).sum();
        text.push_str(&format!(
            "{} operators, {left} left to tract, {:.1} MMAC, an arena of {} KiB",
            self.ops.len(),
            macs as f64 / 1e6,
            self.arena_bytes.div_ceil(1024)
        ));
        text
    }

    /// tract's plans that a session needs a state for, in the order of [`Work::Tract`]'s numbers.
    pub(super) fn tract_ops(&self) -> impl Iterator<Item = &TractOp> {
        self.ops.iter().filter_map(|op| match &op.work {
            Work::Tract { op, .. } => Some(op.as_ref()),
            _ => None,
        })
    }
}
