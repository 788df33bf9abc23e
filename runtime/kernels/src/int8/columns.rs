//! Depthwise convolutions on x86-64, a column of the window at a time: the bytes of four rows are woven together, so that
//! one instruction multiplies and sums four taps of a channel, and a column serves all outputs whose windows it is in.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{pack, x86::pairs};
use crate::{ConvSpec, Isa};

/// Channels computed together.
const BLOCK: usize = 32;

/// Rows woven together.
const ROWS: usize = 4;

/// Vectors of a block: each holds [`ROWS`] bytes of eight channels.
const VECTORS: usize = 4;

/// Weights and biases in the order of the woven channels.
#[derive(Debug)]
pub(super) struct Columns {
    /// `[block][kernel column][group of rows][plane][vector][BLOCK]`; the weights are the sum of the planes.
    weights: Vec<i8>,
    /// `[block][vector][8]`.
    bias: Vec<i32>,
    /// Zero points, a block more than there are channels.
    zeros: Vec<u8>,
    planes: usize,
}

/// Where results go, `[pixels, channels]`.
pub(super) enum To<'a> {
    Sums(&'a mut [i32]),
    /// `round(sum * factor) + zero_point`, saturated; factors in the order of the channels.
    Bytes {
        to: &'a mut [u8],
        factors: &'a [f32],
        zero_point: u8,
    },
}

/// The channel of vector `vector`'s lane `lane` in its block: what weaving bytes and then words of 128-bit halves gives.
fn channel(vector: usize, lane: usize) -> usize {
    lane / 4 * 16 + vector * 4 + lane % 4
}

impl Columns {
    /// Whether there is a kernel for the shape on `isa`.
    pub(super) fn fits(isa: Isa, spec: &ConvSpec) -> bool {
        matches!(isa, Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni)
            && spec.depthwise
            && matches!(spec.kernel, [3, 3] | [5, 5])
            && matches!(spec.stride, [1, 1] | [2, 2])
            && spec.dilation == [1, 1]
    }

    /// Packs weights `[channels, 1, kernel height, kernel width]` and what is added to every sum, `[channels]`.
    pub(super) fn new(isa: Isa, spec: &ConvSpec, zero: u8, weights: &[i8], bias: &[i32]) -> Self {
        let [height, width] = spec.kernel;
        let (channels, groups) = (spec.out_channels, height.div_ceil(ROWS));
        let blocks = channels.div_ceil(BLOCK);
        let dot = matches!(isa, Isa::AvxVnni | Isa::Avx512Vnni);
        let planes = if dot { 1 } else { pack::planes(weights) };
        let mut packed = Vec::with_capacity(blocks * width * groups * planes * VECTORS * BLOCK);
        let mut biases = Vec::with_capacity(blocks * BLOCK);
        for first in (0..channels).step_by(BLOCK) {
            for column in 0..width {
                for group in 0..groups {
                    for plane in 0..planes {
                        for byte in 0..VECTORS * BLOCK {
                            let (vector, rest) = (byte / BLOCK, byte % BLOCK);
                            let channel = first + channel(vector, rest / ROWS);
                            let row = group * ROWS + rest % ROWS;
                            let inside = channel < channels && row < height;
                            let weight = if inside {
                                weights[(channel * height + row) * width + column]
                            } else {
                                0
                            };
                            packed.push(pack::part(weight, plane, planes));
                        }
                    }
                }
            }
            for place in 0..BLOCK {
                let channel = first + channel(place / 8, place % 8);
                biases.push(bias.get(channel).copied().unwrap_or(0));
            }
        }
        let zeros = vec![zero; channels + BLOCK];
        Self { weights: packed, bias: biases, zeros, planes }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weights.len() + self.bias.len() * size_of::<i32>() + self.zeros.len()
    }

