//! Where maps lie on the device: pixels of whole elements of four channels, in one arena a tile for reals
//! and one for bytes.

use tract_onnx::prelude::{Datum, DatumType};

use super::bytes::Grids;
use super::{Lowered, refuse};
use crate::engine::fused::{BufferId, BufferSpec, FusedGraph, Grid, Layout, plan};

/// Elements, words or bytes beyond which a shader's 32-bit numbers would not reach.
const MOST: usize = 1 << 30;

/// A buffer on the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Map {
    /// First element of four channels, counted from the tile's first; a word where it is of bytes.
    pub(super) offset: usize,
    /// What its values are rounded to, where it is of bytes.
    pub(super) grid: Option<Grid>,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
}

/// Size of what an operator makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
}

impl Map {
    /// Elements a pixel.
    pub(super) fn c4(&self) -> usize {
        self.channels.div_ceil(4)
    }

    /// Pixels.
    pub(super) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The size.
    pub(super) fn frame(&self) -> Frame {
        Frame { height: self.height, width: self.width, channels: self.channels }
    }
}

impl Frame {
    pub(super) fn c4(&self) -> usize {
        self.channels.div_ceil(4)
    }

    pub(super) fn pixels(&self) -> usize {
        self.height * self.width
    }
}

/// The smallest multiple of `step` from `n`.
pub(super) fn round_up(n: usize, step: usize) -> usize {
    n.next_multiple_of(step)
}

/// Where everything of a tile lies.
#[derive(Debug)]
pub(super) struct Places {
    /// By buffer.
    pub(super) maps: Vec<Map>,
    /// Elements of reals.
    pub(super) arena: usize,
    /// Words: what operators need for themselves, then bytes.
    pub(super) words: usize,
}

/// Gives all maps of `graph` their places in a tile's arenas; those in `grids` are of bytes, behind `reserved`
/// words. Those in `kept` are not written over. The image itself has a buffer of its own.
///
/// # Errors
/// When there is a buffer of another type, or one too large.
pub(super) fn place(
    graph: &FusedGraph,
    half: bool,
    grids: &Grids,
    reserved: usize,
    kept: &[BufferId],
) -> Lowered<Places> {
    for (id, buffer) in graph.buffers.iter().enumerate() {
        let [height, width, channels] = dims(buffer);
        let size = height.checked_mul(width).and_then(|n| n.checked_mul(round_up(channels, 4)));
        if size.is_none_or(|size| size == 0 || size >= MOST) {
            return refuse(format!(
                "`{}` of {:?} is empty or too large",
                buffer.name, buffer.layout
            ));
        }
        let known = graph.inputs.contains(&id)
            || grids.contains_key(&id)
            || buffer.element == f32::datum_type();
        if !known {
            return refuse(format!("`{}` holds {:?}", buffer.name, buffer.element));
        }
    }
    let element = if half { DatumType::F16 } else { f32::datum_type() };
    let (reals, arena) = arena(graph, element, kept, |id| !grids.contains_key(&id))?;
    let (bytes, words) = self::arena(graph, u8::datum_type(), kept, |id| grids.contains_key(&id))?;
    let maps = graph.buffers.iter().enumerate().map(|(id, buffer)| {
        let [height, width, channels] = dims(buffer);
        let grid = grids.get(&id).copied();
        let offset = if grid.is_some() { reserved + bytes[id] } else { reals[id] };
        Map { offset, grid, height, width, channels }
    });
    Ok(Places { maps: maps.collect(), arena, words: reserved + words })
}

/// Places for the maps that are `wanted`, in groups of four `element`s, and the size of their arena in such
/// groups.
fn arena(
    graph: &FusedGraph,
    element: DatumType,
    kept: &[BufferId],
    wanted: impl Fn(BufferId) -> bool,
) -> Lowered<(Vec<usize>, usize)> {
    let group = 4 * element.size_of();
    let mut outline = graph.clone();
    outline.outputs.extend(kept);
    for (id, buffer) in outline.buffers.iter_mut().enumerate() {
        let [height, width, channels] = dims(&graph.buffers[id]);
        buffer.element = element;
        buffer.layout = match wanted(id) && !graph.inputs.contains(&id) {
            true => Layout::Map { height, width, channels: round_up(channels, 4) },
            false => Layout::vector(0),
        };
    }
    plan(&mut outline);
    if outline.arena_bytes >= MOST {
        return refuse(format!("its maps need {} MiB for one tile", outline.arena_bytes >> 20));
    }
    let offsets = outline.buffers.iter().map(|placed| placed.offset / group).collect();
    Ok((offsets, outline.arena_bytes.div_ceil(group)))
}

/// Height, width and channels; an image as the graph takes it has them too.
pub(super) fn dims(buffer: &BufferSpec) -> [usize; 3] {
    match &buffer.layout {
        Layout::Plain(dims) if buffer.element == u8::datum_type() => match dims[..] {
            [1, height, width, channels] => [height, width, channels],
            _ => buffer.layout.dims(),
        },
        layout => layout.dims(),
    }
}
