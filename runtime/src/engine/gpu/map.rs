//! Where maps lie on the device: pixels of whole elements of four channels, in one arena a tile.

use tract_onnx::prelude::{Datum, DatumType};

use super::{Lowered, refuse};
use crate::engine::fused::{BufferSpec, FusedGraph, Layout, plan};

/// Elements, words or bytes beyond which a shader's 32-bit numbers would not reach.
const MOST: usize = 1 << 30;

/// A buffer on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Map {
    /// First element of four channels, counted from the tile's first.
    pub(super) offset: usize,
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

/// Gives all maps of `graph` their places in a tile's arena; the maps and the elements of the arena.
/// The image itself, bytes, has a buffer of its own.
///
/// # Errors
/// When there is a buffer of another type, or one too large.
pub(super) fn place(graph: &FusedGraph, half: bool) -> Lowered<(Vec<Map>, usize)> {
    let element = if half { DatumType::F16 } else { f32::datum_type() };
    let bytes = 4 * element.size_of();
    let mut outline = graph.clone();
    for (id, buffer) in outline.buffers.iter_mut().enumerate() {
        let [height, width, channels] = dims(buffer);
        let size = height.checked_mul(width).and_then(|n| n.checked_mul(round_up(channels, 4)));
        if size.is_none_or(|size| size == 0 || size >= MOST) {
            return refuse(format!(
                "`{}` of {:?} is empty or too large",
                buffer.name, buffer.layout
            ));
        }
        let image = graph.inputs.contains(&id);
        if !image && buffer.element != f32::datum_type() {
            return refuse(format!("`{}` holds {:?}", buffer.name, buffer.element));
        }
        buffer.element = element;
        let channels = if image { 4 } else { round_up(channels, 4) };
        let (height, width) = if image { (1, 1) } else { (height, width) };
        buffer.layout = Layout::Map { height, width, channels };
    }
    plan(&mut outline);
    if outline.arena_bytes >= MOST {
        return refuse(format!("its maps need {} MiB for one tile", outline.arena_bytes >> 20));
    }
    let maps = graph.buffers.iter().zip(&outline.buffers).map(|(buffer, placed)| {
        let [height, width, channels] = dims(buffer);
        Map { offset: placed.offset / bytes, height, width, channels }
    });
    Ok((maps.collect(), outline.arena_bytes.div_ceil(bytes)))
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
