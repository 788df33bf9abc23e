//! What becomes of integer sums. The loops are written so that the compiler makes vector code of them for each
//! instruction set; the numbers are the same in all.

use crate::Isa;

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

impl Requantize {
    /// Makes of bytes what the table says.
    pub(super) fn look_up(&self, bytes: &mut [u8]) {
        if let Some(table) = &self.table {
            bytes.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
        }
    }
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

    /// Takes the sums of pixels `first..`, `step` sums a pixel of which the first `channels` count, with the vectors
    /// of `isa`, which the machine has.
    pub(super) fn take(
        &mut self,
        isa: Isa,
        first: usize,
        sums: &[i32],
        step: usize,
        channels: usize,
    ) {
        match isa {
            // SAFETY: the caller has found `isa` on this machine.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni => unsafe {
                super::x86::take512(self, first, sums, step, channels);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => unsafe {
                super::x86::take256(self, first, sums, step, channels);
            },
            _ => self.take_here(first, sums, step, channels),
        }
    }

    /// The same with the vectors of the code around it.
    #[inline(always)]
    pub(super) fn take_here(&mut self, first: usize, sums: &[i32], step: usize, channels: usize) {
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
                let factors = &requantize.factors[..channels];
                for (to, from) in to[start..].chunks_exact_mut(channels).zip(pixels) {
                    let from = &from[..channels];
                    for i in 0..channels {
                        to[i] = saturated((from[i] as f32 * factors[i]).round_ties_even() + zero);
                    }
                    requantize.look_up(to);
                }
            }
        }
    }
}

/// Reals as uint8: `round(x * (1 / scale)) + zero_point`, rounded half to even and saturated; NaN gives 0. The
/// reciprocal is rounded to float32 first.
pub fn quantize(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_available() {
        // SAFETY: the instruction set was just found present.
        return unsafe { super::x86::quantize512(from, scale, zero_point, to) };
    } else if Isa::Avx2.is_available() {
        // SAFETY: as above.
        return unsafe { super::x86::quantize256(from, scale, zero_point, to) };
    }
    quantize_here(from, scale, zero_point, to);
}

/// The same with the vectors of the code around it.
#[inline(always)]
pub(super) fn quantize_here(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
    let (inverse, zero) = (1.0 / scale, f32::from(zero_point));
    for (to, from) in to.iter_mut().zip(from) {
        *to = saturated((from * inverse).round_ties_even() + zero);
    }
}

/// uint8 as reals: `scale * (q - zero_point)`.
///
/// # Panics
/// Slices of different lengths.
pub fn dequantize(from: &[u8], scale: f32, zero_point: u8, to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "dequantised bytes");
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_available() {
        // SAFETY: the instruction set was just found present.
        return unsafe { super::x86::dequantize512(from, scale, zero_point, to) };
    } else if Isa::Avx2.is_available() {
        // SAFETY: as above.
        return unsafe { super::x86::dequantize256(from, scale, zero_point, to) };
    }
    dequantize_here(from, scale, zero_point, to);
}

/// The same with the vectors of the code around it.
#[inline(always)]
pub(super) fn dequantize_here(from: &[u8], scale: f32, zero_point: u8, to: &mut [f32]) {
    let zero = f32::from(zero_point);
    for (to, from) in to.iter_mut().zip(from) {
        *to = scale * (f32::from(*from) - zero);
    }
}

/// `to[i] = table[from[i]]`.
///
/// # Panics
/// Slices of different lengths.
pub fn look_up(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "looked up bytes");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512vbmi") && Isa::Avx512.is_available() {
        // SAFETY: the instruction set was just found present, and the slices are of one length.
        return unsafe { super::x86::look_up512(table, from, to) };
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to = table[usize::from(*from)];
    }
}

/// A whole number as uint8; NaN gives 0.
#[inline(always)]
#[expect(clippy::manual_clamp, reason = "`clamp` hands NaN on")]
fn saturated(x: f32) -> u8 {
    // SAFETY: `max` makes 0 of NaN, and what is left is between 0 and 255. A checked conversion keeps the compiler
    // from making vector code.
    unsafe { x.max(0.0).min(255.0).to_int_unchecked::<i32>() as u8 }
}
