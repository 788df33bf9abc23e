use crate::KernelError;

/// One of the maps a convolution reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceSpec {
    /// Channels of this map.
    pub channels: usize,
    /// The map has half the height and width, and is read as if enlarged twice by nearest neighbour.
    pub upsample: bool,
}

impl SourceSpec {
    /// A map read as it is.
    pub fn new(channels: usize) -> Self {
        Self { channels, upsample: false }
    }
}

/// The shape of a convolution.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConvSpec {
    /// One map, or two whose channels are read one after the other.
    pub sources: Vec<SourceSpec>,
    /// Height of the input (after enlarging).
    pub height: usize,
    /// Width of the input (after enlarging).
    pub width: usize,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Stride down and across.
    pub stride: [usize; 2],
    /// Distance between taps down and across.
    pub dilation: [usize; 2],
    /// Zeros around the input: top, left, bottom, right.
    pub padding: [usize; 4],
    /// Every channel has its own kernel; then `out_channels` is the number of input channels and there is one source.
    pub depthwise: bool,
}

impl ConvSpec {
    /// A plain `kernel x kernel` convolution of stride 1 that keeps the size (odd kernels).
    pub fn same(
        height: usize,
        width: usize,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
    ) -> Self {
        let p = kernel / 2;
        Self {
            sources: vec![SourceSpec::new(in_channels)],
            height,
            width,
            out_channels,
            kernel: [kernel; 2],
            stride: [1; 2],
            dilation: [1; 2],
            padding: [p; 4],
            depthwise: false,
        }
    }

    /// Channels of all sources.
    pub fn in_channels(&self) -> usize {
        self.sources.iter().map(|s| s.channels).sum()
    }

    /// Height of the output.
    pub fn out_height(&self) -> usize {
        let reach = (self.kernel[0] - 1) * self.dilation[0] + 1;
        (self.height + self.padding[0] + self.padding[2] - reach) / self.stride[0] + 1
    }

    /// Width of the output.
    pub fn out_width(&self) -> usize {
        let reach = (self.kernel[1] - 1) * self.dilation[1] + 1;
        (self.width + self.padding[1] + self.padding[3] - reach) / self.stride[1] + 1
    }

    /// Values of the whole output map.
    pub fn out_len(&self) -> usize {
        self.out_height() * self.out_width() * self.out_channels
    }

    /// Values of one source's map.
    pub fn source_len(&self, source: &SourceSpec) -> usize {
        let pixels = if source.upsample {
            (self.height / 2) * (self.width / 2)
        } else {
            self.height * self.width
        };
        pixels * source.channels
    }

    /// Values of a row of one source's map.
    pub(crate) fn source_row_len(&self, source: &SourceSpec) -> usize {
        (self.width >> usize::from(source.upsample)) * source.channels
    }

    /// Rows of one source's map that output rows `rows` touch.
    pub(crate) fn source_rows(
        &self,
        source: &SourceSpec,
        rows: std::ops::Range<usize>,
    ) -> std::ops::Range<usize> {
        let first = (rows.start * self.stride[0]).saturating_sub(self.padding[0]);
        let last = ((rows.end - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1)
            .saturating_sub(self.padding[0])
            .min(self.height);
        let shift = usize::from(source.upsample);
        (first >> shift).min(last.div_ceil(1 << shift))..last.div_ceil(1 << shift)
    }

    /// Channels each output channel sums over.
    pub(crate) fn group_channels(&self) -> usize {
        if self.depthwise { 1 } else { self.in_channels() }
    }

    /// Number of weights.
    pub fn weights_len(&self) -> usize {
        self.out_channels * self.group_channels() * self.kernel[0] * self.kernel[1]
    }

    /// Multiply-adds of the direct form.
    pub fn macs(&self) -> u64 {
        (self.out_height() * self.out_width()) as u64 * self.weights_len() as u64
    }

    /// # Errors
    /// What contradicts itself.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let fail = |why: String| Err(KernelError::Shape(format!("convolution: {why}")));
        if !matches!(self.sources.len(), 1 | 2) {
            return fail(format!("{} sources; give one or two", self.sources.len()));
        }
        let zero = |v: &[usize]| v.contains(&0);
        if zero(&[self.height, self.width, self.out_channels])
            || zero(&self.kernel)
            || zero(&self.stride)
            || zero(&self.dilation)
            || self.sources.iter().any(|s| s.channels == 0)
        {
            return fail(
                "a size, stride, dilation or number of channels is 0; all must be positive".into(),
            );
        }
        if self.depthwise
            && (self.sources.len() != 1 || self.sources[0].channels != self.out_channels)
        {
            return fail(format!(
                "depthwise with {} input and {} output channels; they must be equal and from one source",
                self.in_channels(),
                self.out_channels
            ));
        }
        if self.sources.iter().any(|s| s.upsample)
            && !(self.height.is_multiple_of(2) && self.width.is_multiple_of(2))
        {
            return fail(format!(
                "an enlarged source of {}x{}; both must be even",
                self.height, self.width
            ));
        }
        for (side, size) in [self.height, self.width].into_iter().enumerate() {
            let reach = (self.kernel[side] - 1)
                .checked_mul(self.dilation[side])
                .and_then(|r| r.checked_add(1));
            if reach.is_none_or(|r| r > size + self.padding[side] + self.padding[side + 2]) {
                return fail(format!(
                    "a kernel of {:?} with dilation {:?} is larger than the padded input of {}x{}",
                    self.kernel, self.dilation, self.height, self.width
                ));
            }
        }
        Ok(())
    }
}
