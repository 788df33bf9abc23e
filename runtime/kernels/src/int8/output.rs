//! What becomes of integer sums.

/// uint8 from sums: `table[round(sum * factor) + zero_point]`, rounded half to even and saturated.
#[derive(Debug, Clone)]
pub struct Requantize {
    /// Input scale times weight scale over output scale, one an output channel.
    pub factors: Vec<f32>,
    /// The output's zero point.
    pub zero_point: u8,
    /// What each value becomes in the end, where an activation follows.
    pub table: Option<Box<[u8; 256]>>,
}

/// Where the sums of a convolution go; slices hold just the rows being computed.
#[derive(Debug)]
pub enum Output<'a> {
    /// The sums themselves.
    Sums(&'a mut [i32]),
    /// Reals: sum times factor (input scale times weight scale), one factor an output channel.
    Reals {
        /// Where they go.
        to: &'a mut [f32],
        /// One an output channel.
        factors: &'a [f32],
    },
    /// uint8 again.
    Bytes {
        /// Where they go.
        to: &'a mut [u8],
        /// How.
        requantize: &'a Requantize,
    },
}

impl Output<'_> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Sums(to) => to.len(),
            Self::Reals { to, .. } => to.len(),
            Self::Bytes { to, .. } => to.len(),
        }
    }

    /// Takes the sums of pixels `first..`, `step` sums a pixel of which the first `channels` count.
    #[inline(always)]
    pub(super) fn take(&mut self, first: usize, sums: &[i32], step: usize, channels: usize) {
        let pixels = sums.chunks_exact(step);
        let start = first * channels;
        match self {
            Self::Sums(to) => {
                for (to, from) in to[start..].chunks_exact_mut(channels).zip(pixels) {
                    to.copy_from_slice(&from[..channels]);
                }
            }
            Self::Reals { to, factors } => {
                for (to, from) in to[start..].chunks_exact_mut(channels).zip(pixels) {
                    for ((to, from), factor) in to.iter_mut().zip(from).zip(*factors) {
                        *to = *from as f32 * factor;
                    }
                }
            }
            Self::Bytes { to, requantize } => {
                let zero = f32::from(requantize.zero_point);
                for (to, from) in to[start..].chunks_exact_mut(channels).zip(pixels) {
                    for ((to, from), factor) in to.iter_mut().zip(from).zip(&requantize.factors) {
                        let rounded = (*from as f32 * factor).round_ties_even() + zero;
                        *to = rounded.clamp(0.0, 255.0) as i32 as u8;
                    }
                    if let Some(table) = &requantize.table {
                        to.iter_mut().for_each(|to| *to = table[usize::from(*to)]);
                    }
                }
            }
        }
    }
}

/// Reals as uint8: `round(x / scale) + zero_point`, rounded half to even and saturated; NaN gives 0.
pub fn quantize(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
    let zero = f32::from(zero_point);
    for (to, from) in to.iter_mut().zip(from) {
        *to = ((from / scale).round_ties_even() + zero).clamp(0.0, 255.0) as i32 as u8;
    }
}
