//! Integer convolutions: activations are rounded to uint8 on reading, multiplied with int8 weights
//! and summed in int32.

use diffbulk_kernels::int8::{self, Output, Requantize};
use diffbulk_kernels::{ConvSpec, Isa, KernelError, SourceSpec};

use super::arena::{Arena, Place};
use crate::engine::fused::{Activation, BufferId, Channels, FusedOp, Grid, IntegerConv, Step};

/// Output values computed before they are written: few enough to stay in the second cache.
const GROUP: usize = 1 << 15;

/// The steps of an operator as far as every value depends on nothing but one byte.
#[derive(Debug)]
pub(super) struct Tables {
    /// What the sums are rounded to.
    pub(super) grid: Grid,
    /// What each byte is stored as, and where.
    pub(super) stores: Vec<(BufferId, Box<[f32; 256]>)>,
    /// Steps taken.
    pub(super) used: usize,
}

/// `[offset] [clip] snap`, then functions of one value and stores.
pub(super) fn tables(steps: &[Step]) -> Option<Tables> {
    let mut at = 0;
    if let Some(Step::Offset(_)) = steps.first() {
        at = 1;
    }
    if let Some(Step::Activate(Activation::Clip { low, high })) = steps.get(at) {
        at += 1;
        // Rounding saturates at the grid's ends: a clip that reaches both changes nothing.
        let grid = match steps.get(at) {
            Some(Step::Activate(Activation::Snap(grid))) => grid,
            _ => return None,
        };
        if grid.index(*low) != 0 || grid.index(*high) != 255 {
            return None;
        }
    }
    let Some(Step::Activate(Activation::Snap(grid))) = steps.get(at) else { return None };
    at += 1;
    let mut last: Box<[f32; 256]> = Box::new(std::array::from_fn(|q| grid.real(q as u8)));
    let mut stores = Vec::new();
    for step in &steps[at..] {
        match step {
            Step::Activate(activation) => last.iter_mut().for_each(|x| *x = activation.apply(*x)),
            Step::Scale(Channels::One(factor)) => last.iter_mut().for_each(|x| *x *= factor),
            Step::Offset(Channels::One(offset)) => last.iter_mut().for_each(|x| *x += offset),
            Step::Store(buffer) => stores.push((*buffer, last.clone())),
            _ => break,
        }
        at += 1;
    }
    Some(Tables { grid: *grid, stores, used: at })
}

/// A map as an integer convolution reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) place: Place,
    /// Height, width and channels of the buffer.
    pub(super) dims: [usize; 3],
    pub(super) upsample: usize,
}

/// What becomes of the sums.
#[derive(Debug)]
pub(super) enum Finish {
    /// Bytes, and a table for every place.
    Bytes { requantize: Requantize, stores: Vec<(Place, Box<[f32; 256]>)> },
    /// Reals, for the float epilogue.
    Reals { factors: Vec<f32>, bias: Option<Vec<f32>> },
}

/// An integer convolution that is ready to run.
#[derive(Debug)]
pub(super) struct Ready {
    kernel: int8::Conv2d,
    sources: Vec<Source>,
    grid: Grid,
    pub(super) finish: Finish,
}

impl Ready {
    /// Prepares `conv` for `sources`; `place` tells where buffers lie.
    pub(super) fn new(
        isa: Isa,
        op: &FusedOp,
        conv: &IntegerConv,
        sources: Vec<Source>,
        place: impl Fn(BufferId) -> Place,
        bias: Option<&Channels>,
    ) -> Result<Self, KernelError> {
        let [height, width, _] = sources[0].dims;
        let (up, geometry) = (sources[0].upsample, &conv.conv);
        let padding = geometry.padding;
        let spec = ConvSpec {
            sources: vec![SourceSpec::new(geometry.channels)],
            height: height * up,
            width: width * up,
            out_channels: geometry.outputs,
            kernel: geometry.kernel,
            stride: geometry.stride,
            dilation: geometry.dilation,
            padding: [padding.top, padding.left, padding.bottom, padding.right],
            depthwise: geometry.groups > 1,
        };
        let products: Vec<f32> = conv.scales.iter().map(|s| s * conv.input.scale).collect();
        let integer = bias.map(|bias| conv.integer_bias(bias));
        let exact = integer.clone().flatten();
        let finish = match (tables(&op.steps), integer) {
            (Some(tables), None | Some(Some(_))) if tables.used == op.steps.len() => {
                Finish::Bytes {
                    requantize: Requantize {
                        factors: products.iter().map(|p| p / tables.grid.scale).collect(),
                        zero_point: tables.grid.zero_point,
                        table: None,
                    },
                    stores: tables.stores.into_iter().map(|(id, t)| (place(id), t)).collect(),
                }
            }
            (_, integer) => Finish::Reals {
                factors: products,
                bias: bias
                    .filter(|_| integer.is_some_and(|integer| integer.is_none()))
                    .map(|bias| bias.to_vec(geometry.outputs)),
            },
        };
        let zero = conv.input.zero_point;
        let kernel = int8::Conv2d::new(isa, &spec, zero, &conv.integers, exact.as_deref())?;
        Ok(Self { kernel, sources, grid: conv.input, finish })
    }

    /// Rows of the output.
    pub(super) fn rows(&self) -> usize {
        self.kernel.spec().out_height()
    }

    /// Rows computed together.
    fn group(&self) -> usize {
        let spec = self.kernel.spec();
        (GROUP / (spec.out_width() * spec.out_channels)).max(1)
    }

