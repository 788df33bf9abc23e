//! What is read before and done after a kernel's sums.

use crate::Activation;

/// One input map of a convolution, or one of two whose channels are read as if concatenated.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The whole map, `[height, width, channels]`.
    pub data: &'a [f32],
    /// A factor a channel, applied on reading.
    pub scale: Option<&'a [f32]>,
    /// SiLU on reading, after the factor. Better done where the map is written ([`Second`]).
    pub silu: bool,
}

impl<'a> Source<'a> {
    /// The map as it is.
    pub fn new(data: &'a [f32]) -> Self {
        Self { data, scale: None, silu: false }
    }

    /// Whether it is read as it is.
    pub(crate) fn is_plain(&self) -> bool {
        self.scale.is_none() && !self.silu
    }
}

/// What is added to a result before normalisation and activation.
#[derive(Debug, Clone, Copy, Default)]
pub enum Residual<'a> {
    /// Nothing.
    #[default]
    None,
    /// `scale` times a map of the result's shape: the slice of the rows being computed.
    Add {
        /// The rows being computed, `[rows, width, channels]`.
        data: &'a [f32],
        /// Factor on it.
        scale: f32,
    },
    /// `scale` times a map of half the result's height and width, each of whose pixels stands for four: the whole
    /// map. Only convolutions that are not depthwise take it.
    Enlarged {
        /// `[height / 2, width / 2, channels]`.
        data: &'a [f32],
        /// Factor on it.
        scale: f32,
    },
    /// `scale` times what the destination holds before the call.
    InPlace {
        /// Factor on it.
        scale: f32,
    },
}

/// Normalisation over a pixel's channels: `x * gain / (sqrt(mean(x^2)) + eps)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelNorm {
    /// Added to the root mean square.
    pub eps: f32,
    /// Factor on the result, 1 in the plain form.
    pub gain: f32,
}

/// A second map written along with the first: `activation(scale * result)`.
#[derive(Debug)]
pub struct Second<'a> {
    /// Where it goes: the rows being computed, `[rows, width, channels]`.
    pub data: &'a mut [f32],
    /// Factor before the activation.
    pub scale: f32,
    /// Usually SiLU.
    pub activation: Activation,
}

/// What happens to a kernel's sums (bias included), in this order: residual, pixel norm, activation, write; then the
/// second output and the row sums from what was written. All slices hold just the rows being computed.
#[derive(Debug, Default)]
pub struct Epilogue<'a> {
    /// Added first.
    pub residual: Residual<'a>,
    /// Then each pixel is normalised.
    pub pixel_norm: Option<PixelNorm>,
    /// Then each value passes through this.
    pub activation: Activation,
    /// A second output of the written value.
    pub second: Option<Second<'a>>,
    /// Sums over each row of the written values, `[rows, channels]`: the global mean's first half, see
    /// [`mean_of_row_sums`](crate::mean_of_row_sums).
    pub row_sums: Option<&'a mut [f32]>,
}

impl Epilogue<'_> {
    /// Only an activation.
    pub fn activation(activation: Activation) -> Self {
        Self { activation, ..Self::default() }
    }

    /// The same for `count` of the rows, from row `first` on.
    pub(crate) fn rows(
        &mut self,
        first: usize,
        count: usize,
        width: usize,
        channels: usize,
    ) -> Epilogue<'_> {
        let part = first * width * channels..(first + count) * width * channels;
        Epilogue {
            residual: match self.residual {
                Residual::Add { data, scale } => Residual::Add { data: &data[part.clone()], scale },
                other => other,
            },
            pixel_norm: self.pixel_norm,
            activation: self.activation,
            second: self.second.as_mut().map(|s| Second {
                data: &mut s.data[part],
                scale: s.scale,
                activation: s.activation,
            }),
            row_sums: self
                .row_sums
                .as_mut()
                .map(|r| &mut r[first * channels..(first + count) * channels]),
        }
    }

    /// Asserts that every slice fits `rows x width` pixels of `channels`.
    pub(crate) fn check(&self, rows: usize, width: usize, channels: usize) {
        let len = rows * width * channels;
        match self.residual {
            Residual::Add { data, .. } => {
                assert_eq!(data.len(), len, "residual: not the rows being computed");
            }
            Residual::Enlarged { .. } => {
                panic!("an enlarged residual, which only convolutions take")
            }
            Residual::None | Residual::InPlace { .. } => {}
        }
        self.check_others(rows, width, channels);
    }

    /// As [`check`](Self::check) for rows of a whole map of `height` rows, whose residual may be enlarged.
    pub(crate) fn check_map(&self, rows: usize, height: usize, width: usize, channels: usize) {
        let Residual::Enlarged { data, .. } = self.residual else {
            return self.check(rows, width, channels);
        };
        assert!(
            height.is_multiple_of(2) && width.is_multiple_of(2),
            "enlarged residual of an odd map"
        );
        assert_eq!(
            data.len(),
            height / 2 * (width / 2) * channels,
            "enlarged residual: not the whole map"
        );
        self.check_others(rows, width, channels);
    }

    fn check_others(&self, rows: usize, width: usize, channels: usize) {
        let len = rows * width * channels;
        if let Some(second) = &self.second {
            assert_eq!(second.data.len(), len, "second output: not the rows being computed");
        }
        if let Some(sums) = &self.row_sums {
            assert_eq!(sums.len(), rows * channels, "row sums: not a value a row and channel");
        }
    }
}

/// Reference: finishes `dst`, which holds the sums; `before` is what it held before the call where the residual is
/// in place. `first` is the row of the map that `dst` begins with.
#[cfg(test)]
pub(crate) fn finish_reference(
    epilogue: &mut Epilogue,
    before: &[f32],
    dst: &mut [f32],
    first: usize,
    width: usize,
    channels: usize,
) {
    for (i, v) in dst.iter_mut().enumerate() {
        match epilogue.residual {
            Residual::None => {}
            Residual::Add { data, scale } => *v += scale * data[i],
            Residual::Enlarged { data, scale } => {
                let (pixel, c) = (i / channels, i % channels);
                let (y, x) = ((first + pixel / width) / 2, pixel % width / 2);
                *v += scale * data[(y * (width / 2) + x) * channels + c];
            }
            Residual::InPlace { scale } => *v += scale * before[i],
        }
    }
    for pixel in dst.chunks_exact_mut(channels) {
        if let Some(PixelNorm { eps, gain }) = epilogue.pixel_norm {
            let mean = pixel.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / channels as f64;
            let factor = gain / (mean.sqrt() as f32 + eps);
            pixel.iter_mut().for_each(|v| *v *= factor);
        }
        pixel.iter_mut().for_each(|v| *v = epilogue.activation.apply(*v));
    }
    if let Some(second) = &mut epilogue.second {
        for (to, v) in second.data.iter_mut().zip(&*dst) {
            *to = second.activation.apply(second.scale * v);
        }
    }
    if let Some(sums) = &mut epilogue.row_sums {
        for (sum, row) in sums.chunks_exact_mut(channels).zip(dst.chunks_exact(width * channels)) {
            for (c, sum) in sum.iter_mut().enumerate() {
                *sum = row.iter().skip(c).step_by(channels).sum();
            }
        }
    }
}
