//! An image encoder in an ONNX file, and what must be known to feed it.

use std::path::{Path, PathBuf};

use diffbulk::engine::{Runner, RunnerSession};
use diffbulk::model::{Dim, OnnxFile};
use serde::{Deserialize, Serialize};

use super::preprocess::{normalise, resize_bilinear};
use crate::{Error, Result};

/// Key of [`EncoderInfo`] in the `metadata_props` of an encoder's ONNX file.
pub const METADATA_KEY: &str = "diffbulk.encoder";

/// Mean and standard deviation of ImageNet's channels on the scale 0 to 1.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// What must be known to feed an encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderInfo {
    /// Name, for example `efficientnet-lite0 (ImageNet)`.
    pub name: String,
    /// Licence of its weights.
    pub license: String,
    /// Side of its input in pixels.
    pub input_px: usize,
    /// Mean of R, G and B on the scale 0 to 1, taken off first.
    pub mean: [f32; 3],
    /// What R, G and B are divided by then.
    pub std: [f32; 3],
}

/// What the user says about an encoder; stands over what its file says.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EncoderFlags {
    /// Side of the encoder's input in pixels [default: what its file says]
    #[arg(long = "encoder-px", value_name = "PX")]
    pub input_px: Option<usize>,
    /// Mean of R, G and B on the scale 0 to 1 [default: what its file says, else ImageNet's]
    #[arg(long = "encoder-mean", value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of R, G and B [default: what its file says, else ImageNet's]
    #[arg(long = "encoder-std", value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    pub std: Option<Vec<f32>>,
    /// Licence of the encoder's weights, kept in the model [default: what its file says]
    #[arg(long = "encoder-license", value_name = "TEXT")]
    pub license: Option<String>,
}

/// A frozen image encoder: float32 [1, 3, S, S] in, [1, F] out.
#[derive(Debug)]
pub struct Encoder {
    path: PathBuf,
    info: EncoderInfo,
    sha256: String,
    runner: Runner,
    features: usize,
}

impl Encoder {
    /// Opens the ONNX file at `path`. What is not in `flags` comes from its metadata under
    /// [`METADATA_KEY`], else from the declared input shape and ImageNet's statistics.
    pub fn open(path: &Path, flags: &EncoderFlags) -> Result<Self> {
        let file = OnnxFile::open(path)?;
        let info = describe(&file, flags)?;
        let runner = Runner::new(&file, &[1, 3, info.input_px, info.input_px], None)?;
        let features = match *runner.output_shape() {
            [1, features] | [1, features, 1, 1] if features > 0 => features,
            ref shape => {
                return Err(Error::model(
                    path,
                    format!(
                        "gives an output of shape {shape:?} for one image; an encoder gives one \
                         vector [1, F] (pool or choose a token inside the graph)"
                    ),
                ));
            }
        };
        Ok(Self { path: path.to_owned(), info, sha256: file.sha256().to_owned(), runner, features })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known about it.
    pub fn info(&self) -> &EncoderInfo {
        &self.info
    }

    /// SHA-256 of the file, hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Number of features F.
    pub fn features(&self) -> usize {
        self.features
    }

    /// A session for one thread.
    pub fn session(&self) -> Result<EncoderSession<'_>> {
        Ok(EncoderSession { encoder: self, session: self.runner.session()? })
    }

    /// What makes its features other ones than those of the same file: the preprocessing.
    pub(super) fn settings(&self) -> String {
        let EncoderInfo { input_px, mean, std, .. } = &self.info;
        format!("{input_px} {mean:?} {std:?}")
    }
}

/// One thread's running state of an [`Encoder`].
pub struct EncoderSession<'a> {
    encoder: &'a Encoder,
    session: RunnerSession,
}

impl EncoderSession<'_> {
    /// Features of the tile `image`, `size` x `size` x 3 RGB bytes.
    pub fn encode(&mut self, image: &[u8], size: usize) -> Result<Vec<f32>> {
        let info = &self.encoder.info;
        let pixels = resize_bilinear(image, size, info.input_px);
        Ok(self.session.run(&normalise(&pixels, info.mean, info.std))?)
    }
}

