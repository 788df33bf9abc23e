//! Two-dimensional convolution: the shape, the prepared weights, and which algorithm runs it.

mod reference;
mod spec;

use std::ops::Range;

pub use spec::{ConvSpec, SourceSpec};

use crate::{Epilogue, Isa, KernelError, Source, error::check_length};

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// Nested loops in plain Rust.
    Reference,
}

impl ConvAlgorithm {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
        }
    }
}

/// A convolution with its weights prepared for one instruction set. Immutable: share it between threads.
#[derive(Debug)]
pub struct Conv2d {
    spec: ConvSpec,
    isa: Isa,
    weights: Vec<f32>,
    bias: Vec<f32>,
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
        let isa = isa.require()?;
        spec.check()?;
        check_length("convolution weights", weights.len(), spec.weights_len())?;
        if let Some(bias) = bias {
            check_length("convolution bias", bias.len(), spec.out_channels)?;
        }
        let bias = bias.map_or_else(|| vec![0.0; spec.out_channels], <[f32]>::to_vec);
        Ok(Self { spec: spec.clone(), isa, weights: weights.to_vec(), bias })
    }

    /// The shape it was prepared for.
    pub fn spec(&self) -> &ConvSpec {
        &self.spec
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How it is computed.
    pub fn algorithm(&self) -> ConvAlgorithm {
        ConvAlgorithm::Reference
    }

    /// Multiply-adds of the direct form, all rows.
    pub fn macs(&self) -> u64 {
        self.spec.macs()
    }

    /// Bytes of prepared weights.
    pub fn weight_bytes(&self) -> usize {
        (self.weights.len() + self.bias.len()) * size_of::<f32>()
    }

    /// Floats of scratch a call needs, whatever its rows. Contents are undefined before and after.
    pub fn scratch_len(&self) -> usize {
        self.spec.out_width() * self.spec.out_channels
    }

    /// Split points that waste no work are multiples of this many output rows. Any split gives the same bits.
    pub fn row_unit(&self) -> usize {
        1
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
        for (source, spec) in sources.iter().zip(&s.sources) {
            assert_eq!(source.data.len(), s.source_len(spec), "source map");
            if let Some(scale) = source.scale {
                assert_eq!(scale.len(), spec.channels, "source factors");
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
            scratch.len() >= self.scratch_len(),
            "scratch of {} floats, {} needed",
            scratch.len(),
            self.scratch_len()
        );
        epilogue.check(rows.len(), s.out_width(), s.out_channels);
        if rows.is_empty() {
            return;
        }
        reference::run(s, &self.weights, &self.bias, sources, epilogue, dst, scratch, rows);
    }
}
