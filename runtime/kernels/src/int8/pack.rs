//! How weights and activations lie while they are multiplied.

use crate::{ConvSpec, memory::Block};

/// Output channels of a block of weights.
pub(super) const BLOCK: usize = 16;

/// Input values multiplied by one instruction for each output channel.
pub(super) const DEPTH: usize = 4;

/// Largest weight whose products `maddubs` adds in pairs without saturating: 2 * 255 * 64 < 2^15.
const MADDUBS_LIMIT: i8 = 64;

/// Planes that `maddubs` needs for `weights`, of which they are the sum.
pub(super) fn planes(weights: &[i8]) -> usize {
    let wide = weights.iter().any(|w| w.unsigned_abs() > MADDUBS_LIMIT.unsigned_abs());
    if wide { 2 } else { 1 }
}

/// What of a weight is in a plane.
pub(super) fn part(weight: i8, plane: usize, planes: usize) -> i8 {
    match (planes, plane) {
        (1, _) => weight,
        (_, 0) => weight / 2,
        _ => weight - weight / 2,
    }
}

/// Weights in blocks: `[block][tap group][output in block][DEPTH]`, taps being kernel rows, columns and
/// channels (channels padded to a multiple of [`DEPTH`] with zeros).
#[derive(Debug)]
pub(super) struct Packed {
    data: Block,
    /// One, or two where an instruction set needs halves.
    pub planes: usize,
    /// Groups of [`DEPTH`] taps.
    pub groups: usize,
    /// Blocks of [`BLOCK`] output channels.
    pub blocks: usize,
}

impl Packed {
    /// Packs `[outputs, channels, kernel height, kernel width]`; `halves` asks for small weights.
    pub fn new(spec: &ConvSpec, weights: &[i8], halves: bool) -> Self {
        let channels = spec.in_channels();
        let padded = channels.next_multiple_of(DEPTH);
        let [height, width] = spec.kernel;
        let groups = height * width * padded / DEPTH;
        let blocks = spec.out_channels.div_ceil(BLOCK);
        let planes = if halves { planes(weights) } else { 1 };
        let size = blocks * groups * BLOCK * DEPTH;
        let mut block = Block::zeroed(planes * size);
        let data = block.as_signed_mut();
        for (index, &weight) in weights.iter().enumerate() {
            let (tap, rest) = (index % (height * width), index / (height * width));
            let (channel, output) = (rest % channels, rest / channels);
            let depth = tap * padded + channel;
            let at = (output / BLOCK * groups + depth / DEPTH) * BLOCK * DEPTH
                + output % BLOCK * DEPTH
                + depth % DEPTH;
            for plane in 0..planes {
                data[plane * size + at] = part(weight, plane, planes);
            }
        }
        Self { data: block, planes, groups, blocks }
    }

    /// All planes, one after the other; the weights are their sum.
    pub fn data(&self) -> &[i8] {
        self.data.as_signed()
    }

    /// Bytes of one block of one plane.
    pub fn block_bytes(&self) -> usize {
        self.groups * BLOCK * DEPTH
    }

    /// Bytes of one plane.
    pub fn plane_bytes(&self) -> usize {
        self.blocks * self.block_bytes()
    }
}

/// A window of the source that kernels read: rows of pixels of padded channels, with the padding around.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Bytes of a pixel.
    pub pixel: usize,
    /// Bytes of a row.
    pub row: usize,
}

impl Window {
    /// That of a convolution.
    pub fn of(spec: &ConvSpec) -> Self {
        let pixel = spec.in_channels().next_multiple_of(DEPTH);
        Self { pixel, row: (spec.width + spec.padding[1] + spec.padding[3]) * pixel }
    }

    /// Whether the source itself lies as the kernels want it.
    pub fn is_source(spec: &ConvSpec) -> bool {
        spec.padding == [0; 4] && spec.in_channels().is_multiple_of(DEPTH)
    }

    /// Bytes of the window of `rows` output rows.
    pub fn bytes(self, spec: &ConvSpec, rows: usize) -> usize {
        self.input_rows(spec, rows) * self.row
    }

    fn input_rows(self, spec: &ConvSpec, rows: usize) -> usize {
        (rows.max(1) - 1) * spec.stride[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    }

    /// Copies what output rows `first..first + rows` read of `source` (`[height, width, channels]`) into
    /// `window`, with `zero` around it. `flip` is xored onto every byte.
    #[expect(clippy::too_many_arguments, reason = "the part of one map that a call gathers")]
    pub fn fill(
        self,
        spec: &ConvSpec,
        source: &[u8],
        zero: u8,
        flip: u8,
        first: usize,
        rows: usize,
        window: &mut [u8],
    ) {
        let channels = spec.in_channels();
        let [top, left, ..] = spec.padding;
        let line = spec.width * channels;
        for (index, to) in
            window.chunks_exact_mut(self.row).take(self.input_rows(spec, rows)).enumerate()
        {
            let y = (first * spec.stride[0] + index).wrapping_sub(top);
            if y >= spec.height {
                to.fill(zero ^ flip);
                continue;
            }
            let (before, rest) = to.split_at_mut(left * self.pixel);
            let (middle, after) = rest.split_at_mut(spec.width * self.pixel);
            before.fill(zero ^ flip);
            after.fill(zero ^ flip);
            let from = &source[y * line..(y + 1) * line];
            if channels == self.pixel {
                for (to, from) in middle.iter_mut().zip(from) {
                    *to = from ^ flip;
                }
                continue;
            }
            if let (3, DEPTH) = (channels, self.pixel) {
                // Images: constant sizes make one store a pixel.
                for (to, from) in
                    middle.as_chunks_mut::<DEPTH>().0.iter_mut().zip(from.as_chunks().0)
                {
                    let [r, g, b]: [u8; 3] = *from;
                    *to = [r ^ flip, g ^ flip, b ^ flip, 0];
                }
                continue;
            }
            for (to, from) in middle.chunks_exact_mut(self.pixel).zip(from.chunks_exact(channels)) {
                let (real, padding) = to.split_at_mut(channels);
                for (to, from) in real.iter_mut().zip(from) {
                    *to = from ^ flip;
                }
                padding.fill(0);
            }
        }
    }
}
