//! `verify`: this crate's numbers against a directory of reference tensors.
//!
//! A directory holds `config.json`, `weights.safetensors` and the reference inputs, outputs and
//! gradients. [`edm2`] checks the diffusion model, [`fusion`] the head; what a directory is for is
//! decided by the keys of its configuration.

pub mod edm2;
pub mod fusion;
mod report;

use std::path::{Path, PathBuf};

pub use report::{Kind, Report};

use crate::diffusion::FeatureMode;
use crate::train::device::DeviceName;
use crate::{Error, Result};

/// Arguments of `diffbulk-train verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with config.json, weights.safetensors, io.safetensors and, where gradients are
    /// checked, grads.safetensors
    directory: PathBuf,
    /// How the reference's stage-2 features were computed
    #[arg(long, value_enum, default_value_t = Features::Both)]
    features: Features,
    /// Device to compute on
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

/// Which stage-2 features to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Features {
    /// The denoiser's own forward
    Consistent,
    /// As the released stage-2 code computes them
    Published,
    /// Both
    Both,
}

impl Features {
    /// The modes to check.
    pub fn modes(self) -> &'static [FeatureMode] {
        match self {
            Self::Consistent => &[FeatureMode::Consistent],
            Self::Published => &[FeatureMode::Published],
            Self::Both => &[FeatureMode::Consistent, FeatureMode::Published],
        }
    }
}

/// Runs the command: prints the table and fails where a tolerance is exceeded.
pub fn run(args: &Args) -> Result<()> {
    let report = verify(&args.directory, args.features, args.device)?;
    println!("{report}");
    report.verdict()
}

/// Checks a directory of reference tensors.
pub fn verify(directory: &Path, features: Features, device: DeviceName) -> Result<Report> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let config: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        Error::model(&path, format!("is not JSON: {e}; name a directory of reference tensors"))
    })?;
    let device = device.open()?;
    if config.get("model_channels").is_some() {
        edm2::verify(directory, features, &device)
    } else if config.get("fusion").is_some() {
        fusion::verify(directory, &device)
    } else {
        Err(Error::model(
            &path,
            "describes no model this program can check; a U-Net has 'model_channels', a head \
             'fusion'",
        ))
    }
}
