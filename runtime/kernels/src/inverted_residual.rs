use std::ops::Range;

use crate::{
    Activation, Conv2d, ConvSpec, Epilogue, Isa, KernelError, Source, SourceSpec,
    aligned::align_scratch,
};

/// The shape of an inverted residual block (MobileNetV2, EfficientNet): a 1x1 convolution to many channels, a
/// depthwise convolution on them, and a 1x1 convolution back to few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InvertedResidualSpec {
    /// Height of the input.
    pub height: usize,
    /// Width of the input.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels between the convolutions.
    pub expanded_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the depthwise kernel.
    pub kernel: [usize; 2],
    /// Its stride down and across.
    pub stride: [usize; 2],
    /// Its zeros: top, left, bottom, right.
    pub padding: [usize; 4],
}

/// Weights (ONNX's order), bias and activation of one of the convolutions.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// As [`Conv2d::new`] takes them.
    pub weights: &'a [f32],
    /// A value an output channel.
    pub bias: Option<&'a [f32]>,
    /// What follows it.
    pub activation: Activation,
}

/// An inverted residual block computed a band of rows at a time, so that its wide maps never leave the cache. The
/// values are those of the three convolutions one after the other, bit for bit. Immutable: share it between threads.
#[derive(Debug)]
pub struct InvertedResidual {
    expand: Conv2d,
    depthwise: Conv2d,
    /// Prepared for a map of `band` rows.
    project: Conv2d,
    activations: [Activation; 2],
    band: usize,
    ring: usize,
}

/// Bytes that a band's wide rows may take.
const CACHE: usize = 256 * 1024;

impl InvertedResidualSpec {
    fn depthwise(&self) -> ConvSpec {
        ConvSpec {
            sources: vec![SourceSpec::new(self.expanded_channels)],
            height: self.height,
            width: self.width,
            out_channels: self.expanded_channels,
            kernel: self.kernel,
            stride: self.stride,
            dilation: [1; 2],
            padding: self.padding,
            depthwise: true,
        }
    }

    /// Whether the block is faster in bands than as three convolutions: its wide map does not fit the cache.
    pub fn pays(&self) -> bool {
        self.height * self.width * self.expanded_channels * size_of::<f32>() > CACHE
    }
}

impl InvertedResidual {
    /// Prepares the three layers.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn new(
        isa: Isa,
        spec: &InvertedResidualSpec,
        expand: Layer,
        depthwise: Layer,
        project: Layer,
    ) -> Result<Self, KernelError> {
        let wide = spec.depthwise();
        wide.check()?;
        let (out_height, out_width) = (wide.out_height(), wide.out_width());
        let row = size_of::<f32>() * spec.expanded_channels;
        let (input_row, output_row) = (row * spec.width, row * out_width);
        let halo = spec.kernel[0].saturating_sub(spec.stride[0]) * input_row;
        let band = CACHE.saturating_sub(halo) / (spec.stride[0] * input_row + output_row);
        let band = band.clamp(1, out_height);
        let bands = out_height.div_ceil(band);
        let band = out_height.div_ceil(bands);
        let ring = ((band - 1) * spec.stride[0] + spec.kernel[0]).min(spec.height);
        let first =
            ConvSpec::same(spec.height, spec.width, spec.in_channels, spec.expanded_channels, 1);
        let last = ConvSpec::same(band, out_width, spec.expanded_channels, spec.out_channels, 1);
        Ok(Self {
            expand: Conv2d::new(isa, &first, expand.weights, expand.bias)?,
            depthwise: Conv2d::new(isa, &wide, depthwise.weights, depthwise.bias)?,
            project: Conv2d::new(isa, &last, project.weights, project.bias)?,
            activations: [expand.activation, depthwise.activation],
            band,
            ring,
        })
    }

    /// Height, width and channels of the output.
    pub fn out_shape(&self) -> [usize; 3] {
        let s = self.depthwise.spec();
        [s.out_height(), s.out_width(), self.project.spec().out_channels]
    }

    /// Multiply-adds of all three layers.
    pub fn macs(&self) -> u64 {
        let [height, width, channels] = self.out_shape();
        let last = height * width * channels * self.depthwise.spec().out_channels;
        self.expand.macs() + self.depthwise.macs() + last as u64
    }

    /// Bytes of prepared weights.
    pub fn weight_bytes(&self) -> usize {
        self.expand.weight_bytes() + self.depthwise.weight_bytes() + self.project.weight_bytes()
    }

    /// Floats of scratch a call needs, whatever its rows.
    pub fn scratch_len(&self) -> usize {
        15 + self.ring_len()
            + self.wide_len()
            + self.expand.scratch_len().max(self.project.scratch_len())
    }

    fn ring_len(&self) -> usize {
        let s = self.depthwise.spec();
        self.ring * s.width * s.out_channels
    }

    fn wide_len(&self) -> usize {
        let s = self.depthwise.spec();
        self.band * s.out_width() * s.out_channels
    }

    /// Split points that waste no work are multiples of this many output rows. Any split gives the same bits.
    pub fn row_unit(&self) -> usize {
        self.band
    }

    /// Computes output rows `rows` into `dst`, `[rows, out_width, out_channels]`; `epilogue` follows the last layer
    /// (and its activation takes the place of that layer's).
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(
        &self,
        source: &[f32],
        epilogue: &mut Epilogue,
        dst: &mut [f32],
        scratch: &mut [f32],
        rows: Range<usize>,
    ) {
        let s = self.depthwise.spec();
        let [height, width, channels] = self.out_shape();
        assert!(rows.start <= rows.end && rows.end <= height, "rows {rows:?} of {height}");
        assert_eq!(
            dst.len(),
            rows.len() * width * channels,
            "destination: not the rows being computed"
        );
        assert!(
            scratch.len() >= self.scratch_len(),
            "scratch of {} floats, {} needed",
            scratch.len(),
            self.scratch_len()
        );
        epilogue.check(rows.len(), width, channels);
        let scratch = align_scratch(scratch, self.scratch_len() - 15);
        let (ring, scratch) = scratch.split_at_mut(self.ring_len());
        let (wide, scratch) = scratch.split_at_mut(self.wide_len());
        let row_len = s.width * s.out_channels;
        let source = [Source::new(source)];
        // Rows of the expanded map from here on are not there yet.
        let mut next = 0;
        for from in rows.clone().step_by(self.band) {
            let part = from..rows.end.min(from + self.band);
            let needed = s.source_rows(&s.sources[0], part.clone());
            next = next.max(needed.start);
            while next < needed.end {
                // Up to where the ring wraps.
                let end = needed.end.min((next / self.ring + 1) * self.ring);
                let slot = next % self.ring * row_len;
                let to = &mut ring[slot..slot + (end - next) * row_len];
                self.expand.run(
                    &source,
                    &mut Epilogue::activation(self.activations[0]),
                    to,
                    scratch,
                    next..end,
                );
                next = end;
            }
            let middle = &mut wide[..part.len() * width * s.out_channels];
            let mut activation = Epilogue::activation(self.activations[1]);
            self.depthwise.run_depthwise_ring(
                ring,
                self.ring,
                &mut activation,
                middle,
                part.clone(),
            );
            let first = from - rows.start;
            let to = &mut dst[first * width * channels..][..part.len() * width * channels];
            let mut epilogue = epilogue.rows(first, part.len(), width, channels);
            self.project.run(&[Source::new(wide)], &mut epilogue, to, scratch, 0..part.len());
        }
    }
}
