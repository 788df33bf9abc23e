//! How the pixels of a tile become the input of any ONNX image model.

use tract_onnx::prelude::*;

use super::{expect_bytes, tract};
use crate::model::pb::tensor_proto::DataType;
use crate::model::{Dim, OnnxFile};
use crate::{Error, Result};

/// Where a model's input has its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Nhwc,
    Nchw,
}

/// What a float input holds: `(v / 255 - mean) / std` per channel. Inputs of bytes take the
/// pixels as they are.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Normalization {
    /// Mean of red, green and blue on a 0 to 1 scale.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue on a 0 to 1 scale.
    pub std: [f32; 3],
}

impl Default for Normalization {
    fn default() -> Self {
        Self { mean: [0.0; 3], std: [1.0; 3] }
    }
}

/// The image input of a model for one tile.
#[derive(Debug, Clone)]
pub struct Pixels {
    side: usize,
    layout: Layout,
    bytes: bool,
    normalization: Normalization,
}

impl Pixels {
    /// The one input of `file`, for tiles of `side` pixels: uint8 or float32, NHWC or NCHW.
    ///
    /// # Errors
    /// When the file has another kind of input, or one of another side.
    pub fn of(file: &OnnxFile, side: usize, normalization: Normalization) -> Result<Self> {
        let refuse = |problem: String| Error::model(file.path(), problem);
        let inputs = file.inputs()?;
        let [input] = inputs.as_slice() else {
            return Err(refuse(format!("it has {} inputs, not one image", inputs.len())));
        };
        let bytes = input.is(DataType::Uint8);
        if !bytes && !input.is(DataType::Float) {
            return Err(refuse(format!("its input {input} is neither uint8 nor float32")));
        }
        let fits = |dim: &Dim| matches!(dim, Dim::Symbol(_)) || *dim == Dim::Fixed(side);
        let layout = match input.shape.as_deref() {
            Some([_, height, width, Dim::Fixed(3)]) if fits(height) && fits(width) => Layout::Nhwc,
            Some([_, Dim::Fixed(3), height, width]) if fits(height) && fits(width) => Layout::Nchw,
            _ => {
                return Err(refuse(format!(
                    "its input {input} does not take RGB tiles of {side} x {side} px; give tiles \
                     of its own size"
                )));
            }
        };
        if normalization.std.iter().any(|std| !(std.is_finite() && *std > 0.0)) {
            return Err(Error::Request("the std of a channel has to be above 0".into()));
        }
        Ok(Self { side, layout, bytes, normalization })
    }

    /// Side of the tile in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Shape of the input for one tile.
    pub fn shape(&self) -> [usize; 4] {
        match self.layout {
            Layout::Nhwc => [1, self.side, self.side, 3],
            Layout::Nchw => [1, 3, self.side, self.side],
        }
    }

    /// The input tensor of one tile of `side` x `side` x 3 RGB bytes (row-major HWC).
    pub(crate) fn tensor(&self, image: &[u8]) -> Result<Tensor> {
        let plane = self.side * self.side;
        expect_bytes(tract::NAME, image, plane * 3)?;
        let source = |index: usize| match self.layout {
            Layout::Nhwc => index,
            Layout::Nchw => (index % plane) * 3 + index / plane,
        };
        let shape = self.shape();
        if self.bytes {
            let values: Vec<u8> = (0..plane * 3).map(|index| image[source(index)]).collect();
            return Tensor::from_shape(&shape, &values).map_err(tract::failure);
        }
        let Normalization { mean, std } = self.normalization;
        let values: Vec<f32> = (0..plane * 3)
            .map(|index| {
                let at = source(index);
                (f32::from(image[at]) / 255.0 - mean[at % 3]) / std[at % 3]
            })
            .collect();
        Tensor::from_shape(&shape, &values).map_err(tract::failure)
    }
}
