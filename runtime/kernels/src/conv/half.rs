//! Convolution in half precision: weights are kept in 16 bits, the rows of the maps that a call reads are rounded to 16
//! bits once, and products are summed in 16 bits over at most [`RUN`] channels, then in 32.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::{arch::aarch64::*, ops::Range};

use super::{
    ConvSpec,
    taps::{Group, Taps},
};
use crate::{
    Isa,
    aligned::Aligned,
    finish::{Finish, FinishPixels, FinishTile},
    matrix::{group_start, groups},
    simd,
};

/// Pixels and output channels of a register block: 8 half-precision and 16 single-precision sums.
const ROWS: usize = 4;
const COLUMNS: usize = 16;

/// Channels summed in 16 bits before the sum is added to one of 32.
const RUN: usize = 32;

/// Pixels whose pointers are prepared together.
const CHUNK: usize = 12 * ROWS;

/// A map's pointers and zeros beyond every source's channels, in 16 bits.
type Maps = ([*const u16; 2], *const u16);

#[derive(Debug)]
pub(super) struct HalfConv {
    /// `[panel of 16 output channels][tap, channel][16]`.
    weights: Vec<u16>,
    bias: Aligned,
    zeros: Vec<u16>,
    taps: Taps,
}

impl HalfConv {
    /// `isa` has half-precision arithmetic.
    pub(super) fn new(isa: Isa, spec: &ConvSpec, weights: &[f32], bias: &[f32]) -> Self {
        let ([kh, kw], channels) = (spec.kernel, spec.in_channels());
        let k = kh * kw * channels;
        let panels = spec.out_channels.div_ceil(COLUMNS);
        let mut single = vec![0.0f32; panels * k * COLUMNS];
        for n in 0..spec.out_channels {
            for i in 0..k {
                let (tap, c) = (i / channels, i % channels);
                single[(n / COLUMNS * k + i) * COLUMNS + n % COLUMNS] =
                    weights[(n * channels + c) * kh * kw + tap];
            }
        }
        let mut half = vec![0; single.len()];
        round(isa, &single, &mut half);
        let mut padded = Aligned::zeroed(panels * COLUMNS);
        padded.as_mut_slice()[..bias.len()].copy_from_slice(bias);
        let most = spec.sources.iter().map(|s| s.channels).max().unwrap_or(0);
        // One segment a tap and source, the same for every pixel: merged ones would round elsewhere.
        Self { weights: half, bias: padded, zeros: vec![0; most], taps: Taps::new(spec, false) }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.zeros.len()) * size_of::<u16>()
            + self.bias.len() * size_of::<f32>()
    }

    /// Pointers a chunk takes, in floats, then the maps in 16 bits.
    fn table_len(spec: &ConvSpec) -> usize {
        let pointers = CHUNK * spec.kernel[0] * spec.kernel[1] * spec.sources.len();
        (pointers * size_of::<*const u16>() / size_of::<f32>()).next_multiple_of(16)
    }

    pub(super) fn scratch_len(spec: &ConvSpec) -> usize {
        Self::table_len(spec)
            + spec.sources.iter().map(|s| spec.source_len(s).div_ceil(2)).sum::<usize>()
    }

    /// # Safety
    /// `sources` are the spec's whole maps, `finish` covers `rows`, `scratch` begins on a cache line and has
    /// [`scratch_len`](Self::scratch_len) floats, and the machine has half-precision arithmetic.
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        sources: [*const f32; 2],
        finish: Finish,
        scratch: &mut [f32],
        rows: Range<usize>,
    ) {
        let table: *mut *const u16 = scratch.as_mut_ptr().cast();
        let mut copy: *mut u16 = scratch.as_mut_ptr().add(Self::table_len(spec)).cast();
        let mut maps = [std::ptr::null(); 2];
        for ((source, from), map) in spec.sources.iter().zip(sources).zip(&mut maps) {
            let row = spec.source_row_len(source);
            let touched = spec.source_rows(source, rows.clone());
            let (at, len) = (touched.start * row, touched.len() * row);
            let part = std::slice::from_raw_parts_mut(copy.add(at), len);
            round(isa, std::slice::from_raw_parts(from.add(at), len), part);
            *map = copy.cast_const();
            copy = copy.add(spec.source_len(source).next_multiple_of(2));
        }
        self.multiply(isa, spec, (maps, self.zeros.as_ptr()), finish, table, rows);
    }

    #[target_feature(enable = "neon,fp16")]
    unsafe fn multiply(
        &self,
        isa: Isa,
        s: &ConvSpec,
        maps: Maps,
        finish: Finish,
        table: *mut *const u16,
        rows: Range<usize>,
    ) {
        let (width, n) = (s.out_width(), s.out_channels);
        let origin = rows.start * width;
        let taps = s.kernel[0] * s.kernel[1] * s.sources.len();
        let k = s.kernel[0] * s.kernel[1] * s.in_channels();
        let mut tile = [0.0f32; ROWS * COLUMNS];
        for chunk in crate::matrix::parts(origin..rows.end * width, CHUNK) {
            let count = groups(chunk.len(), ROWS);
            let mut list = [Group::default(); CHUNK / ROWS];
            for (i, group) in list.iter_mut().enumerate().take(count) {
                let from = group_start(chunk.len(), count, i);
                let rows = group_start(chunk.len(), count, i + 1) - from;
                *group = self.taps.point(s, maps, (chunk.start + from, rows), (table, from * taps));
            }
            for panel in 0..n.div_ceil(COLUMNS) {
                for (i, group) in list.iter().enumerate().take(count) {
                    self.block(
                        panel * k,
                        group,
                        table,
                        self.bias.as_ptr().add(panel * COLUMNS),
                        &mut tile,
                    );
                    let first = chunk.start + group_start(chunk.len(), count, i) - origin;
                    let finish_tile = FinishTile {
                        finish: &finish,
                        tile: tile.as_ptr(),
                        rows: group.rows,
                        stride: COLUMNS,
                        channels: COLUMNS.min(n - panel * COLUMNS),
                        offset: first * n + panel * COLUMNS,
                        pixel_stride: n,
                    };
                    simd::dispatch(isa, finish_tile);
                }
            }
            if finish.needs_pixels() {
                simd::dispatch(
                    isa,
                    FinishPixels(&finish, chunk.start - origin..chunk.end - origin),
                );
            }
        }
    }

    /// Sums of a group of pixels by one panel of weights, which begins at row `weights`.
    #[target_feature(enable = "neon,fp16")]
    unsafe fn block(
        &self,
        weights: usize,
        group: &Group,
        table: *const *const u16,
        bias: *const f32,
        tile: &mut [f32; ROWS * COLUMNS],
    ) {
        let bias: [float32x4_t; 4] = std::array::from_fn(|i| vld1q_f32(bias.add(4 * i)));
        let mut sums = [bias; ROWS];
        let mut b = self.weights.as_ptr().add(weights * COLUMNS);
        for segment in 0..group.segments {
            let length = *self.taps.lengths(group).add(segment);
            let pointers = table.add(group.table + segment * group.rows);
            // A group of fewer pixels repeats its last.
            let a: [*const u16; ROWS] =
                std::array::from_fn(|r| *pointers.add(r.min(group.rows - 1)));
            for start in (0..length).step_by(RUN) {
                let zero = vreinterpretq_f16_u16(vdupq_n_u16(0));
                let mut half = [[zero; 2]; ROWS];
                for i in start..length.min(start + RUN) {
                    let w0 = vreinterpretq_f16_u16(vld1q_u16(b));
                    let w1 = vreinterpretq_f16_u16(vld1q_u16(b.add(8)));
                    b = b.add(COLUMNS);
                    for (half, a) in half.iter_mut().zip(a) {
                        let v = vreinterpretq_f16_u16(vld1q_dup_u16(a.add(i)));
                        half[0] = vfmaq_f16(half[0], v, w0);
                        half[1] = vfmaq_f16(half[1], v, w1);
                    }
                }
                for (sums, half) in sums.iter_mut().zip(half) {
                    for (i, v) in half.into_iter().enumerate() {
                        sums[2 * i] = vaddq_f32(sums[2 * i], vcvt_f32_f16(vget_low_f16(v)));
                        sums[2 * i + 1] =
                            vaddq_f32(sums[2 * i + 1], vcvt_f32_f16(vget_high_f16(v)));
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (i, v) in sums.iter().enumerate() {
                vst1q_f32(tile.as_mut_ptr().add(r * COLUMNS + 4 * i), *v);
            }
        }
    }
}

/// Rounds to 16 bits, to nearest even; what is too large becomes infinite.
///
/// # Panics
/// `isa` lacks half-precision arithmetic, or the lengths differ.
fn round(isa: Isa, from: &[f32], to: &mut [u16]) {
    assert!(isa == Isa::NeonFp16 && isa.is_available(), "half precision on {isa}");
    assert_eq!(from.len(), to.len());
    #[target_feature(enable = "neon,fp16")]
    unsafe fn run(from: &[f32], to: &mut [u16]) {
        let convert = |from: *const f32, to: *mut u16| {
            vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from))));
        };
        let full = from.len() / 4 * 4;
        for i in (0..full).step_by(4) {
            convert(from.as_ptr().add(i), to.as_mut_ptr().add(i));
        }
        let (mut last, mut half) = ([0.0f32; 4], [0u16; 4]);
        last[..from.len() - full].copy_from_slice(&from[full..]);
        convert(last.as_ptr(), half.as_mut_ptr());
        to[full..].copy_from_slice(&half[..from.len() - full]);
    }
    // SAFETY: the instruction set is there, the slices are equally long.
    unsafe { run(from, to) };
}
