//! What is asked of a quantisation, and carrying it out on a model in memory.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use diffbulk::engine::{Normalization, Pixels};
use diffbulk::model::pb::ModelProto;
use serde::Serialize;
use serde_json::json;

use super::calibrate::CalibratorName;
use super::job::Job;
use super::material::Material;
use super::measure::{Measured, Reference};
use super::observe::Tiles;
use super::sensitivity::Budget;
use super::{graph, split};
use crate::{Error, Result};

/// Version of the recipe as it stands in metadata.
const RECIPE_VERSION: u32 = 1;

/// `--precision` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As trained.
    #[default]
    Float32,
    /// float16 weights and activations, with float32 islands.
    Float16,
    /// int8 weights and uint8 activations in convolutions, int8 weights in the head.
    Int8,
    /// int8 where each layer's loss allows it, within `--max-drop`.
    Mixed,
    /// int8 weights in blocks, float32 activations.
    W8,
    /// 4-bit weights in blocks, float32 activations.
    W4,
}

impl Precision {
    /// The loss that is allowed unless the user says otherwise.
    fn max_drop(self) -> f64 {
        match self {
            Self::Float32 => 0.0,
            Self::Float16 => 0.001,
            Self::Int8 | Self::Mixed | Self::W8 => 0.005,
            Self::W4 => 0.02,
        }
    }

    /// Whether its weights are rounded to integers.
    fn rounds_weights(self) -> bool {
        !matches!(self, Self::Float32 | Self::Float16)
    }

    /// Name in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Int8 => "int8",
            Self::Mixed => "mixed int8",
            Self::W8 => "int8 weights",
            Self::W4 => "int4 weights",
        }
    }
}

/// `--form` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Form {
    /// Quantise and dequantise nodes around float operators.
    #[default]
    Qdq,
    /// `QLinearConv` and `QLinearMatMul`.
    Qlinear,
}

/// `--rounding` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each weight to the nearest integer.
    Nearest,
    /// Weights of a row together, so that its output moves least on the calibration tiles.
    Adaptive,
}

/// How to quantise.
#[derive(Debug, Clone, clap::Args)]
pub struct QuantizeFlags {
    /// Paired dataset that `prepare` wrote, to calibrate and to measure on
    #[arg(long = "data", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Take tiles of these slides only; name the training slides
    #[arg(long = "calibration-slides", value_name = "NAMES", value_delimiter = ',')]
    pub slides: Vec<String>,
    /// Tiles to calibrate on
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub calibration_tiles: u16,
    /// Tiles to measure the loss on, others than those
    #[arg(long, value_name = "N", default_value_t = 192,
          value_parser = clap::value_parser!(u16).range(2..))]
    pub measured_tiles: u16,
    /// How ranges of activations are chosen
    #[arg(long, value_enum, default_value_t)]
    pub calibrator: CalibratorName,
    /// Bits of int8 weights: 8, or 7 for CPUs without a dot-product instruction
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(7..=8))]
    pub weight_bits: u8,
    /// Operators of int8 layers in the file
    #[arg(long, value_enum, default_value_t)]
    pub form: Form,
    /// Keep the outputs of int8 layers in float32 (QDQ only)
    #[arg(long)]
    pub float_outputs: bool,
    /// How weights are rounded [default: nearest, and adaptive where that loses more than allowed]
    #[arg(long, value_enum)]
    pub rounding: Option<Rounding>,
    /// Leave biases as they are
    #[arg(long)]
    pub no_bias_correction: bool,
    /// Take the sides of a concatenation apart where their ranges differ by more than this factor
    #[arg(long, value_name = "FACTOR", default_value_t = split::APART)]
    pub split_above: f32,
    /// Quantise matrix products (the head) like convolutions, not their weights only; with mixed
    /// precision those that are measured harmless
    #[arg(long)]
    pub int8_head: bool,
    /// Keep layers whose name contains one of these in float32
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    pub keep: Vec<String>,
    /// Refuse to write a model that loses more [default: 0.001 for float16, 0.005 for int8, mixed
    /// and w8, 0.02 for w4]
    #[arg(long, value_name = "PEARSON")]
    pub max_drop: Option<f64>,
    /// Refuse to write a model with a lower signal to noise ratio
    #[arg(long, value_name = "DB", default_value_t = 10.0)]
    pub min_sqnr: f64,
    /// Write it all the same
    #[arg(long)]
    pub force: bool,
    /// Seed of the choice of tiles
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub quantize_seed: u64,
    /// Mean of red, green and blue (0 to 1) that a model with a float input expects taken off
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    pub mean: Vec<f32>,
    /// Standard deviation of red, green and blue that it expects divided by
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    pub std: Vec<f32>,
}

