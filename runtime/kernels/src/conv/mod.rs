//! Two-dimensional convolution: the shape, the prepared weights, and which algorithm runs it.

mod choose;
mod depthwise;
mod gemm;
#[cfg(target_arch = "aarch64")]
mod half;
#[cfg(test)]
mod reference;
mod spec;
mod taps;
#[cfg(test)]
mod tests;
mod transform;
mod winograd;

use std::ops::Range;

pub use spec::{ConvSpec, SourceSpec};

use self::{depthwise::Depthwise, gemm::GemmConv, winograd::Winograd};
use crate::{
    Epilogue, Isa, KernelError, Source,
    aligned::align_scratch,
    error::check_length,
    finish::{Finish, RowSums},
    pointwise::read_source,
    simd,
};

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// A matrix product over the taps, read where they lie. Any shape but depthwise.
    Gemm,
    /// The same with weights, maps and products in half precision ([`Isa::NeonFp16`]): a relative error of about 1e-3.
    GemmHalf,
    /// Winograd F(2x2, 3x3): 3x3 kernels of stride 1.
    Winograd2,
    /// Winograd F(4x4, 3x3): 3x3 kernels of stride 1.
    Winograd4,
    /// A sum over taps for each channel. Depthwise shapes.
    Depthwise,
}

impl ConvAlgorithm {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemm => "gemm",
            Self::GemmHalf => "half-precision gemm",
            Self::Winograd2 => "winograd 2x2",
            Self::Winograd4 => "winograd 4x4",
            Self::Depthwise => "depthwise",
        }
    }
}

#[derive(Debug)]
enum Prepared {
    Gemm(GemmConv),
    #[cfg(target_arch = "aarch64")]
    Half(half::HalfConv),
    Winograd(Winograd),
    Depthwise(Depthwise),
}

/// A convolution with its weights prepared for one instruction set. Immutable: share it between threads.
#[derive(Debug)]
pub struct Conv2d {
    spec: ConvSpec,
    isa: Isa,
    algorithm: ConvAlgorithm,
    prepared: Prepared,
}

