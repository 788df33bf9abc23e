//! What is asked of a quantisation, and carrying it out on a model in memory.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use diffbulk::engine::{Normalization, Pixels};
use diffbulk::model::pb::ModelProto;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::calibrate::CalibratorName;
use super::graph::{self, Kind, Layer};
use super::half::{self, Islands};
use super::measure::{Measured, Reference, Truth};
use super::observe::Tiles;
use super::sensitivity::{self, Assignment, Budget};
use super::table::{Calibration, LayerPrecision, Settings};
use super::{qdq, qlinear, split, weight_only};
use crate::data::PairedDataset;
use crate::train::random::Stream;
use crate::{Error, Result};

/// Version of the recipe as it stands in metadata.
const RECIPE_VERSION: u32 = 1;

/// float16 stays as it is above this signal to noise ratio; below, operators become islands.
const HALF_TARGET_DB: f64 = 50.0;

/// Tiles on which single layers and operators are compared.
const PROBING_TILES: usize = 16;

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
    /// Leave biases as they are
    #[arg(long)]
    pub no_bias_correction: bool,
    /// Take the sides of a concatenation apart where their ranges differ by more than this factor
    #[arg(long, value_name = "FACTOR", default_value_t = split::APART)]
    pub split_above: f32,
    /// Quantise matrix products (the head) like convolutions, not their weights only
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
    let job = Job { model, flags, calibration, measured, reference: &reference };
    let (model, details) = match precision {
        Precision::Float32 => (model.clone(), json!({})),
        Precision::Float16 => job.float16()?,
        Precision::W8 => (job.weight_only(8)?, json!({ "block": weight_only::BLOCK })),
        Precision::W4 => (job.weight_only(4)?, json!({ "block": weight_only::BLOCK })),
        Precision::Int8 => job.int8(false)?,
        Precision::Mixed => job.int8(true)?,
    };
    let result = reference.measure(&model, measured)?;
    let budget = job.budget(precision);
    if !budget.allows(&result) && !flags.force {
        return Err(Error::Check(format!(
            "as {} the model loses {:.4} ({}) at {:.1} dB, and {:.4} at {:.1} dB is allowed; try \
             another --calibrator, more --calibration-tiles or --precision mixed, raise \
             --max-drop, or say --force",
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

/// Tiles to calibrate and to measure on.
struct Material {
    dataset: String,
    slides: Vec<String>,
    tile_px: usize,
    calibration: Vec<Vec<u8>>,
    /// SHA-256 of the calibration tiles' pixels, in order.
    sha256: String,
    measured: Vec<Vec<u8>>,
    truth: Option<Truth>,
}

impl Material {
    fn open(data: &Path, flags: &QuantizeFlags, panel: &[String]) -> Result<Self> {
        let dataset = PairedDataset::open(data)?;
        let slides = dataset.slides();
        if let Some(unknown) = flags.slides.iter().find(|slide| !slides.contains(slide)) {
            return Err(Error::Request(format!(
                "the dataset has no slide {unknown}, only {}",
                slides.join(", ")
            )));
        }
        let chosen =
            |slide: &str| flags.slides.is_empty() || flags.slides.iter().any(|s| s == slide);
        let mut rows = dataset.rows_where(|slide, _| chosen(slide));
        if rows.len() < 2 {
            return Err(Error::data(data, "has fewer than two tiles to calibrate and measure on"));
        }
        let mut stream = Stream::keyed(flags.quantize_seed, &[0x7175_616e]);
        for last in (1..rows.len()).rev() {
            rows.swap(last, stream.below(last + 1));
        }
        // Small datasets are halved, so that nothing is measured on what it was calibrated on.
        let count = usize::from(flags.calibration_tiles).min(rows.len() / 2);
        let (calibration, rest) = rows.split_at(count);
        let measured = &rest[..rest.len().min(usize::from(flags.measured_tiles))];
        let images = |rows: &[usize]| -> Result<Vec<Vec<u8>>> {
            rows.iter().map(|&row| dataset.image(row)).collect()
        };
        let calibration = images(calibration)?;
        let mut hash = Sha256::new();
        calibration.iter().for_each(|image| hash.update(image));
        let genes: Option<Vec<usize>> = panel.iter().map(|gene| dataset.gene_index(gene)).collect();
        let truth = genes.filter(|genes| !genes.is_empty()).map(|genes| Truth {
            values: dataset
                .expression_matrix(measured, &genes)
                .chunks_exact(genes.len())
                .map(<[f32]>::to_vec)
                .collect(),
            slides: measured.iter().map(|&row| dataset.slide(row).to_owned()).collect(),
        });
        Ok(Self {
            dataset: dataset.manifest().name.clone(),
            slides: slides.into_iter().filter(|slide| chosen(slide)).collect(),
            tile_px: dataset.tile_px(),
            sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            calibration,
            measured: images(measured)?,
            truth,
        })
    }
}

struct Job<'a> {
    model: &'a ModelProto,
    flags: &'a QuantizeFlags,
    calibration: Tiles<'a>,
    measured: Tiles<'a>,
    reference: &'a Reference,
}

impl Job<'_> {
    fn budget(&self, precision: Precision) -> Budget {
        Budget {
            max_drop: self.flags.max_drop.unwrap_or(precision.max_drop()),
            min_sqnr_db: self.flags.min_sqnr,
        }
    }

    fn kept(&self, layer: &Layer) -> bool {
        self.flags.keep.iter().any(|text| layer.name.contains(text))
    }

    fn weight_only(&self, bits: u8) -> Result<ModelProto> {
        let layers = graph::layers(graph::graph(self.model)?);
        let layers: Vec<Layer> = layers.into_iter().filter(|layer| !self.kept(layer)).collect();
        weight_only::write(self.model, &layers, bits)
    }

    /// Everything in float16 but what goes out of range; then operators become islands, the best
    /// first, until the noise is low enough.
    fn float16(&self) -> Result<(ModelProto, serde_json::Value)> {
        let places = half::out_of_range(self.model, self.calibration)?;
        let probing = self.calibration.first(PROBING_TILES);
        let reference = Reference::new(self.model, probing, None)?;
        let noise = |islands: &Islands| -> Result<f64> {
            let model = half::write(self.model, islands, &places)?;
            // An operator that cannot run in float16 is as bad as one that gives nonsense.
            Ok(reference.measure(&model, probing).map_or(f64::NEG_INFINITY, |m| m.sqnr_db))
        };
        let mut islands = Islands::new();
        let mut best = noise(&islands)?;
        let mut steps = vec![json!({ "islands": [], "sqnr_db": best })];
        let operators = half::operators(self.model)?;
        while best < HALF_TARGET_DB && islands.len() < operators.len() {
            let mut found: Option<(f64, String)> = None;
            for operator in operators.difference(&islands) {
                let mut more = islands.clone();
                more.insert(operator.clone());
                let db = noise(&more)?;
                if found.as_ref().is_none_or(|(most, _)| db > *most) {
                    found = Some((db, operator.clone()));
                }
            }
            let Some((db, operator)) = found else { break };
            islands.insert(operator);
            best = db;
            steps.push(json!({ "islands": islands, "sqnr_db": db }));
        }
        let model = half::write(self.model, &islands, &places)?;
        let graph = graph::graph(self.model)?;
        let places: Vec<&str> =
            places.iter().map(|&place| graph.node[place].name.as_str()).collect();
        Ok((
            model,
            json!({ "float32_operators": islands, "float32_nodes": places,
                           "search": steps }),
        ))
    }

    fn int8(&self, mixed: bool) -> Result<(ModelProto, serde_json::Value)> {
        let flags = self.flags;
        let (model, split) = split::split(self.model, self.calibration, flags.split_above)?;
        let graph = graph::graph(&model)?;
        let layers = graph::layers(graph);
        if layers.is_empty() {
            return Err(Error::Request(
                "the model has no convolution or matrix product with constant weights".into(),
            ));
        }
        let calibrator = flags.calibrator.open();
        let calibration = Calibration::of(&model, &layers, self.calibration, &*calibrator)?;
        let settings = Settings {
            weight_bits: flags.weight_bits,
            integer_outputs: !flags.float_outputs || flags.form == Form::Qlinear,
            bias_correction: !flags.no_bias_correction,
        };
        let default = |layer: &Layer| match layer.kind {
            _ if self.kept(layer) => LayerPrecision::Float,
            Kind::Gemm if flags.form == Form::Qlinear => LayerPrecision::Weights8,
            Kind::Gemm | Kind::MatMul if !flags.int8_head => LayerPrecision::Weights8,
            _ => LayerPrecision::Int8,
        };
        let write = |precision: &dyn Fn(&Layer) -> LayerPrecision| -> Result<ModelProto> {
            let table = calibration.table(graph, &layers, settings, precision)?;
            match flags.form {
                Form::Qdq => qdq::write(&model, &layers, &table),
                Form::Qlinear => qlinear::write(&model, &layers, &table),
            }
        };
        let mut assignment: Assignment =
            layers.iter().map(|layer| (layer.name.clone(), default(layer))).collect();
        let mut ranked = Vec::new();
        if mixed {
            let candidates: Vec<&Layer> =
                layers.iter().filter(|layer| default(layer) == LayerPrecision::Int8).collect();
            let probing = self.measured.first(PROBING_TILES);
            let few = Reference::new(self.model, probing, None)?;
            ranked = sensitivity::rank(&candidates, |alone| {
                let precision = |layer: &Layer| {
                    alone.get(&layer.name).copied().unwrap_or(LayerPrecision::Float)
                };
                few.measure(&write(&precision)?, probing)
            })?;
            let without = |out: &[sensitivity::Sensitivity]| {
                let mut assignment = assignment.clone();
                for sensitive in out {
                    assignment.insert(sensitive.layer.clone(), LayerPrecision::Weights8);
                }
                assignment
            };
            let found = sensitivity::search(&ranked, self.budget(Precision::Mixed), |out| {
                let assignment = without(out);
                let model = write(&|layer: &Layer| assignment[&layer.name])?;
                self.reference.measure(&model, self.measured)
            })?;
            let count = found.map_or(ranked.len(), |(count, _)| count);
            assignment = without(&ranked[..count]);
        }
        let written = write(&|layer: &Layer| assignment[&layer.name])?;
        let of = |precision: LayerPrecision| -> Vec<&String> {
            assignment.iter().filter(|(_, p)| **p == precision).map(|(name, _)| name).collect()
        };
        let (int8, weights8, float) =
            (of(LayerPrecision::Int8), of(LayerPrecision::Weights8), of(LayerPrecision::Float));
        let details = json!({
            "form": match flags.form { Form::Qdq => qdq::FORM, Form::Qlinear => qlinear::FORM },
            "settings": settings,
            "int8_layers": int8.len(),
            "int8_weights_only": weights8.len(),
            "float32_layers": float,
            "taken_out_of_int8": ranked.iter().map(|s| &s.layer)
                .filter(|name| assignment[*name] != LayerPrecision::Int8).collect::<Vec<_>>(),
            "split_concatenations": split,
            "sensitivity": ranked,
        });
        Ok((written, details))
    }
}