    /// Scratch: sums, reals, bytes of the map, bytes of the results and the kernel's window.
    fn sizes(&self) -> [usize; 4] {
        let spec = self.kernel.spec();
        let results = self.group() * spec.out_width() * spec.out_channels;
        let window = self.kernel.scratch_len(self.group());
        [self.kernel.sums_len(), results, spec.source_len(&spec.sources[0]), results + window]
    }

    /// Floats of scratch that a thread needs.
    pub(super) fn scratch_len(&self) -> usize {
        let [sums, reals, map, bytes] = self.sizes();
        sums + reals + (map + bytes).div_ceil(4)
    }

    /// Computes output rows `rows`; `finish` is given each group's reals and its rows where there are no
    /// tables.
    ///
    /// # Safety
    /// As [`run`](super::run::run).
    pub(super) unsafe fn run(
        &self,
        arena: &Arena,
        scratch: &mut [f32],
        rows: std::ops::Range<usize>,
        mut finish: impl FnMut(&[f32], std::ops::Range<usize>),
    ) {
        let spec = self.kernel.spec();
        let [sums_len, reals_len, map_len, _] = self.sizes();
        let (sums, rest) = scratch.split_at_mut(sums_len);
        let (reals, rest) = rest.split_at_mut(reals_len);
        // SAFETY: int32 and bytes may hold any bits and are aligned wherever float32 is; the slices are
        // disjoint parts of the scratch.
        let (sums, bytes) = unsafe {
            let sums = std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<i32>(), sums.len());
            let bytes = rest.as_mut_ptr().cast::<u8>();
            (sums, std::slice::from_raw_parts_mut(bytes, rest.len() * 4))
        };
        let (map, bytes) = bytes.split_at_mut(map_len);
        let (out, window) = bytes.split_at_mut(reals_len);
        // SAFETY: the caller's promise.
        unsafe { self.read(arena, map, &rows) };
        let line = spec.out_width() * spec.out_channels;
        for start in rows.clone().step_by(self.group()) {
            let part = start..(start + self.group()).min(rows.end);
            let values = part.len() * line;
            match &self.finish {
                Finish::Bytes { requantize, stores } => {
                    let to = &mut out[..values];
                    let mut output = Output::Bytes { to: &mut *to, requantize };
                    self.kernel.run(map, &mut output, window, sums, part.clone());
                    for (place, table) in stores {
                        // SAFETY: the caller's promise.
                        let dst = unsafe {
                            arena.write::<f32>(*place, part.start * line..part.end * line)
                        };
                        for (dst, &byte) in dst.iter_mut().zip(&*to) {
                            *dst = table[usize::from(byte)];
                        }
                    }
                }
                Finish::Reals { factors, bias } => {
                    let to = &mut reals[..values];
                    let mut output = Output::Reals { to: &mut *to, factors };
                    self.kernel.run(map, &mut output, window, sums, part.clone());
                    if let Some(bias) = bias {
                        for pixel in to.chunks_exact_mut(bias.len()) {
                            pixel.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
                        }
                    }
                    finish(to, part);
                }
            }
        }
    }

    /// Rounds what output rows `rows` read to bytes, in `map`.
    ///
    /// # Safety
    /// As [`run`](super::run::run).
    unsafe fn read(&self, arena: &Arena, map: &mut [u8], rows: &std::ops::Range<usize>) {
        let spec = self.kernel.spec();
        let channels = spec.in_channels();
        let first = (rows.start * spec.stride[0]).saturating_sub(spec.padding[0]);
        let reach = (spec.kernel[0] - 1) * spec.dilation[0] + 1;
        let last = (rows.end.saturating_sub(1) * spec.stride[0] + reach)
            .saturating_sub(spec.padding[0])
            .min(spec.height);
        let line = spec.width * channels;
        let Grid { scale, zero_point } = self.grid;
        let mut offset = 0;
        for source in &self.sources {
            let [_, width, own] = source.dims;
            // SAFETY: the caller's promise.
            let data: &[f32] = unsafe { arena.read(source.place) };
            for y in first..last {
                let from = &data[y / source.upsample * width * own..][..width * own];
                let to = &mut map[y * line..(y + 1) * line];
                if own == channels && source.upsample == 1 {
                    int8::quantize(from, scale, zero_point, to);
                    continue;
                }
                for (x, to) in to.chunks_exact_mut(channels).enumerate() {
                    let from = &from[x / source.upsample * own..][..own];
                    int8::quantize(from, scale, zero_point, &mut to[offset..offset + own]);
                }
            }
            offset += own;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_one_byte_become_tables() {
        let grid = Grid { scale: 0.5, zero_point: 100 };
        let snap = Step::Activate(Activation::Snap(grid));
        let silu = Step::Activate(Activation::Silu);
        let add =
            Step::Add { input: crate::engine::fused::Input { buffer: 9, upsample: 1 }, scale: 1.0 };
        let steps = [
            Step::Offset(Channels::One(1.0)),
            snap.clone(),
            Step::Store(3),
            silu,
            Step::Store(4),
            add,
        ];
        let tables = tables(&steps).unwrap();
        assert_eq!(tables.used, 5);
        assert_eq!(tables.stores[0].1[102], 1.0);
        assert!((tables.stores[1].1[102] - 1.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
        // A clip that cuts inside the grid is not one of its ends.
        let clip = Step::Activate(Activation::Clip { low: 0.0, high: 6.0 });
        assert!(super::tables(&[clip, snap]).is_none());
    }
}
