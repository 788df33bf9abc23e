use std::ops::Range;

use super::output::Output;
use super::pack::{BLOCK, DEPTH, Packed, Window};
#[cfg(target_arch = "x86_64")]
use super::{
    columns::{Columns, To},
    x86::Rounding,
};
use super::{depthwise, scalar};
use crate::error::check_length;
use crate::{ConvSpec, Isa, KernelError};

/// Pixels whose sums are computed before they are written: few enough to stay in the first cache.
const CHUNK: usize = 48;

/// Where the bytes of a pixel's window lie: runs of `groups` x [`DEPTH`] bytes from these starts on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs<'a> {
    /// First byte of each run after the pixel's own offset.
    pub starts: &'a [usize],
    /// Groups of bytes in a run.
    pub groups: usize,
}

/// Computes the sums of all blocks for the pixels at `offsets`; `sums` holds zeros, one row of
/// `packed.blocks * BLOCK` a pixel.
pub(super) type Chunk = unsafe fn(&[u8], &[usize], Runs, &Packed, &mut [i32]);

/// An integer convolution with its weights prepared for one instruction set. Immutable: share it between
/// threads.
#[derive(Debug)]
pub struct Conv2d {
    spec: ConvSpec,
    isa: Isa,
    zero_point: u8,
    /// Added to every sum: bias, and what the zero point takes away. Of whole blocks.
    bias: Vec<i32>,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Dense {
        packed: Packed,
        starts: Vec<usize>,
        groups: usize,
        flip: u8,
    },
    Depthwise(Vec<i16>),
    #[cfg(target_arch = "x86_64")]
    Columns(Columns),
}

impl Conv2d {
    /// Prepares weights `[out_channels, in_channels, kernel_height, kernel_width]` (`[channels, 1, ..]` if
    /// depthwise) and an optional bias of scale input x weight, for inputs whose zero is `zero_point`. The
    /// spec has one source, read as it is.
    ///
    /// # Errors
    /// A shape that contradicts itself or the slices, or an instruction set this machine lacks.
    pub fn new(
        isa: Isa,
        spec: &ConvSpec,
        zero_point: u8,
        weights: &[i8],
        bias: Option<&[i32]>,
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        spec.check()?;
        if spec.sources.len() != 1 || spec.sources[0].upsample {
            return Err(KernelError::Shape(
                "integer convolution: give one source, not enlarged".into(),
            ));
        }
        check_length("integer convolution weights", weights.len(), spec.weights_len())?;
        if let Some(bias) = bias {
            check_length("integer convolution bias", bias.len(), spec.out_channels)?;
        }
        let flip = if spec.depthwise { 0 } else { flip(isa) };
        let per_output = spec.weights_len() / spec.out_channels;
        let shift = i32::from(flip) - i32::from(zero_point);
        let mut bias: Vec<i32> = weights
            .chunks_exact(per_output)
            .enumerate()
            .map(|(output, weights)| {
                let sum: i32 = weights.iter().map(|w| i32::from(*w)).sum();
                // Wraps as the sums themselves do.
                bias.map_or(0, |bias| bias[output]).wrapping_add(sum.wrapping_mul(shift))
            })
            .collect();
        let prepared = if spec.depthwise {
            Self::depthwise(isa, spec, zero_point, weights, &bias)
        } else {
            let window = Window::of(spec);
            let [height, width] = spec.kernel;
            // Neighbouring taps of a row are one run.
            let joined = spec.dilation[1] == 1;
            let run = if joined { width } else { 1 };
            let starts = (0..height * width / run)
                .map(|index| {
                    let (down, across) = (index * run / width, index * run % width);
                    down * spec.dilation[0] * window.row + across * spec.dilation[1] * window.pixel
                })
                .collect();
            Weights::Dense {
                packed: Packed::new(spec, weights, isa == Isa::Avx2 || isa == Isa::Avx512),
                starts,
                groups: run * window.pixel / DEPTH,
                flip,
            }
        };
        bias.resize(spec.out_channels.next_multiple_of(BLOCK), 0);
        Ok(Self { spec: spec.clone(), isa, zero_point, bias, weights: prepared })
    }