/// A quantised model and what is known of it.
#[derive(Debug)]
pub struct Quantized {
    /// The model, its metadata as before.
    pub model: ModelProto,
    /// How it was made and measured, for the metadata.
    pub recipe: serde_json::Value,
    /// How far it is from float32.
    pub measured: Measured,
}

/// Quantises `model`; `panel` names its outputs, where they are genes; `origin` names it in
/// errors.
///
/// # Errors
/// [`Error::Check`] when the result loses more than allowed and `force` is not set.
pub fn quantize(
    model: &ModelProto,
    precision: Precision,
    flags: &QuantizeFlags,
    panel: &[String],
    origin: &Path,
) -> Result<Quantized> {
    let data = flags.data.as_ref().ok_or_else(|| {
        Error::Request(format!(
            "{} needs tiles to calibrate and measure on; name a dataset with --data DIR",
            precision.name()
        ))
    })?;
    let material = Material::open(data, flags, panel)?;
    let file = graph::file(model, origin)?;
    let pixels = Pixels::of(&file, material.tile_px, normalization(flags)?)?;
    let tiles = |images| Tiles { images, pixels: &pixels, origin };
    let (calibration, measured) = (tiles(&material.calibration), tiles(&material.measured));
    let reference = Reference::new(model, measured, material.truth)?;
    let budget = Budget {
        max_drop: flags.max_drop.unwrap_or(precision.max_drop()),
        min_sqnr_db: flags.min_sqnr,
    };
    let job = Job { model, flags, calibration, measured, reference: &reference, budget };
    let make = |rounding| -> Result<(ModelProto, serde_json::Value, Measured)> {
        let (model, details) = job.run(precision, rounding)?;
        let result = reference.measure(&model, measured)?;
        Ok((model, details, result))
    };
    let mut rounding = flags.rounding.unwrap_or(Rounding::Nearest);
    let (mut model, mut details, mut result) = make(rounding)?;
    if !budget.allows(&result) && flags.rounding.is_none() && precision.rounds_weights() {
        let again = make(Rounding::Adaptive)?;
        if budget.allows(&again.2) || again.2.sqnr_db > result.sqnr_db {
            (model, details, result) = again;
            rounding = Rounding::Adaptive;
        }
    }
    if !budget.allows(&result) && !flags.force {
        return Err(Error::Check(format!(
            "as {} the model loses {:.4} ({}) at {:.1} dB, and {:.4} at {:.1} dB is allowed; try \
             another --calibrator, more --calibration-tiles, --precision mixed, or --keep a layer \
             whose weights differ widely; raise --max-drop, or say --force",
            precision.name(),
            result.drop,
            what_drops(&reference),
            result.sqnr_db,
            budget.max_drop,
            budget.min_sqnr_db
        )));
    }
    let recipe = json!({
        "version": RECIPE_VERSION,
        "precision": precision,
        "calibration": {
            "dataset": material.dataset,
            "slides": material.slides,
            "tiles": material.calibration.len(),
            "seed": flags.quantize_seed,
            "sha256": material.sha256,
            "calibrator": flags.calibrator,
        },
        "rounding": precision.rounds_weights().then_some(rounding),
        "details": details,
        "measured": {
            "tiles": result.tiles,
            "drop_of": what_drops(&reference),
            "drop": result.drop,
            "sqnr_db": result.sqnr_db,
            "bound": { "max_drop": budget.max_drop, "min_sqnr_db": budget.min_sqnr_db,
                       "forced": flags.force },
        },
    });
    Ok(Quantized { model, recipe, measured: result })
}

fn what_drops(reference: &Reference) -> &'static str {
    match reference.has_truth() {
        true => "mean per-gene Pearson with measured expression, training tiles",
        false => "1 - mean correlation of outputs with float32, training tiles",
    }
}

fn normalization(flags: &QuantizeFlags) -> Result<Normalization> {
    let triple = |values: &[f32], default: [f32; 3]| match values {
        [] => Ok(default),
        [r, g, b] => Ok([*r, *g, *b]),
        _ => Err(Error::Request("give three numbers, for red, green and blue".into())),
    };
    Ok(Normalization { mean: triple(&flags.mean, [0.0; 3])?, std: triple(&flags.std, [1.0; 3])? })
}
