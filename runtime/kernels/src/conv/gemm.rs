//! Convolution as a matrix product whose left side is read where it lies: a table of pointers says where each pixel's
//! taps are, and padding points at zeros.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use std::ops::Range;

use super::ConvSpec;
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
    /// Taps along a kernel row lie one after the other in memory, so a kernel row is one segment where it is inside.
    contiguous: bool,
    /// Segments' lengths: kernel rows first, then taps by source.
    lengths: Vec<usize>,
}

impl GemmConv {
    pub(super) fn new(isa: Isa, spec: &ConvSpec, weights: &[f32], bias: &[f32]) -> Self {
        let lanes = simd::block(isa).0;
        let panels = matrix::layout(isa, spec.out_channels);
        let ([kh, kw], channels) = (spec.kernel, spec.in_channels());
        let k = kh * kw * channels;
        let mut packed = Aligned::zeroed(matrix::packed_len(&panels, lanes, k));
        let weight = |k: usize, n: usize| {
            let (tap, c) = (k / channels, k % channels);
            weights[(n * channels + c) * kh * kw + tap]
        };
        matrix::pack(&panels, lanes, k, weight, packed.as_mut_slice());
        let contiguous =
            spec.sources.len() == 1 && spec.dilation[1] == 1 && !spec.sources[0].upsample;
        let mut lengths = Vec::new();
        if contiguous {
            lengths.extend(std::iter::repeat_n(kw * channels, kh));
        }
        lengths.extend((0..kh * kw).flat_map(|_| spec.sources.iter().map(|s| s.channels)));
        Self {
            bias: matrix::pad_bias(&panels, lanes, bias),
            panels,
            lanes,
            weights: packed,
            zeros: Aligned::zeroed(spec.sources.iter().map(|s| s.channels).max().unwrap_or(0)),
            contiguous,
            lengths,
        }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len() + self.zeros.len()) * size_of::<f32>()
    }

    /// Pointers a chunk takes.
    fn table_len(&self, spec: &ConvSpec) -> usize {
        CHUNK * spec.kernel[0] * spec.kernel[1] * spec.sources.len()
    }

    pub(super) fn scratch_len(&self, spec: &ConvSpec) -> usize {
        (self.table_len(spec) * size_of::<*const f32>()).div_ceil(size_of::<f32>())
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

/// Where a group of pixels' taps are: pointers in the table from `table` on, and which segments they are.
#[derive(Clone, Copy, Default)]
struct Group {
    rows: usize,
    table: usize,
    segments: usize,
    first_length: usize,
}

impl Run<'_> {
    /// Fills the table for output pixels `first..first + rows` counted from the first row of all.
    #[inline(always)]
    unsafe fn point(&self, first: usize, rows: usize, table: usize) -> Group {
        let (s, conv) = (self.spec, self.conv);
        let width = s.out_width();
        let ([kh, kw], [sy, sx], [dy, dx]) = (s.kernel, s.stride, s.dilation);
        let mut to = self.table.add(table);
        let (y0, x0) = (first / width, first % width);
        let top = y0 * sy;
        let left = x0 * sx;
        // One row of the output, every tap within the map's width, the map read in one piece along a kernel row.
        let inside = conv.contiguous
            && x0 + rows <= width
            && left >= s.padding[1]
            && (x0 + rows - 1) * sx + kw <= s.width + s.padding[1]
            && top >= s.padding[0]
            && top + (kh - 1) * dy < s.height + s.padding[0];
        if inside {
            let channels = s.sources[0].channels;
            let corner = ((top - s.padding[0]) * s.width + left - s.padding[1]) * channels;
            for ky in 0..kh {
                let from = self.sources[0].add(corner + ky * dy * s.width * channels);
                for r in 0..rows {
                    to.add(r).write(from.add(r * sx * channels));
                }
                to = to.add(rows);
            }
            return Group { rows, table, segments: kh, first_length: 0 };
        }
        let mut corners = [(0usize, 0usize); MOST_ROWS];
        for (r, corner) in corners.iter_mut().enumerate().take(rows) {
            let pixel = first + r;
            *corner = (
                (pixel / width * sy).wrapping_sub(s.padding[0]),
                (pixel % width * sx).wrapping_sub(s.padding[1]),
            );
        }
        for ky in 0..kh {
            for kx in 0..kw {
                for (source, from) in s.sources.iter().zip(self.sources) {
                    let shift = usize::from(source.upsample);
                    for (r, corner) in corners.iter().enumerate().take(rows) {
                        let (y, x) =
                            (corner.0.wrapping_add(ky * dy), corner.1.wrapping_add(kx * dx));
                        let inside = y < s.height && x < s.width;
                        let at =
                            ((y >> shift) * (s.width >> shift) + (x >> shift)) * source.channels;
                        to.add(r).write(if inside {
                            from.add(at)
                        } else {
                            self.conv.zeros.as_ptr()
                        });
                    }
                    to = to.add(rows);
                }
            }
        }
        let segments = kh * kw * s.sources.len();
        Group { rows, table, segments, first_length: if conv.contiguous { kh } else { 0 } }
    }
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
        let mut tile = [0.0f32; MOST_ROWS * MOST_COLUMNS];
        for chunk in matrix::parts(origin..self.rows.end * width, CHUNK / MOST_ROWS * S::ROWS) {
            let count = groups(chunk.len(), S::ROWS);
            let mut list = [Group::default(); CHUNK / MOST_ROWS];
            for (i, group) in list.iter_mut().enumerate().take(count) {
                let (from, to) =
                    (group_start(chunk.len(), count, i), group_start(chunk.len(), count, i + 1));
                *group = self.point(chunk.start + from, to - from, from * taps);
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
                        k: conv.lengths.as_ptr().add(group.first_length),
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