    fn depthwise(isa: Isa, spec: &ConvSpec, zero: u8, weights: &[i8], bias: &[i32]) -> Weights {
        #[cfg(target_arch = "x86_64")]
        if Columns::fits(isa, spec) {
            return Weights::Columns(Columns::new(isa, spec, zero, weights, bias));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (isa, zero, bias);
        Weights::Depthwise(depthwise::pack(spec, weights))
    }

    /// The shape it was prepared for.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of prepared weights.
    pub fn weight_bytes(&self) -> usize {
        let own = match &self.weights {
            Weights::Dense { packed, .. } => packed.data().len(),
            Weights::Depthwise(weights) => weights.len() * 2,
            #[cfg(target_arch = "x86_64")]
            Weights::Columns(columns) => columns.weight_bytes(),
        };
        own + self.bias.len() * 4
    }

    /// Bytes of scratch that a call for `rows` output rows needs.
    pub fn scratch_len(&self, rows: usize) -> usize {
        match &self.weights {
            Weights::Dense { flip, .. } if *flip != 0 || !Window::is_source(&self.spec) => {
                Window::of(&self.spec).bytes(&self.spec, rows)
            }
            _ => 0,
        }
    }

    /// Sums of scratch that a call needs.
    pub fn sums_len(&self) -> usize {
        CHUNK * self.spec.out_channels.next_multiple_of(BLOCK) + CHUNK
    }

    /// Computes output rows `rows` of the map `source`, `[height, width, channels]`.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(
        &self,
        source: &[u8],
        output: &mut Output,
        scratch: &mut [u8],
        sums: &mut [i32],
        rows: Range<usize>,
    ) {
        let spec = &self.spec;
        assert_eq!(source.len(), spec.source_len(&spec.sources[0]), "source map");
        assert!(rows.start <= rows.end && rows.end <= spec.out_height(), "rows {rows:?}");
        let width = spec.out_width();
        assert_eq!(output.len(), rows.len() * width * spec.out_channels, "destination");
        assert!(scratch.len() >= self.scratch_len(rows.len()), "scratch");
        assert!(sums.len() >= self.sums_len(), "scratch of sums");
        if rows.is_empty() {
            return;
        }
        match &self.weights {
            Weights::Depthwise(weights) => {
                let (run, channels) = (depthwise_pixel(self.isa), spec.out_channels);
                let pixels = rows.len() * width;
                for start in (0..pixels).step_by(CHUNK) {
                    let sums = &mut sums[..CHUNK.min(pixels - start) * channels];
                    for (index, sums) in sums.chunks_exact_mut(channels).enumerate() {
                        sums.copy_from_slice(&self.bias[..channels]);
                        let pixel = start + index;
                        let at = [rows.start + pixel / width, pixel % width];
                        // SAFETY: `isa` was found on this machine when `self` was made.
                        unsafe { run(spec, source, self.zero_point, weights, at, sums) };
                    }
                    output.take(self.isa, start, sums, channels, channels);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Weights::Columns(columns) => {
                let channels = spec.out_channels;
                for (index, y) in rows.enumerate() {
                    let start = index * width;
                    if let Output::Bytes { to, requantize } = output {
                        let to = &mut to[start * channels..(start + width) * channels];
                        let (factors, zero_point) = (&*requantize.factors, requantize.zero_point);
                        let bytes = To::Bytes { to: &mut *to, factors, zero_point };
                        columns.run(self.isa, spec, source, y, 0..width, bytes);
                        requantize.look_up(to);
                        continue;
                    }
                    for from in (0..width).step_by(CHUNK) {
                        let xs = from..width.min(from + CHUNK);
                        let sums = &mut sums[..xs.len() * channels];
                        columns.run(self.isa, spec, source, y, xs, To::Sums(&mut *sums));
                        output.take(self.isa, start + from, sums, channels, channels);
                    }
                }
            }
            Weights::Dense { packed, starts, groups, flip } => {
                let window = Window::of(spec);
                let runs = Runs { starts, groups: *groups };
                let (source, first) = if *flip == 0 && Window::is_source(spec) {
                    (source, rows.start)
                } else {
                    let scratch = &mut scratch[..window.bytes(spec, rows.len())];
                    window.fill(
                        spec,
                        source,
                        self.zero_point,
                        *flip,
                        rows.start,
                        rows.len(),
                        scratch,
                    );
                    (&*scratch, 0)
                };
                self.dense(source, window, first, rows.len() * width, runs, packed, output, sums);
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one prepared convolution and one call"
    )]
    fn dense(
        &self,
        source: &[u8],
        window: Window,
        first: usize,
        pixels: usize,
        runs: Runs,
        packed: &Packed,
        output: &mut Output,
        sums: &mut [i32],
    ) {
        let spec = &self.spec;
        let (width, step) = (spec.out_width(), packed.blocks * BLOCK);
        let offset = |index: usize| {
            (first + index / width) * spec.stride[0] * window.row
                + index % width * spec.stride[1] * window.pixel
        };
        // What every kernel reads without looking: the last byte of the last pixel's last run.
        let last = offset(pixels - 1) + runs.starts.last().copied().unwrap_or(0);
        assert!(last + runs.groups * DEPTH <= source.len(), "a window ends beyond its rows");
        assert_eq!(packed.data().len(), packed.planes * packed.plane_bytes());
        assert_eq!(packed.groups, runs.groups * runs.starts.len());
        let chunk = chunk(self.isa);
        let mut offsets = [0; CHUNK];
        for start in (0..pixels).step_by(CHUNK) {
            let count = CHUNK.min(pixels - start);
            for (index, to) in offsets[..count].iter_mut().enumerate() {
                *to = offset(start + index);
            }
            #[cfg(target_arch = "x86_64")]
            if let (Output::Bytes { to, requantize }, Some(round)) =
                (&mut *output, round(self.isa, packed))
            {
                let to = &mut to[start * spec.out_channels..(start + count) * spec.out_channels];
                let factors = &requantize.factors[..spec.out_channels];
                let rounding =
                    Rounding { bias: &self.bias, factors, zero_point: requantize.zero_point };
                // SAFETY: as below, and `to` has `count` pixels.
                unsafe { round(source, &offsets[..count], runs, packed, &rounding, to) };
                requantize.look_up(to);
                continue;
            }
            let sums = &mut sums[..count * step];
            for sums in sums.chunks_exact_mut(step) {
                sums.copy_from_slice(&self.bias);
            }
            // SAFETY: `isa` was found on this machine when `self` was made, and all that is read lies within
            // `source` and `packed` as asserted above.
            unsafe { chunk(source, &offsets[..count], runs, packed, sums) };
            output.take(self.isa, start, sums, step, spec.out_channels);
        }
    }
}

/// What is xored onto activations: aarch64 multiplies signed bytes only.
fn flip(isa: Isa) -> u8 {
    match isa {
        Isa::Neon | Isa::NeonDot | Isa::NeonI8mm | Isa::NeonFp16 => 0x80,
        _ => 0,
    }
}

fn chunk(isa: Isa) -> Chunk {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => super::x86::maddubs,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => super::x86::dot256,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => super::x86::dot512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonFp16 => super::arm::multiply,
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot | Isa::NeonI8mm => super::arm::dot,
        _ => scalar::chunk,
    }
}

/// As [`Chunk`], with the sums rounded to bytes at once.
#[cfg(target_arch = "x86_64")]
type Round = unsafe fn(&[u8], &[usize], Runs, &Packed, &Rounding, &mut [u8]);

/// None where the sums are not complete before all planes are done.
#[cfg(target_arch = "x86_64")]
fn round(isa: Isa, packed: &Packed) -> Option<Round> {
    match isa {
        Isa::Avx2 | Isa::Avx512 if packed.planes == 1 => Some(super::x86::round_maddubs),
        Isa::AvxVnni => Some(super::x86::round_vnni),
        Isa::Avx512Vnni => Some(super::x86::round512),
        _ => None,
    }
}

type DepthwisePixel = unsafe fn(&ConvSpec, &[u8], u8, &[i16], [usize; 2], &mut [i32]);

fn depthwise_pixel(isa: Isa) -> DepthwisePixel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => super::x86::depthwise256,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni => super::x86::depthwise512,
        // Neon is part of every aarch64 build.
        _ => depthwise::pixel,
    }
}
