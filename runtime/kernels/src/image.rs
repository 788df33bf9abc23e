#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "pointer arithmetic on slices that ImageInput::run checked"
)]

use std::ops::Range;

use crate::{
    Isa, KernelError,
    error::check_length,
    simd::{self, Kernel, Simd},
};

/// Reads an 8-bit image into a float map: a factor and an offset a channel, then optionally blocks of pixels folded
/// into channels (ONNX SpaceToDepth: channel `(by * block + bx) * channels + c`), then optionally a channel of one
/// value.
#[derive(Debug, Clone)]
pub struct ImageInput {
    isa: Isa,
    height: usize,
    width: usize,
    channels: usize,
    block: usize,
    constant: Option<f32>,
    /// Bytes that lie side by side in the image and in the map.
    run: usize,
    /// Factors and offsets of a run.
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
        constant: Option<f32>,
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
        let run =
            if block == 1 && constant.is_none() { width * channels } else { block * channels };
        let repeat = |values: &[f32]| values.iter().copied().cycle().take(run).collect();
        Ok(Self {
            isa,
            height,
            width,
            channels,
            block,
            constant,
            run,
            scale: repeat(scale),
            shift: repeat(shift),
        })
    }

    /// The instruction set it was prepared for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Height, width and channels of the map.
    pub fn out_shape(&self) -> [usize; 3] {
        let channels =
            self.channels * self.block * self.block + usize::from(self.constant.is_some());
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
        // SAFETY: the image, the rows and the destination were checked against each other.
        unsafe { simd::dispatch(self.isa, Call { op: self, image, dst: dst.as_mut_ptr(), rows }) };
    }
}

struct Call<'a> {
    op: &'a ImageInput,
    image: &'a [u8],
    dst: *mut f32,
    rows: Range<usize>,
}

impl Call<'_> {
    /// Converts the run of bytes that begins at `from`.
    #[inline(always)]
    unsafe fn convert<S: Simd>(&self, from: usize, to: *mut f32) {
        let op = self.op;
        for i in (0..op.run).step_by(S::LANES) {
            let n = S::LANES.min(op.run - i);
            let bytes = if from + i + S::LANES <= self.image.len() {
                S::load_bytes(self.image.as_ptr().add(from + i))
            } else {
                let mut last = [0u8; 16];
                last[..n].copy_from_slice(&self.image[from + i..][..n]);
                S::load_bytes(last.as_ptr())
            };
            let scale = S::load_first(op.scale.as_ptr().add(i), n);
            let shift = S::load_first(op.shift.as_ptr().add(i), n);
            S::store_first(to.add(i), n, S::mul_add(bytes, scale, shift));
        }
    }
}

impl Kernel for Call<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let op = self.op;
        let row_bytes = op.width * op.channels;
        let mut to = self.dst;
        for y in self.rows.clone() {
            if op.block == 1 && op.constant.is_none() {
                self.convert::<S>(y * row_bytes, to);
                to = to.add(op.run);
                continue;
            }
            for x in 0..op.width / op.block {
                for by in 0..op.block {
                    self.convert::<S>((y * op.block + by) * row_bytes + x * op.run, to);
                    to = to.add(op.run);
                }
                if let Some(value) = op.constant {
                    to.write(value);
                    to = to.add(1);
                }
            }
        }
    }
}
