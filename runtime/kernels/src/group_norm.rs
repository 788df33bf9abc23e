#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic on slices that GroupNorm::run checked"
)]

use crate::{
    Activation, Isa, KernelError,
    error::check_length,
    math::VectorActivation,
    pool::Moments,
    simd::{self, Kernel, Simd},
};

/// GroupNorm over a map, with its per-channel factor and offset, an activation, and the mean over the map's pixels.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    isa: Isa,
    pixels: usize,
    channels: usize,
    groups: usize,
    eps: f32,
    scale: Vec<f32>,
    shift: Vec<f32>,
    activation: Activation,
}

impl GroupNorm {
    /// Channels are normalised in `groups` equal runs over all `pixels` (biased variance, `eps` added to it), then
    /// scaled and shifted by channel, then activated.
    ///
    /// # Errors
    /// Sizes that contradict themselves or the slices, or an instruction set this machine lacks.
    #[expect(clippy::too_many_arguments, reason = "each is one attribute of the layer")]
    pub fn new(
        isa: Isa,
        pixels: usize,
        channels: usize,
        groups: usize,
        eps: f32,
        scale: &[f32],
        shift: &[f32],
        activation: Activation,
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        if pixels == 0 || channels == 0 || groups == 0 || !channels.is_multiple_of(groups) {
            return Err(KernelError::Shape(format!(
                "GroupNorm of {pixels} pixels, {channels} channels in {groups} groups; the groups must divide the channels"
            )));
        }
        check_length("GroupNorm scale", scale.len(), channels)?;
        check_length("GroupNorm shift", shift.len(), channels)?;
        Ok(Self {
            isa,
            pixels,
            channels,
            groups,
            eps,
            scale: scale.to_vec(),
            shift: shift.to_vec(),
            activation,
        })
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Floats of scratch a call needs.
    pub fn scratch_len(&self) -> usize {
        2 * self.channels
    }

    /// Normalises `src`, `[pixels, channels]`, into `dst` of the same shape if there is one, and writes the mean over
    /// pixels of the result, `[channels]`, to `mean` if there is one. Statistics are of the whole map, so one call
    /// does all of it.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(
        &self,
        src: &[f32],
        dst: Option<&mut [f32]>,
        mean: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        assert_eq!(src.len(), self.pixels * self.channels, "GroupNorm input");
        assert!(dst.as_ref().is_none_or(|d| d.len() == src.len()), "GroupNorm output");
        assert!(mean.as_ref().is_none_or(|m| m.len() == self.channels), "GroupNorm mean");
        assert!(scratch.len() >= self.scratch_len(), "GroupNorm scratch");
        let (centres, variances) = scratch.split_at_mut(self.channels);
        let variances = &mut variances[..self.channels];
        let moments = Moments {
            src,
            stride: self.channels,
            channels: 0..self.channels,
            mean: centres,
            variance: Some(variances),
        };
        // SAFETY: slices whose lengths were checked.
        unsafe { simd::dispatch(self.isa, moments) };
        // A group's variance is the mean of its channels' variances and of their means' squared distances.
        let size = self.channels / self.groups;
        for group in 0..self.groups {
            let channels = group * size..(group + 1) * size;
            let centre =
                centres[channels.clone()].iter().map(|v| f64::from(*v)).sum::<f64>() / size as f64;
            let variance = channels
                .clone()
                .map(|c| f64::from(variances[c]) + (f64::from(centres[c]) - centre).powi(2))
                .sum::<f64>()
                / size as f64;
            let factor = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for c in channels {
                let factor = factor * f64::from(self.scale[c]);
                centres[c] = (f64::from(self.shift[c]) - centre * factor) as f32;
                variances[c] = factor as f32;
            }
        }
        let apply = Apply {
            src,
            channels: self.channels,
            factor: variances,
            offset: centres,
            activation: self.activation.into(),
            dst: dst.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
            mean: mean.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        };
        // SAFETY: slices whose lengths were checked.
        unsafe { simd::dispatch(self.isa, apply) };
    }
}

struct Apply<'a> {
    src: &'a [f32],
    channels: usize,
    factor: &'a [f32],
    offset: &'a [f32],
    activation: VectorActivation,
    /// As long as `src`, or null.
    dst: *mut f32,
    /// `channels` floats, or null.
    mean: *mut f32,
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let pixels = self.src.len() / self.channels;
        for c in (0..self.channels).step_by(S::LANES) {
            let n = S::LANES.min(self.channels - c);
            let factor = S::load_first(self.factor.as_ptr().add(c), n);
            let offset = S::load_first(self.offset.as_ptr().add(c), n);
            let mut total = S::zero();
            // Sums of runs, so that rounding grows with the square root of the map's size.
            for start in (0..pixels).step_by(64) {
                let mut sum = S::zero();
                for p in start..pixels.min(start + 64) {
                    let at = p * self.channels + c;
                    let v = S::mul_add(S::load_first(self.src.as_ptr().add(at), n), factor, offset);
                    let v = self.activation.apply::<S>(v);
                    if !self.dst.is_null() {
                        S::store_first(self.dst.add(at), n, v);
                    }
                    sum = S::add(sum, v);
                }
                total = S::add(total, sum);
            }
            if !self.mean.is_null() {
                S::store_first(self.mean.add(c), n, S::mul(total, S::splat(1.0 / pixels as f32)));
            }
        }
    }
}