impl Conv2d {
    /// Prepares weights `[out_channels, in_channels, kernel_height, kernel_width]` (`[channels, 1, ..]` if depthwise;
    /// ONNX's order) and an optional bias `[out_channels]`, with the algorithm that is fastest for the shape.
    ///
    /// # Errors
    /// A shape that contradicts itself or the slices, or an instruction set this machine lacks.
    pub fn new(
        isa: Isa,
        spec: &ConvSpec,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Self, KernelError> {
        spec.check()?;
        Self::with_algorithm(isa, spec, weights, bias, choose::algorithm(isa, spec))
    }

    /// The same with the algorithm named.
    ///
    /// # Errors
    /// Also an algorithm that cannot compute the shape.
    pub fn with_algorithm(
        isa: Isa,
        spec: &ConvSpec,
        weights: &[f32],
        bias: Option<&[f32]>,
        algorithm: ConvAlgorithm,
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        spec.check()?;
        check_length("convolution weights", weights.len(), spec.weights_len())?;
        if let Some(bias) = bias {
            check_length("convolution bias", bias.len(), spec.out_channels)?;
        }
        let zeros;
        let bias = match bias {
            Some(bias) => bias,
            None => {
                zeros = vec![0.0; spec.out_channels];
                &zeros
            }
        };
        let isa = choose::vectors(isa, spec, algorithm);
        let prepared = match algorithm {
            ConvAlgorithm::Gemm if !spec.depthwise => {
                Prepared::Gemm(GemmConv::new(isa, spec, weights, bias))
            }
            #[cfg(target_arch = "aarch64")]
            ConvAlgorithm::GemmHalf if !spec.depthwise && isa == Isa::NeonFp16 => {
                Prepared::Half(half::HalfConv::new(isa, spec, weights, bias))
            }
            ConvAlgorithm::Winograd2 if winograd::fits(spec) => {
                Prepared::Winograd(Winograd::new(isa, spec, winograd::Size::Two, weights, bias))
            }
            ConvAlgorithm::Winograd4 if winograd::fits(spec) => {
                Prepared::Winograd(Winograd::new(isa, spec, winograd::Size::Four, weights, bias))
            }
            ConvAlgorithm::Depthwise if spec.depthwise && !spec.sources[0].upsample => {
                Prepared::Depthwise(Depthwise::new(spec, weights, bias))
            }
            _ => {
                return Err(KernelError::Shape(format!(
                    "convolution: {} on {isa} cannot compute kernel {:?}, stride {:?}, dilation {:?}, depthwise {}, enlarged \
                     sources {}; choose another algorithm",
                    algorithm.name(),
                    spec.kernel,
                    spec.stride,
                    spec.dilation,
                    spec.depthwise,
                    spec.sources.iter().any(|s| s.upsample)
                )));
            }
        };
        Ok(Self { spec: spec.clone(), isa, algorithm, prepared })
    }

    /// The shape it was prepared for.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// The instruction set whose vectors it uses: a narrower one than asked for where that wastes fewer lanes.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How it is computed.
    pub fn algorithm(&self) -> ConvAlgorithm {
        self.algorithm
    }

    /// Multiply-adds of the direct form, all rows.
    pub fn macs(&self) -> u64 {
        self.spec.macs()
    }

    /// Bytes of prepared weights.
    pub fn weight_bytes(&self) -> usize {
        match &self.prepared {
            Prepared::Gemm(c) => c.weight_bytes(),
            #[cfg(target_arch = "aarch64")]
            Prepared::Half(c) => c.weight_bytes(),
            Prepared::Winograd(c) => c.weight_bytes(),
            Prepared::Depthwise(c) => c.weight_bytes(),
        }
    }

    /// Floats of scratch a call needs, whatever its rows, where no source has factors or SiLU. Contents are undefined
    /// before and after.
    pub fn scratch_len(&self) -> usize {
        15 + self.algorithm_scratch()
    }

    /// The same where sources may have factors or SiLU, which are then applied to a copy of the map first.
    pub fn scratch_len_transformed(&self) -> usize {
        self.scratch_len() + self.spec.sources.iter().map(|s| self.copy_len(s)).sum::<usize>()
    }

    fn copy_len(&self, source: &SourceSpec) -> usize {
        self.spec.source_len(source).next_multiple_of(16)
    }

    fn algorithm_scratch(&self) -> usize {
        let len = match &self.prepared {
            Prepared::Gemm(c) => c.scratch_len(&self.spec),
            #[cfg(target_arch = "aarch64")]
            Prepared::Half(_) => half::HalfConv::scratch_len(&self.spec),
            Prepared::Winograd(c) => c.scratch_len(),
            Prepared::Depthwise(_) => 0,
        };
        len.next_multiple_of(16)
    }

    /// Split points that waste no work are multiples of this many output rows. Any split gives the same bits.
    pub fn row_unit(&self) -> usize {
        match &self.prepared {
            Prepared::Winograd(c) => c.size().out(),
            _ => 1,
        }
    }

    /// A depthwise convolution of which only the input rows that `rows` touch are at hand: row `y` of the map is row
    /// `y % ring` of `source`.
    ///
    /// # Panics
    /// Not depthwise, a slice that does not fit, or a ring too short for the rows.
    pub(crate) fn run_depthwise_ring(
        &self,
        source: &[f32],
        ring: usize,
        epilogue: &mut Epilogue,
        dst: &mut [f32],
        rows: Range<usize>,
    ) {
        let s = &self.spec;
        let Prepared::Depthwise(conv) = &self.prepared else {
            panic!("not a depthwise convolution")
        };
        assert_eq!(source.len(), ring * s.width * s.out_channels, "ring of rows");
        assert!(
            rows.start < rows.end && rows.end <= s.out_height(),
            "rows {rows:?} of {}",
            s.out_height()
        );
        assert!(
            ring >= s.source_rows(&s.sources[0], rows.clone()).len(),
            "ring of {ring} rows for {rows:?}"
        );
        assert_eq!(
            dst.len(),
            rows.len() * s.out_width() * s.out_channels,
            "destination: not the rows being computed"
        );
        epilogue.check(rows.len(), s.out_width(), s.out_channels);
        assert!(epilogue.row_sums.is_none(), "no row sums here");
        let finish = Finish::new(epilogue, dst, s.out_channels);
        // SAFETY: the ring, the destination and the epilogue have just been checked against the shape.
        unsafe { conv.run(self.isa, s, (source.as_ptr(), ring), finish, rows) };
    }

    /// Computes output rows `rows` into `dst`, `[rows, out_width, out_channels]`.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(
        &self,
        sources: &[Source],
        epilogue: &mut Epilogue,
        dst: &mut [f32],
        scratch: &mut [f32],
        rows: Range<usize>,
    ) {
        let s = &self.spec;
        assert_eq!(sources.len(), s.sources.len(), "number of sources");
        let mut needed = self.scratch_len();
        for (source, spec) in sources.iter().zip(&s.sources) {
            assert_eq!(source.data.len(), s.source_len(spec), "source map");
            assert!(source.scale.is_none_or(|f| f.len() == spec.channels), "source factors");
            if !source.is_plain() {
                needed += self.copy_len(spec);
            }
        }
        assert!(
            rows.start <= rows.end && rows.end <= s.out_height(),
            "rows {rows:?} of {}",
            s.out_height()
        );
        assert_eq!(
            dst.len(),
            rows.len() * s.out_width() * s.out_channels,
            "destination: not the rows being computed"
        );
        assert!(
            scratch.len() >= needed,
            "scratch of {} floats where {needed} are needed (scratch_len_transformed for sources with factors or SiLU)",
            scratch.len()
        );
        if s.depthwise {
            epilogue.check(rows.len(), s.out_width(), s.out_channels);
        } else {
            epilogue.check_map(rows.len(), s.out_height(), s.out_width(), s.out_channels);
        }
        if rows.is_empty() {
            return;
        }
        let (scratch, mut copies) =
            align_scratch(scratch, needed - 15).split_at_mut(self.algorithm_scratch());
        let mut maps = [std::ptr::null(); 2];
        for ((source, spec), map) in sources.iter().zip(&s.sources).zip(&mut maps) {
            if source.is_plain() {
                *map = source.data.as_ptr();
            } else {
                let copy;
                (copy, copies) = copies.split_at_mut(self.copy_len(spec));
                let copy = &mut copy[..source.data.len()];
                // Only the input rows that the output rows' units touch.
                let row_len = s.source_row_len(spec);
                let unit = self.row_unit();
                let units =
                    rows.start / unit * unit..rows.end.next_multiple_of(unit).min(s.out_height());
                let part = s.source_rows(spec, units);
                let part = part.start * row_len..part.end * row_len;
                read_source(
                    self.isa,
                    spec.channels,
                    &Source { data: &source.data[part.clone()], ..*source },
                    &mut copy[part],
                );
                *map = copy.as_ptr();
            }
        }
        let finish = Finish::of_map(epilogue, dst, s.out_channels, rows.start, s.out_width());
        // SAFETY: the maps, the destination and everything in the epilogue have just been checked against the shape;
        // the scratch is aligned and of the length asked for; `dst` is only written through `finish` meanwhile.
        unsafe {
            match &self.prepared {
                Prepared::Gemm(c) => c.run(self.isa, s, maps, finish, scratch, rows),
                #[cfg(target_arch = "aarch64")]
                Prepared::Half(c) => c.run(self.isa, s, maps, finish, scratch, rows),
                Prepared::Winograd(c) => c.run(self.isa, s, maps, finish, scratch, rows),
                Prepared::Depthwise(c) => c.run(self.isa, s, (maps[0], s.height), finish, rows),
            }
        }
        if let Some(sums) = &mut epilogue.row_sums {
            let kernel = RowSums { src: dst, width: s.out_width(), channels: s.out_channels, sums };
            // SAFETY: slices whose lengths were checked.
            unsafe { simd::dispatch(self.isa, kernel) };
        }
    }
}
