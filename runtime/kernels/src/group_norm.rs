use crate::{Activation, Isa, KernelError, error::check_length};

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
        mut dst: Option<&mut [f32]>,
        mut mean: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        assert_eq!(src.len(), self.pixels * self.channels, "GroupNorm input");
        assert!(dst.as_ref().is_none_or(|d| d.len() == src.len()), "GroupNorm output");
        assert!(mean.as_ref().is_none_or(|m| m.len() == self.channels), "GroupNorm mean");
        assert!(scratch.len() >= self.scratch_len(), "GroupNorm scratch");
        let size = self.channels / self.groups;
        let count = (self.pixels * size) as f64;
        for group in 0..self.groups {
            let values =
                || src.chunks_exact(self.channels).flat_map(|p| &p[group * size..][..size]);
            let centre = values().map(|v| f64::from(*v)).sum::<f64>() / count;
            let variance = values().map(|v| (f64::from(*v) - centre).powi(2)).sum::<f64>() / count;
            let factor = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for c in group * size..(group + 1) * size {
                let factor = factor as f32 * self.scale[c];
                let offset = self.shift[c] - centre as f32 * factor;
                let mut sum = 0.0f64;
                for pixel in 0..self.pixels {
                    let at = pixel * self.channels + c;
                    let v = self.activation.apply(src[at] * factor + offset);
                    sum += f64::from(v);
                    if let Some(dst) = &mut dst {
                        dst[at] = v;
                    }
                }
                if let Some(mean) = &mut mean {
                    mean[c] = (sum / self.pixels as f64) as f32;
                }
            }
        }
    }
}
