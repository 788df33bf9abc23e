//! Where the taps of output pixels lie: a table of pointers, padding pointing at zeros.
#![expect(unsafe_op_in_unsafe_fn, reason = "pointer arithmetic on slices that Conv2d::run checked")]

use super::ConvSpec;
use crate::matrix::MOST_ROWS;

/// How a convolution's sums are cut into segments, each a run of values that lie side by side.
#[derive(Debug)]
pub(super) struct Taps {
    /// Taps along a kernel row lie one after the other in memory, so a kernel row is one segment where it is inside.
    merged: bool,
    /// Segments' lengths: kernel rows first if merged, then taps by source.
    lengths: Vec<usize>,
}

/// A group of pixels' pointers: `segments` times `rows` of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Group {
    pub rows: usize,
    /// Where in the table they begin.
    pub table: usize,
    pub segments: usize,
    first_length: usize,
}

impl Taps {
    /// `merge` kernel rows where they can be; without it every pixel's segments are the same.
    pub(super) fn new(spec: &ConvSpec, merge: bool) -> Self {
        let ([kh, kw], channels) = (spec.kernel, spec.in_channels());
        let merged =
            merge && spec.sources.len() == 1 && spec.dilation[1] == 1 && !spec.sources[0].upsample;
        let mut lengths = Vec::new();
        if merged {
            lengths.extend(std::iter::repeat_n(kw * channels, kh));
        }
        lengths.extend((0..kh * kw).flat_map(|_| spec.sources.iter().map(|s| s.channels)));
        Self { merged, lengths }
    }

    /// Lengths of a group's segments.
    #[inline(always)]
    pub(super) fn lengths(&self, group: &Group) -> *const usize {
        self.lengths[group.first_length..].as_ptr()
    }

    /// Fills `table` from `at` on for output pixels `first..first + rows`, counted from the first row of all.
    ///
    /// # Safety
    /// `sources` are the spec's whole maps, `zeros` as long as any source's channels, `rows` at most [`MOST_ROWS`], and
    /// the table has room for `rows` pointers for each tap and source.
    #[inline(always)]
    pub(super) unsafe fn point<E>(
        &self,
        s: &ConvSpec,
        (sources, zeros): ([*const E; 2], *const E),
        (first, rows): (usize, usize),
        (table, at): (*mut *const E, usize),
    ) -> Group {
        let width = s.out_width();
        let ([kh, kw], [sy, sx], [dy, dx]) = (s.kernel, s.stride, s.dilation);
        let mut to = table.add(at);
        let (y0, x0) = (first / width, first % width);
        let top = y0 * sy;
        let left = x0 * sx;
        // One row of the output, every tap inside the map.
        let inside = self.merged
            && x0 + rows <= width
            && left >= s.padding[1]
            && (x0 + rows - 1) * sx + kw <= s.width + s.padding[1]
            && top >= s.padding[0]
            && top + (kh - 1) * dy < s.height + s.padding[0];
        if inside {
            let channels = s.sources[0].channels;
            let corner = ((top - s.padding[0]) * s.width + left - s.padding[1]) * channels;
            for ky in 0..kh {
                let from = sources[0].add(corner + ky * dy * s.width * channels);
                for r in 0..rows {
                    to.add(r).write(from.add(r * sx * channels));
                }
                to = to.add(rows);
            }
            return Group { rows, table: at, segments: kh, first_length: 0 };
        }
        let mut corners = [(0usize, 0usize); MOST_ROWS];
        for (r, corner) in corners.iter_mut().enumerate().take(rows) {
            let pixel = first + r;
            let (y, x) = (pixel / width * sy, pixel % width * sx);
            *corner = (y.wrapping_sub(s.padding[0]), x.wrapping_sub(s.padding[1]));
        }
        for ky in 0..kh {
            for kx in 0..kw {
                for (source, from) in s.sources.iter().zip(sources) {
                    let shift = usize::from(source.upsample);
                    for (r, corner) in corners.iter().enumerate().take(rows) {
                        let (y, x) =
                            (corner.0.wrapping_add(ky * dy), corner.1.wrapping_add(kx * dx));
                        to.add(r).write(if y < s.height && x < s.width {
                            from.add(
                                ((y >> shift) * (s.width >> shift) + (x >> shift))
                                    * source.channels,
                            )
                        } else {
                            zeros
                        });
                    }
                    to = to.add(rows);
                }
            }
        }
        let segments = kh * kw * s.sources.len();
        Group { rows, table: at, segments, first_length: if self.merged { kh } else { 0 } }
    }
}
