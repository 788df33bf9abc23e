//! Convolution as a matrix product whose left side is read where it lies.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::ops::Range;

use super::{
    ConvSpec,
    taps::{Group, Taps},
};
use crate::{
    Isa,
    aligned::Aligned,
    finish::{Finish, FinishPixels, FinishTile},
    matrix::{self, MOST_COLUMNS, MOST_ROWS, Panel, Strip, group_start, groups},
    simd::{self, Kernel, Simd},
};

/// Pixels whose pointers are prepared together; each panel of weights serves all of them while it is in cache.
const CHUNK: usize = 6 * MOST_ROWS;

#[derive(Debug)]
pub(super) struct GemmConv {
    panels: Vec<Panel>,
    lanes: usize,
    weights: Aligned,
    bias: Aligned,
    zeros: Aligned,
    taps: Taps,
}

impl GemmConv {
    pub(super) fn new(isa: Isa, spec: &ConvSpec, weights: &[f32], bias: &[f32]) -> Self {
        let lanes = simd::block(isa).0;
        let panels = matrix::layout_for(isa, spec.out_channels);
        let ([kh, kw], channels) = (spec.kernel, spec.in_channels());
        let k = kh * kw * channels;
        let mut packed = Aligned::zeroed(matrix::packed_len(&panels, lanes, k));
        let weight = |k: usize, n: usize| {
            let (tap, c) = (k / channels, k % channels);
            weights[(n * channels + c) * kh * kw + tap]
        };
        matrix::pack(&panels, lanes, k, weight, packed.as_mut_slice());
        Self {
            bias: matrix::pad_bias(&panels, lanes, bias),
            panels,
            lanes,
            weights: packed,
            zeros: Aligned::zeroed(spec.sources.iter().map(|s| s.channels).max().unwrap_or(0)),
            taps: Taps::new(spec, true),
        }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len() + self.zeros.len()) * size_of::<f32>()
    }

    pub(super) fn scratch_len(&self, spec: &ConvSpec) -> usize {
        let pointers = CHUNK * spec.kernel[0] * spec.kernel[1] * spec.sources.len();
        (pointers * size_of::<*const f32>()).div_ceil(size_of::<f32>())
    }

    /// # Safety
    /// `sources` are the spec's whole maps, `finish` covers `rows`, `scratch` begins on a cache line and has
    /// [`scratch_len`](Self::scratch_len) floats.
    pub(super) unsafe fn run(
        &self,
        isa: Isa,
        spec: &ConvSpec,
        sources: [*const f32; 2],
        finish: Finish,
        scratch: &mut [f32],
        rows: Range<usize>,
    ) {
        simd::dispatch(
            isa,
            Run { conv: self, spec, sources, finish, table: scratch.as_mut_ptr().cast(), rows },
        );
    }
}

struct Run<'a> {
    conv: &'a GemmConv,
    spec: &'a ConvSpec,
    sources: [*const f32; 2],
    finish: Finish,
    table: *mut *const f32,
    rows: Range<usize>,
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (s, conv, n) = (self.spec, self.conv, self.spec.out_channels);
        debug_assert_eq!(conv.lanes, S::LANES);
        let width = s.out_width();
        let origin = self.rows.start * width;
        let taps = s.kernel[0] * s.kernel[1] * s.sources.len();
        let k = s.kernel[0] * s.kernel[1] * s.in_channels();
        let clip = self.finish.only_clip();
        let maps = (self.sources, conv.zeros.as_ptr());
        let mut tile = [0.0f32; MOST_ROWS * MOST_COLUMNS];
        for chunk in matrix::parts(origin..self.rows.end * width, CHUNK / MOST_ROWS * S::ROWS) {
            let count = groups(chunk.len(), S::ROWS);
            let mut list = [Group::default(); CHUNK / MOST_ROWS];
            for (i, group) in list.iter_mut().enumerate().take(count) {
                let from = group_start(chunk.len(), count, i);
                let rows = group_start(chunk.len(), count, i + 1) - from;
                *group =
                    conv.taps.point(s, maps, (chunk.start + from, rows), (self.table, from * taps));
            }
            let mut weights = conv.weights.as_ptr();
            for panel in &conv.panels {
                let columns = panel.columns * S::LANES;
                let direct = clip.is_some() && panel.channels == columns;
                for (i, group) in list.iter().enumerate().take(count) {
                    let first = chunk.start + group_start(chunk.len(), count, i) - origin;
                    let offset = first * n + panel.start;
                    Strip {
                        rows: group.rows,
                        columns: panel.columns,
                        a: self.table.add(group.table),
                        row_stride: group.rows,
                        k: conv.taps.lengths(group),
                        segments: group.segments,
                        b: weights,
                        bias: conv.bias.as_ptr().add(panel.start),
                        clip: if direct { clip } else { None },
                        out: if direct { self.finish.dst.add(offset) } else { tile.as_mut_ptr() },
                        out_stride: if direct { n } else { columns },
                    }
                    .compute::<S>();
                    if !direct {
                        S::call(FinishTile {
                            finish: &self.finish,
                            tile: tile.as_ptr(),
                            rows: group.rows,
                            stride: columns,
                            channels: panel.channels,
                            offset,
                            pixel_stride: n,
                        });
                    }
                }
                weights = weights.add(columns * k);
            }
            if self.finish.needs_pixels() {
                S::call(FinishPixels(&self.finish, chunk.start - origin..chunk.end - origin));
            }
        }
    }
}
