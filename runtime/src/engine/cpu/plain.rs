//! Plain implementations of what has no kernel: odd steps, concatenations, other poolings, changes of
//! layout.

use std::ops::Range;

use super::arena::Arena;
use super::program::{Plain, PlainStep, Window};
use crate::engine::fused::{Channels, Pool};

/// Rows `rows` of a map of steps.
///
/// # Safety
/// As [`super::run::run`].
pub(super) unsafe fn map(map: &Plain, arena: &Arena, scratch: &mut [f32], rows: Range<usize>) {
    let pixel = &mut scratch[..map.channels];
    for y in rows {
        for x in 0..map.width {
            let mut at = 0;
            for window in &map.inputs {
                // SAFETY: by the caller's promise.
                let values = unsafe { window.pixel(arena, [y, x], 0..window.dims[2]) };
                pixel[at..at + values.len()].copy_from_slice(values);
                at += values.len();
            }
            // SAFETY: by the caller's promise.
            unsafe { steps(&map.steps, arena, pixel, 0, map.channels, [y, x], map.width) };
        }
    }
}

impl Window {
    /// Some channels of the pixel that stands for `[row, column]`.
    ///
    /// # Safety
    /// As [`super::run::run`].
    unsafe fn pixel<'a>(
        &self,
        arena: &'a Arena,
        [y, x]: [usize; 2],
        channels: Range<usize>,
    ) -> &'a [f32] {
        let at = (y / self.upsample * self.dims[1] + x / self.upsample) * self.dims[2];
        // SAFETY: by the caller's promise.
        unsafe { arena.read_part(self.place, at + channels.start..at + channels.end) }
    }
}

/// Takes channels `first..` of pixel `[row, column]`, of `channels` in a map of `width` columns,
/// through `steps`.
///
/// # Safety
/// As [`super::run::run`].
pub(super) unsafe fn steps(
    steps: &[PlainStep],
    arena: &Arena,
    values: &mut [f32],
    first: usize,
    channels: usize,
    [y, x]: [usize; 2],
    width: usize,
) {
    let range = first..first + values.len();
    for step in steps {
        match step {
            PlainStep::Scale(Channels::One(factor)) => values.iter_mut().for_each(|v| *v *= factor),
            PlainStep::Scale(Channels::Each(factors)) => {
                values.iter_mut().zip(&factors[range.clone()]).for_each(|(v, f)| *v *= f);
            }
            PlainStep::Offset(Channels::One(offset)) => {
                values.iter_mut().for_each(|v| *v += offset)
            }
            PlainStep::Offset(Channels::Each(offsets)) => {
                values.iter_mut().zip(&offsets[range.clone()]).for_each(|(v, o)| *v += o);
            }
            PlainStep::Add(window, scale) => {
                // SAFETY: by the caller's promise.
                let other = unsafe { window.pixel(arena, [y, x], range.clone()) };
                values.iter_mut().zip(other).for_each(|(v, o)| *v += scale * o);
            }
            PlainStep::Multiply(window) => {
                // SAFETY: by the caller's promise.
                let other = unsafe { window.pixel(arena, [y, x], range.clone()) };
                values.iter_mut().zip(other).for_each(|(v, o)| *v *= o);
            }
            PlainStep::Norm(epsilon) => {
                let mean = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
                let factor = 1.0 / (mean.sqrt() + epsilon);
                values.iter_mut().for_each(|v| *v *= factor);
            }
            PlainStep::Activate(activation) => {
                values.iter_mut().for_each(|v| *v = activation.apply(*v));
            }
            PlainStep::Store(place) => {
                let at = (y * width + x) * channels + first;
                // SAFETY: by the caller's promise.
                unsafe { arena.write(*place, at..at + values.len()) }.copy_from_slice(values);
            }
        }
    }
}

/// Rows `rows` of a pooling.
pub(super) fn pool(
    pool: &Pool,
    source: &[f32],
    [height, width, channels]: [usize; 3],
    dst: &mut [f32],
    [_, out_width, _]: [usize; 3],
    rows: Range<usize>,
) {
    let inside = |at: usize, tap: usize, before: usize, size: usize| {
        (at + tap).checked_sub(before).filter(|at| *at < size)
    };
    let window = pool.kernel[0] * pool.kernel[1];
    for (y, row) in rows.zip(dst.chunks_exact_mut(out_width * channels)) {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            pixel.fill(if pool.maximum { f32::NEG_INFINITY } else { 0.0 });
            let mut count = 0;
            for ky in 0..pool.kernel[0] {
                let at_y = inside(y * pool.stride[0], ky, pool.padding.top, height);
                for kx in 0..pool.kernel[1] {
                    let at_x = inside(x * pool.stride[1], kx, pool.padding.left, width);
                    let (Some(at_y), Some(at_x)) = (at_y, at_x) else { continue };
                    count += 1;
                    let from = &source[(at_y * width + at_x) * channels..][..channels];
                    for (value, from) in pixel.iter_mut().zip(from) {
                        *value = match pool.maximum {
                            // As tract: NaN is passed over.
                            true => value.max(*from),
                            false => *value + from,
                        };
                    }
                }
            }
            if !pool.maximum {
                let count = if pool.count_padding { window } else { count };
                pixel.iter_mut().for_each(|value| *value /= count as f32);
            }
        }
    }
}

/// Copies between the graph's order `[channels, height, width]` and a map's.
pub(super) fn layout<T: Copy>(
    from: &[T],
    to: &mut [T],
    [height, width, channels]: [usize; 3],
    into_map: bool,
) {
    let pixels = height * width;
    for p in 0..pixels {
        for c in 0..channels {
            let (map, plane) = (p * channels + c, c * pixels + p);
            if into_map {
                to[map] = from[plane];
            } else {
                to[plane] = from[map];
            }
        }
    }
}
