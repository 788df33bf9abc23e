//! Inverted residuals in strips of rows: expansion, depthwise convolution and projection of a few
//! rows at a time, so that the wide maps between them stay in the cache and are never whole.

use std::ops::Range;

use diffbulk_kernels as kernels;
use kernels::{Activation, Conv2d, Epilogue, Source};

use super::arena::{Arena, Place};
use super::program::Out;
use super::run;
use crate::engine::fused::{BufferId, Core, FusedGraph, FusedOp, Step};

/// Bytes of intermediate rows that a strip may take: what leaves room for weights in a second-level
/// cache of half a megabyte or more.
const STRIP_BYTES: usize = 384 << 10;

/// Bytes of intermediate maps below which they fit in the cache whole.
const WORTH_BYTES: usize = 768 << 10;

/// Operators `start..end` of a list, run strip by strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Rows of the last operator's output in a strip.
    pub(super) rows: usize,
}

/// The chains in `graph`, in order.
pub(super) fn chains(graph: &FusedGraph) -> Vec<Chain> {
    let mut found = vec![];
    let mut at = 0;
    while at < graph.ops.len() {
        let chain = [3, 2].into_iter().find_map(|len| chain(graph, at, len));
        at = match chain {
            Some(chain) => {
                found.push(chain);
                chain.end
            }
            None => at + 1,
        };
    }
    found
}

fn chain(graph: &FusedGraph, start: usize, len: usize) -> Option<Chain> {
    let ops = graph.ops.get(start..start + len)?;
    let (depthwise, project) = (&ops[len - 2], &ops[len - 1]);
    let (Core::Conv(tall), Core::Conv(_)) = (&depthwise.core, &project.core) else { return None };
    let fits = tall.groups > 1
        && tall.dilation == [1, 1]
        && is_pointwise(project)
        && ops[..len - 2].iter().all(is_pointwise)
        && ops.windows(2).all(|pair| is_only_for(graph, &pair[0], &pair[1]));
    if !fits {
        return None;
    }
    let source = graph.buffers[depthwise.inputs[0].buffer].layout.dims();
    let out = graph.buffers[only_store(depthwise)?].layout.dims();
    let whole =
        |[height, width, channels]: [usize; 3]| height * width * channels * size_of::<f32>();
    let wide = if len == 3 { whole(source) } else { 0 };
    if wide + whole(out) < WORTH_BYTES {
        return None;
    }
    let bytes = |rows: usize| {
        let window = (rows - 1) * tall.stride[0] + tall.kernel[0];
        let window = if len == 3 { whole([window, source[1], source[2]]) } else { 0 };
        window + whole([rows, out[1], out[2]])
    };
    let rows = (1..out[0])
        .rev()
        .find(|&rows| out[0].is_multiple_of(rows) && bytes(rows) <= STRIP_BYTES)?;
    // A strip shorter than the kernel would mostly copy.
    (rows * tall.stride[0] >= tall.kernel[0] - 1).then_some(Chain { start, end: start + len, rows })
}

/// A 1x1 convolution of one map, each pixel for itself.
fn is_pointwise(op: &FusedOp) -> bool {
    matches!(&op.core, Core::Conv(conv)
        if conv.groups == 1 && conv.kernel == [1, 1] && conv.stride == [1, 1]
            && conv.padding == Default::default())
        && matches!(op.inputs[..], [input] if input.upsample == 1)
}

/// The single buffer that `op` writes.
fn only_store(op: &FusedOp) -> Option<BufferId> {
    let mut writes = op.writes();
    let first = writes.next();
    first.filter(|_| writes.next().is_none())
}

/// True when all that `maker` makes is one map that `reader` alone reads, with nothing added to it on
/// the way.
fn is_only_for(graph: &FusedGraph, maker: &FusedOp, reader: &FusedOp) -> bool {
    let Some(map) = only_store(maker) else { return false };
    let plain = maker.steps.iter().all(|step| {
        matches!(step, Step::Offset(_) | Step::Store(_))
            || super::legalise::activation(step).is_some()
    });
    let readers = graph.ops.iter().filter(|op| op.reads().any(|read| read == map)).count();
    plain
        && readers == 1
        && !graph.outputs.contains(&map)
        && matches!(reader.inputs[..], [input] if input.buffer == map)
        && reader.reads().filter(|&read| read == map).count() == 1
}

/// A chain that is ready to run.
pub(super) struct Strips {
    pub(super) source: Place,
    /// Makes the depthwise convolution's input; else it reads the source.
    pub(super) expand: Option<(Conv2d, Activation)>,
    /// One for each kind of strip: at the top, in the middle, at the bottom.
    pub(super) depthwise: Vec<Conv2d>,
    pub(super) depthwise_activation: Activation,
    pub(super) strips: Vec<Strip>,
    /// Of one strip.
    pub(super) project: Conv2d,
    pub(super) out: Out,
    /// Floats in a row of the depthwise convolution's input.
    pub(super) row: usize,
    /// Floats of scratch for input rows, for depthwise results, and for kernels.
    pub(super) scratch: [usize; 3],
}

/// Where a strip's input lies.
#[derive(Debug, Clone)]
pub(super) struct Strip {
    /// Which of [`Strips::depthwise`].
    pub(super) kind: usize,
    /// Rows of the depthwise convolution's input.
    pub(super) rows: Range<usize>,
}

/// Computes strips `parts`.
///
/// # Safety
/// As [`run::run`].
pub(super) unsafe fn run(chain: &Strips, arena: &Arena, scratch: &mut [f32], parts: Range<usize>) {
    let [rows_len, wide_len, _] = chain.scratch;
    let (window, rest) = scratch.split_at_mut(rows_len);
    let (wide, scratch) = rest.split_at_mut(wide_len);
    // SAFETY: by the caller's promise; only the last operator writes to the arena.
    let source: &[f32] = unsafe { arena.read(chain.source) };
    let mut have: Range<usize> = 0..0;
    for part in parts {
        let strip = &chain.strips[part];
        let rows = match &chain.expand {
            None => &source[strip.rows.start * chain.row..strip.rows.end * chain.row],
            Some((expand, activation)) => {
                // Rows that the strip before made already.
                let kept_len = have.end.saturating_sub(strip.rows.start);
                if kept_len > 0 {
                    let first = strip.rows.start - have.start;
                    window.copy_within(first * chain.row..(first + kept_len) * chain.row, 0);
                }
                let new = strip.rows.start + kept_len..strip.rows.end;
                let dst = &mut window[kept_len * chain.row..strip.rows.len() * chain.row];
                let mut epilogue = Epilogue::activation(*activation);
                expand.run(&[Source::new(source)], &mut epilogue, dst, scratch, new);
                have = strip.rows.clone();
                &window[..strip.rows.len() * chain.row]
            }
        };
        let depthwise = &chain.depthwise[strip.kind];
        let wide = &mut wide[..depthwise.spec().out_len()];
        let height = depthwise.spec().out_height();
        let mut epilogue = Epilogue::activation(chain.depthwise_activation);
        depthwise.run(&[Source::new(rows)], &mut epilogue, wide, scratch, 0..height);
        // SAFETY: by the caller's promise; strips are different rows.
        let (dst, mut epilogue) =
            unsafe { run::epilogue(&chain.out, arena, &(part * height..(part + 1) * height)) };
        chain.project.run(&[Source::new(wide)], &mut epilogue, dst, scratch, 0..height);
    }
}
