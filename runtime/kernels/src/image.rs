use std::ops::Range;

use crate::{Isa, KernelError, error::check_length};

/// Reads an 8-bit image into a float map: a factor and an offset a channel, then optionally blocks of pixels folded
/// into channels (ONNX SpaceToDepth: channel `(by * block + bx) * channels + c`), then optionally a channel of ones.
#[derive(Debug, Clone)]
pub struct ImageInput {
    isa: Isa,
    height: usize,
    width: usize,
    channels: usize,
    block: usize,
    ones: bool,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl ImageInput {
    /// An image of `height x width` pixels of `channels`; `block` is 1 where nothing is folded.
    ///
    /// # Errors
    /// Sizes that contradict themselves or the slices, or an instruction set this machine lacks.
    #[expect(clippy::too_many_arguments, reason = "each is one attribute of the input")]
    pub fn new(
        isa: Isa,
        height: usize,
        width: usize,
        channels: usize,
        block: usize,
        ones: bool,
        scale: &[f32],
        shift: &[f32],
    ) -> Result<Self, KernelError> {
        let isa = isa.require()?;
        if height == 0 || width == 0 || channels == 0 || block == 0 {
            return Err(KernelError::Shape(format!(
                "image of {height}x{width}x{channels} in blocks of {block}; none may be 0"
            )));
        }
        if !height.is_multiple_of(block) || !width.is_multiple_of(block) {
            return Err(KernelError::Shape(format!(
                "image of {height}x{width} does not divide into blocks of {block}"
            )));
        }
        check_length("image scale", scale.len(), channels)?;
        check_length("image shift", shift.len(), channels)?;
        Ok(Self {
            isa,
            height,
            width,
            channels,
            block,
            ones,
            scale: scale.to_vec(),
            shift: shift.to_vec(),
        })
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Height, width and channels of the map.
    pub fn out_shape(&self) -> [usize; 3] {
        let channels = self.channels * self.block * self.block + usize::from(self.ones);
        [self.height / self.block, self.width / self.block, channels]
    }

    /// Computes rows `rows` of the map into `dst` from the whole image `[height, width, channels]`.
    ///
    /// # Panics
    /// A slice that does not fit the shape.
    pub fn run(&self, image: &[u8], dst: &mut [f32], rows: Range<usize>) {
        let [height, width, out_channels] = self.out_shape();
        assert_eq!(image.len(), self.height * self.width * self.channels, "image");
        assert!(rows.start <= rows.end && rows.end <= height, "rows {rows:?} of {height}");
        assert_eq!(
            dst.len(),
            rows.len() * width * out_channels,
            "destination: not the rows being computed"
        );
        let run = self.block * self.channels;
        for (i, pixel) in dst.chunks_exact_mut(out_channels).enumerate() {
            let (y, x) = (rows.start + i / width, i % width);
            let (folded, ones) = pixel.split_at_mut(out_channels - usize::from(self.ones));
            for (by, part) in folded.chunks_exact_mut(run).enumerate() {
                let from = ((y * self.block + by) * self.width + x * self.block) * self.channels;
                for (j, (v, p)) in part.iter_mut().zip(&image[from..from + run]).enumerate() {
                    let c = j % self.channels;
                    *v = f32::from(*p) * self.scale[c] + self.shift[c];
                }
            }
            ones.fill(1.0);
        }
    }
}