    /// Computes pixels `xs` of output row `y` of the map `source`.
    ///
    /// # Panics
    /// A slice that does not fit the shape, or a shape or instruction set that [`Columns::fits`] refuses.
    pub(super) fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        source: &[u8],
        y: usize,
        xs: Range<usize>,
        to: To,
    ) {
        let values = xs.len() * spec.out_channels;
        assert!(isa.is_available() && Self::fits(isa, spec), "depthwise kernel");
        assert_eq!(source.len(), spec.height * spec.width * spec.out_channels, "source map");
        assert!(y < spec.out_height() && xs.end <= spec.out_width(), "pixels {xs:?} of row {y}");
        let groups = spec.kernel[0].div_ceil(ROWS);
        let blocks = spec.out_channels.div_ceil(BLOCK);
        let packed = blocks * spec.kernel[1] * groups * self.planes * VECTORS * BLOCK;
        assert_eq!(self.weights.len(), packed, "depthwise weights");
        match &to {
            To::Sums(to) => assert_eq!(to.len(), values, "sums"),
            To::Bytes { to, factors, .. } => {
                assert_eq!(to.len(), values, "bytes");
                assert_eq!(factors.len(), spec.out_channels, "factors");
            }
        }
        let call = Call { columns: self, spec, source, y };
        // SAFETY: the instruction set is present; source, weights and destination are of the shape.
        unsafe {
            match (isa, self.planes) {
                (Isa::Avx512Vnni, _) => vnni512(&call, xs, to),
                (Isa::AvxVnni, _) => vnni256(&call, xs, to),
                (_, 1) => maddubs(&call, xs, to),
                _ => maddubs_halves(&call, xs, to),
            }
        }
    }
}

struct Call<'a> {
    columns: &'a Columns,
    spec: &'a ConvSpec,
    source: &'a [u8],
    y: usize,
}

/// One row of a window: its first byte, and how far apart its pixels are. Rows of padding are one pixel of zero points.
#[derive(Clone, Copy)]
struct Line {
    first: *const u8,
    pixel: usize,
}

impl Call<'_> {
    fn lines<const K: usize>(&self) -> [Line; K] {
        let s = self.spec;
        std::array::from_fn(|row| {
            let y = (self.y * s.stride[0] + row).wrapping_sub(s.padding[0]);
            if y < s.height {
                let row = &self.source[y * s.width * s.out_channels..];
                Line { first: row.as_ptr(), pixel: s.out_channels }
            } else {
                Line { first: self.columns.zeros.as_ptr(), pixel: 0 }
            }
        })
    }
}

/// `count` bytes, and zeros.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const u8, count: usize) -> __m256i {
    // SAFETY: the caller's promise: `count` bytes can be read.
    unsafe {
        match count {
            BLOCK => _mm256_loadu_si256(from.cast()),
            16 => _mm256_zextsi128_si256(_mm_loadu_si128(from.cast())),
            _ => {
                let mut bytes = [0u8; BLOCK];
                bytes.as_mut_ptr().copy_from_nonoverlapping(from, count);
                _mm256_loadu_si256(bytes.as_ptr().cast())
            }
        }
    }
}

/// Four rows of bytes as [`VECTORS`] of four bytes a channel.
#[inline]
#[target_feature(enable = "avx2")]
fn weave(rows: [__m256i; ROWS]) -> [__m256i; VECTORS] {
    let pairs = |a, b| (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
    let (top, bottom) = (pairs(rows[0], rows[1]), pairs(rows[2], rows[3]));
    [
        _mm256_unpacklo_epi16(top.0, bottom.0),
        _mm256_unpackhi_epi16(top.0, bottom.0),
        _mm256_unpacklo_epi16(top.1, bottom.1),
        _mm256_unpackhi_epi16(top.1, bottom.1),
    ]
}

/// Sums as bytes in the order of the channels; `factors` in the order of the sums.
#[inline]
#[target_feature(enable = "avx2")]
fn round(sums: [__m256i; VECTORS], factors: &[__m256; VECTORS], zero_point: u8) -> __m256i {
    let zero = _mm256_set1_epi16(i16::from(zero_point));
    // What does not fit an integer becomes the least one, which is right for NaN and on this side wrong for large reals.
    let high = _mm256_set1_ps(65536.0);
    let whole = |v: usize| {
        let real = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), factors[v]);
        _mm256_cvtps_epi32(_mm256_min_ps(high, real))
    };
    let half = |v: usize| _mm256_adds_epi16(_mm256_packs_epi32(whole(v), whole(v + 1)), zero);
    _mm256_packus_epi16(half(0), half(2))
}