/// Gathers what is known about the encoder in `file`.
fn describe(file: &OnnxFile, flags: &EncoderFlags) -> Result<EncoderInfo> {
    let path = file.path();
    let told: Option<EncoderInfo> = match file.prop(METADATA_KEY) {
        Some(text) => Some(serde_json::from_str(text).map_err(|error| {
            Error::model(path, format!("its metadata `{METADATA_KEY}` cannot be read ({error})"))
        })?),
        None => None,
    };
    let declared = match file.inputs()?.first().and_then(|input| input.shape.clone()) {
        Some(shape) => match shape[..] {
            [_, _, Dim::Fixed(height), Dim::Fixed(width)] if height == width => Some(height),
            _ => None,
        },
        None => None,
    };
    let input_px = flags.input_px.or(told.as_ref().map(|info| info.input_px)).or(declared);
    let Some(input_px) = input_px.filter(|px| (1..=4096).contains(px)) else {
        return Err(Error::model(
            path,
            "does not tell the side of its input; give it with --encoder-px (for example 224)",
        ));
    };
    let three = |flag: &str, given: &Option<Vec<f32>>, otherwise: [f32; 3]| match given {
        None => Ok(otherwise),
        Some(values) => <[f32; 3]>::try_from(values.as_slice())
            .map_err(|_| Error::Request(format!("{flag} takes three numbers, R,G,B"))),
    };
    let mean = told.as_ref().map_or(IMAGENET.0, |info| info.mean);
    let std = told.as_ref().map_or(IMAGENET.1, |info| info.std);
    let (mean, std) =
        (three("--encoder-mean", &flags.mean, mean)?, three("--encoder-std", &flags.std, std)?);
    if !mean.iter().all(|v| v.is_finite()) || !std.iter().all(|v| v.is_finite() && *v > 0.0) {
        return Err(Error::model(
            path,
            format!("is normalised with mean {mean:?} and std {std:?}; std must be above zero"),
        ));
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let (name, license) = told.map_or((None, None), |info| (Some(info.name), Some(info.license)));
    Ok(EncoderInfo {
        name: name.or(stem).unwrap_or_else(|| "encoder".into()),
        license: flags.license.clone().or(license).unwrap_or_else(|| "not stated".into()),
        input_px,
        mean,
        std,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn encodes_with_the_preprocessing_of_its_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mean.onnx");
        let info = EncoderInfo {
            name: "mean colour".into(),
            license: "CC0-1.0".into(),
            input_px: 4,
            mean: [0.5, 0.0, 0.0],
            std: [0.5, 1.0, 2.0],
        };
        testing::write_mean_colour(&path, Some(&info), 4);
        let encoder = Encoder::open(&path, &EncoderFlags::default()).unwrap();
        assert_eq!((encoder.info(), encoder.features()), (&info, 3));
        // A tile of 8 px is resized to the encoder's 4.
        let tile: Vec<u8> = (0..64).flat_map(|_| [255, 51, 255]).collect();
        let features = encoder.session().unwrap().encode(&tile, 8).unwrap();
        for (a, b) in features.iter().zip([1.0, 0.2, 0.5]) {
            assert!((a - b).abs() < 1e-5, "{features:?}");
        }
    }

    #[test]
    fn without_metadata_the_shape_and_imagenet_stand_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.onnx");
        testing::write_mean_colour(&path, None, 6);
        let encoder = Encoder::open(&path, &EncoderFlags::default()).unwrap();
        assert_eq!(encoder.info().name, "other");
        assert_eq!((encoder.info().input_px, encoder.info().mean), (6, IMAGENET.0));
        let flags = EncoderFlags { mean: Some(vec![0.0; 3]), ..Default::default() };
        assert_eq!(Encoder::open(&path, &flags).unwrap().info().mean, [0.0; 3]);
        let flags = EncoderFlags { std: Some(vec![0.0; 3]), ..Default::default() };
        assert!(Encoder::open(&path, &flags).is_err());
    }

    #[test]
    fn a_file_that_is_no_encoder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.onnx");
        std::fs::write(&path, "no model").unwrap();
        let error = Encoder::open(&path, &EncoderFlags::default()).unwrap_err().to_string();
        assert!(error.contains("text.onnx"), "{error}");
        testing::write_identity(&path, 4);
        let error = Encoder::open(&path, &EncoderFlags::default()).unwrap_err().to_string();
        assert!(error.contains("[1, F]"), "{error}");
    }
}
