//! Weights of a matrix product, packed for the register block.

use std::ops::Range;

use crate::{Isa, aligned::Aligned, simd};

/// A run of output channels that one register block covers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    /// First output channel.
    pub start: usize,
    /// Output channels that exist; the rest of the vectors is 0.
    pub channels: usize,
    /// Vectors.
    pub columns: usize,
}

/// How `n` output channels are cut into panels for `isa`'s register block.
pub(crate) fn layout_for(isa: Isa, n: usize) -> Vec<Panel> {
    let (lanes, _, most) = simd::block(isa);
    layout(lanes, most, n)
}

/// How `n` output channels are cut into panels of at most `most` vectors of `lanes` channels: as few as can be, of
/// nearly equal widths.
pub(crate) fn layout(lanes: usize, most: usize, n: usize) -> Vec<Panel> {
    let vectors = n.div_ceil(lanes);
    let count = vectors.div_ceil(most);
    (0..count)
        .map(|i| {
            let (from, to) = (vectors * i / count, vectors * (i + 1) / count);
            Panel {
                start: from * lanes,
                channels: n.min(to * lanes) - from * lanes,
                columns: to - from,
            }
        })
        .collect()
}

/// Matrix `[k, n]` packed panel by panel: `[panel][k][columns * lanes]`.
pub(crate) fn pack(
    panels: &[Panel],
    lanes: usize,
    k: usize,
    weight: impl Fn(usize, usize) -> f32,
    out: &mut [f32],
) {
    let mut at = 0;
    for panel in panels {
        for k in 0..k {
            for n in 0..panel.channels {
                out[at + n] = weight(k, panel.start + n);
            }
            at += panel.columns * lanes;
        }
    }
}

/// Floats a packed `[k, ..]` matrix takes.
pub(crate) fn packed_len(panels: &[Panel], lanes: usize, k: usize) -> usize {
    panels.iter().map(|p| p.columns * lanes * k).sum()
}

/// Bias padded to whole vectors; a panel's part begins at its first channel.
pub(crate) fn pad_bias(panels: &[Panel], lanes: usize, bias: &[f32]) -> Aligned {
    let end = panels.last().map_or(0, |p| p.start + p.columns * lanes);
    let mut padded = Aligned::zeroed(end);
    padded.as_mut_slice()[..bias.len()].copy_from_slice(bias);
    padded
}

/// A range cut into at most `size` long parts.
pub(crate) fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
}
