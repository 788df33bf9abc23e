//! `check-export`: an exported file against the modules it was made from.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use clap::Args;
use tract_onnx::prelude::{IntoRunnable, Tensor as Array, TractResult, tvec};

use super::command::PartArguments;
use super::fused::OUTPUT;
use super::{macs, onnx};
use crate::data::PairedDataset;
use crate::diffusion::UNet;
use crate::foundation::Encoder;
use crate::predictor::{Head, Inputs};
use crate::train::device::DeviceName;
use crate::{Error, Result};

/// Largest difference that is allowed, as a share of the largest output.
const TOLERANCE: f32 = 1e-4;

/// Arguments of `check-export`.
#[derive(Debug, Clone, Args)]
pub struct CheckArguments {
    /// Exported model.
    model: PathBuf,
    #[command(flatten)]
    parts: PartArguments,
    /// Stage-2 head directory.
    #[arg(long, value_name = "DIR")]
    head: PathBuf,
    /// Paired dataset whose tiles to predict.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Number of tiles, spread over the dataset.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    tiles: u16,
    /// Device of the trained modules.
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

/// Runs `check-export`; returns what to tell the user.
///
/// # Errors
/// [`Error::Check`] if a value differs by more than 1e-4 of the largest one.
pub fn run(arguments: &CheckArguments) -> Result<String> {
    let dataset = PairedDataset::open(&arguments.data)?;
    if dataset.is_empty() {
        return Err(Error::data(&arguments.data, "holds no tiles to check with"));
    }
    let modules = Modules::load(arguments)?;
    let exported = Exported::load(arguments, dataset.tile_px())?;
    let count = usize::from(arguments.tiles).min(dataset.len());
    let (mut worst, mut largest) = (0.0f32, 0.0f32);
    for index in 0..count {
        let image = dataset.image(index * dataset.len() / count)?;
        let expected = modules.predict(&image, dataset.tile_px())?;
        let found = exported.predict(&image)?;
        if expected.len() != found.len() {
            return Err(Error::Check(format!(
                "{} predicts {} genes and the head {}; export it again",
                arguments.model.display(),
                found.len(),
                expected.len()
            )));
        }
        for (a, b) in expected.iter().zip(&found) {
            // A NaN on either side must not compare as agreement.
            let difference = (a - b).abs();
            worst = if difference.is_nan() { f32::INFINITY } else { worst.max(difference) };
            largest = largest.max(a.abs());
        }
    }
    let share = worst / largest.max(f32::MIN_POSITIVE);
    let message = format!(
        "{}: {count} tiles, largest difference {share:.1e} of the largest output {largest:.3}",
        arguments.model.display()
    );
    if share <= TOLERANCE {
        Ok(message)
    } else {
        Err(Error::Check(format!("{message}, more than {TOLERANCE:.0e}; export it again")))
    }
}

/// The trained modules themselves.
struct Modules {
    unet: Option<UNet>,
    encoder: Option<Encoder>,
    head: Head,
    arguments: PartArguments,
    device: burn::tensor::Device,
}

impl Modules {
    fn load(arguments: &CheckArguments) -> Result<Self> {
        let device = arguments.device.open()?;
        let parts = arguments.parts.clone();
        let head = Head::load(&arguments.head, &device)?;
        let (diffusion, foundation) =
            (!head.config().branch_channels.is_empty(), head.config().foundation_dim > 0);
        let unet = parts.unet.as_ref().filter(|_| diffusion);
        let encoder = parts.encoder.as_ref().filter(|_| foundation);
        Ok(Self {
            unet: unet.map(|path| UNet::load(path, &device)).transpose()?,
            encoder: encoder.map(|path| Encoder::open(path, &parts.encoder_flags)).transpose()?,
            head,
            arguments: parts,
            device,
        })
    }

    fn predict(&self, image: &[u8], side: usize) -> Result<Vec<f32>> {
        let maps = match &self.unet {
            Some(unet) => {
                let mut planes = vec![0.0f32; image.len()];
                for (position, pixel) in image.chunks_exact(3).enumerate() {
                    for (channel, &value) in pixel.iter().enumerate() {
                        planes[channel * side * side + position] = f32::from(value) / 127.5 - 1.0;
                    }
                }
                let shape = [1, 3, side, side].to_vec();
                let x0 = Tensor::<4>::from_data(TensorData::new(planes, shape), &self.device);
                let mode = self.arguments.feature_mode.into();
                unet.features_with(x0, mode, unet.config().feature_sigma)
            }
            None => Vec::new(),
        };
        let foundation = match &self.encoder {
            Some(encoder) => {
                let features = encoder.session()?.encode(image, side)?;
                let shape = vec![1, features.len()];
                Some(Tensor::<2>::from_data(TensorData::new(features, shape), &self.device))
            }
            None => None,
        };
        let expression = self.head.forward(&Inputs { maps, foundation }).ok_or_else(|| {
            Error::Request(
                "the head needs features that no --unet or --encoder gives; name both".to_owned(),
            )
        })?;
        expression
            .into_data()
            .convert::<f32>()
            .try_into_vec::<f32>()
            .map_err(|error| Error::Check(format!("the head's output cannot be read: {error:?}")))
    }
}

/// The exported file.
struct Exported {
    run: Box<dyn Fn(Array) -> TractResult<Vec<f32>>>,
    path: PathBuf,
    side: usize,
}

impl Exported {
    fn load(arguments: &CheckArguments, side: usize) -> Result<Self> {
        let path = arguments.model.clone();
        let model = onnx::read(&path)?;
        let runnable = macs::typed(&model)
            .and_then(|model| model.into_optimized()?.into_runnable())
            .map_err(|error| Error::model(&path, format!("cannot be run: {error:#}")))?;
        let run = move |image: Array| {
            let outputs = runnable.run(tvec!(image.into()))?;
            let values = outputs[0].to_plain_array_view::<f32>()?.iter().copied().collect();
            Ok(values)
        };
        Ok(Self { run: Box::new(run), path, side })
    }

    fn predict(&self, image: &[u8]) -> Result<Vec<f32>> {
        Array::from_shape(&[1, self.side, self.side, 3], image)
            .and_then(|image| (self.run)(image))
            .map_err(|error| {
                Error::model(&self.path, format!("does not give its {OUTPUT}: {error:#}"))
            })
    }
}