/// Sums in the order of the channels, of which the first `count` are written.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn write_sums(sums: [__m256i; VECTORS], to: *mut i32, count: usize) {
    for (v, sums) in sums.into_iter().enumerate() {
        let mut lanes = [0i32; 8];
        // SAFETY: an array of eight numbers; the caller's promise: `count` sums can be written.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
            for (lane, sum) in lanes.into_iter().enumerate() {
                if channel(v, lane) < count {
                    to.add(channel(v, lane)).write(sum);
                }
            }
        }
    }
}

/// Writes the first `count` bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn write_bytes(bytes: __m256i, to: *mut u8, count: usize) {
    // SAFETY: the caller's promise: `count` bytes can be written; an array of all.
    unsafe {
        match count {
            BLOCK => _mm256_storeu_si256(to.cast(), bytes),
            16 => _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes)),
            _ => {
                let mut all = [0u8; BLOCK];
                _mm256_storeu_si256(all.as_mut_ptr().cast(), bytes);
                to.copy_from_nonoverlapping(all.as_ptr(), count);
            }
        }
    }
}

/// The kernels of one instruction set with `$dot(sum, bytes, weights)`.
macro_rules! kernels {
    ($name:ident, $blocks:ident, $block:ident, $features:literal, $dot:ident, $planes:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(call: &Call, xs: Range<usize>, to: To) {
            // Windows that a column is in are of as many outputs at a time.
            // SAFETY: the caller's promise.
            unsafe {
                match (call.spec.kernel[0], call.spec.stride[0]) {
                    (3, 1) => $blocks::<3, 1, 3>(call, xs, to),
                    (3, _) => $blocks::<3, 2, 2>(call, xs, to),
                    (_, 1) => $blocks::<5, 1, 5>(call, xs, to),
                    _ => $blocks::<5, 2, 3>(call, xs, to),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $blocks<const K: usize, const STRIDE: usize, const OPEN: usize>(
            call: &Call,
            xs: Range<usize>,
            mut to: To,
        ) {
            let channels = call.spec.out_channels;
            let lines = call.lines::<K>();
            for first in (0..channels).step_by(BLOCK) {
                let count = BLOCK.min(channels - first);
                let xs = xs.clone();
                // SAFETY: the caller's promise; the destination has `xs.len()` pixels of all channels.
                unsafe {
                    match &mut to {
                        To::Sums(to) => {
                            let to = to.as_mut_ptr().add(first);
                            let finish =
                                |x: usize, sums| write_sums(sums, to.add(x * channels), count);
                            $block::<K, STRIDE, OPEN>(call, &lines, first, count, xs, finish);
                        }
                        To::Bytes { to, factors, zero_point } => {
                            let to = to.as_mut_ptr().add(first);
                            let factors = woven_factors(&factors[first..first + count]);
                            let finish = |x: usize, sums| {
                                let bytes = round(sums, &factors, *zero_point);
                                write_bytes(bytes, to.add(x * channels), count);
                            };
                            if count == BLOCK {
                                $block::<K, STRIDE, OPEN>(call, &lines, first, BLOCK, xs, finish);
                            } else {
                                $block::<K, STRIDE, OPEN>(call, &lines, first, count, xs, finish);
                            }
                        }
                    }
                }
            }
        }

        /// Computes channels `first..first + count` of pixels `xs`; `finish(pixel, sums)` takes what was summed.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $block<const K: usize, const STRIDE: usize, const OPEN: usize>(
            call: &Call,
            lines: &[Line; K],
            first: usize,
            count: usize,
            xs: Range<usize>,
            finish: impl Fn(usize, [__m256i; VECTORS]),
        ) {
            let groups = K.div_ceil(ROWS);
            let (width, left) = (call.spec.width, call.spec.padding[1]);
            // SAFETY: weights and biases are of all blocks; a line has `width` pixels of all channels, or is a block
            // longer than one.
            unsafe {
                let at = first / BLOCK * K * groups * $planes * VECTORS * BLOCK;
                let weights = call.columns.weights.as_ptr().add(at);
                let bias: [__m256i; VECTORS] = std::array::from_fn(|v| {
                    _mm256_loadu_si256(call.columns.bias.as_ptr().add(first + v * 8).cast())
                });
                let outside = [call.columns.zeros.as_ptr(); K];
                // `open[i]` is the sum of the output whose window began `i` outputs ago.
                let mut open = [bias; OPEN];
                let columns = xs.start * STRIDE..(xs.end - 1) * STRIDE + K;
                let mut started = 0;
                for column in columns.step_by(STRIDE) {
                    // Columns of a step, each of its own phase.
                    for phase in 0..STRIDE {
                        let at = (column + phase).wrapping_sub(left);
                        let mut from = outside;
                        if at < width {
                            for (from, line) in from.iter_mut().zip(lines) {
                                *from = line.first.add(at * line.pixel);
                            }
                        }
                        for group in 0..groups {
                            let mut rows = [_mm256_setzero_si256(); ROWS];
                            for (row, to) in rows.iter_mut().enumerate() {
                                if group * ROWS + row < K {
                                    *to = load(from[group * ROWS + row].add(first), count);
                                }
                            }
                            let woven = weave(rows);
                            for i in 0..OPEN {
                                let across = i * STRIDE + phase;
                                if across >= K {
                                    continue;
                                }
                                for plane in 0..$planes {
                                    let at = (across * groups + group) * $planes + plane;
                                    let weights = weights.add(at * VECTORS * BLOCK);
                                    for v in 0..VECTORS {
                                        let w = _mm256_loadu_si256(weights.add(v * BLOCK).cast());
                                        open[i][v] = $dot(open[i][v], woven[v], w);
                                    }
                                }
                            }
                        }
                        if (OPEN - 1) * STRIDE + phase == K - 1 {
                            // The first windows began before the first column.
                            if started >= OPEN - 1 {
                                finish(started - (OPEN - 1), open[OPEN - 1]);
                            }
                        }
                    }
                    for i in (1..OPEN).rev() {
                        open[i] = open[i - 1];
                    }
                    open[0] = bias;
                    started += 1;
                }
            }
        }
    };
}

/// Factors of a block in the order of its sums.
#[inline]
#[target_feature(enable = "avx2")]
fn woven_factors(factors: &[f32]) -> [__m256; VECTORS] {
    let mut all = [0.0f32; BLOCK];
    let factors = if factors.len() == BLOCK {
        factors
    } else {
        all[..factors.len()].copy_from_slice(factors);
        &all
    };
    std::array::from_fn(|v| {
        // SAFETY: both halves lie within the block.
        unsafe {
            let half = |h: usize| _mm_loadu_ps(factors.as_ptr().add(h * 16 + v * 4));
            _mm256_set_m128(half(1), half(0))
        }
    })
}

kernels!(
    vnni512,
    blocks_vnni512,
    block_vnni512,
    "avx512f,avx512bw,avx512vl,avx512vnni",
    _mm256_dpbusd_epi32,
    1
);
kernels!(vnni256, blocks_vnni256, block_vnni256, "avx2,avxvnni", _mm256_dpbusd_avx_epi32, 1);
kernels!(maddubs, blocks_maddubs, block_maddubs, "avx2", pairs, 1);
kernels!(maddubs_halves, blocks_maddubs_halves, block_maddubs_halves, "avx2", pairs, 2);
