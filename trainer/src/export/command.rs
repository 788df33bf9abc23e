//! `export`: the fused predictor as one ONNX file with its metadata.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use diffbulk::model::{Metadata, Provenance, SCHEMA_VERSION};
use prost::Message;

use super::encoder::{EncoderInfo, colours};
use super::fused::{EncoderPart, Fused, Parts, UnetPart, fuse};
use super::onnx;
use super::record::{HeldOut, TrainingRecord};
use super::weights::Checkpoint;
use super::{inline, random};
use crate::diffusion::{Config, FeatureMode};
use crate::predictor::{CONFIG_FILE, HeadConfig, WEIGHTS_FILE};
use crate::{Error, Result};

/// `--feature-mode` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ModeArgument {
    /// The denoiser's own forward.
    #[default]
    Consistent,
    /// As the released stage-2 code computes them; for heads trained by it.
    Published,
}

impl From<ModeArgument> for FeatureMode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Consistent => Self::Consistent,
            ModeArgument::Published => Self::Published,
        }
    }
}

/// The files a predictor is made of.
#[derive(Debug, Clone, Args)]
pub struct PartArguments {
    /// Stage-1 model directory; not needed by a head without diffusion features.
    #[arg(long, value_name = "DIR")]
    pub unet: Option<PathBuf>,
    /// Image encoder, an ONNX file; not needed by a head without foundation features.
    #[arg(long, value_name = "FILE")]
    pub encoder: Option<PathBuf>,
    /// How the head's U-Net features were computed.
    #[arg(long, value_enum, default_value_t)]
    pub feature_mode: ModeArgument,
    /// Name of the encoder, where its file does not say.
    #[arg(long, default_value = "unnamed encoder")]
    pub encoder_name: String,
    /// Licence of the encoder's weights, where its file does not say.
    #[arg(long, default_value = "not stated")]
    pub encoder_license: String,
    /// Mean of red, green, blue on the 0 to 1 scale that the encoder expects to be subtracted,
    /// where its file does not say.
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "0.485,0.456,0.406")]
    pub encoder_mean: Vec<f32>,
    /// Standard deviation to divide by, where its file does not say.
    #[arg(long, value_delimiter = ',', num_args = 1, default_value = "0.229,0.224,0.225")]
    pub encoder_std: Vec<f32>,
}

/// Arguments of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArguments {
    #[command(flatten)]
    parts: PartArguments,
    /// Stage-2 head directory.
    #[arg(long, value_name = "DIR", required_unless_present = "random")]
    head: Option<PathBuf>,
    /// ONNX file to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Name of the model in its metadata.
    #[arg(long)]
    name: String,
    /// Version of the model in its metadata.
    #[arg(long, default_value = "1.0.0")]
    model_version: String,
    /// Licence of the weights.
    #[arg(long, default_value = "not stated")]
    license: String,
    /// JSON of `evaluate`, whose held-out figures go into the metadata.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Row of the evaluation that is this model.
    #[arg(long, default_value = "fused", requires = "metrics")]
    metrics_row: String,
    /// Refuse to write a model of more multiply-accumulates per tile, in billions.
    #[arg(long, value_name = "GMAC")]
    max_gmac: Option<f64>,
    /// Refuse to write a file of more megabytes.
    #[arg(long, value_name = "MB")]
    max_mb: Option<f64>,
    /// Random weights in place of trained ones, to measure speed before training.
    #[arg(long, conflicts_with_all = ["head", "unet", "metrics"])]
    random: bool,
    /// U-Net preset of the random model.
    #[arg(long, default_value = "edge", requires = "random")]
    preset: String,
    /// Genes of the random model.
    #[arg(long, default_value_t = 250, requires = "random",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    genes: u32,
    /// Seed of the random weights.
    #[arg(long, default_value_t = 0, requires = "random")]
    seed: u64,
}

impl PartArguments {
    /// The U-Net, where one is named.
    pub fn unet(&self) -> Result<Option<UnetPart>> {
        let Some(directory) = &self.unet else { return Ok(None) };
        Ok(Some(UnetPart {
            config: Config::load(directory)?,
            weights: Checkpoint::read(&directory.join("weights.safetensors"))?,
            mode: self.feature_mode.into(),
        }))
    }

    /// The encoder, where one is named.
    pub fn encoder(&self) -> Result<Option<EncoderPart>> {
        let Some(path) = &self.encoder else { return Ok(None) };
        let model = onnx::read(path)?;
        inline::check(&model, path)?;
        let info = match EncoderInfo::of(&model, path)? {
            Some(info) => info,
            None => self.foreign(&model, path)?,
        };
        Ok(Some(EncoderPart { model, info, path: path.clone() }))
    }

    /// What the command line says of an encoder whose file says nothing.
    fn foreign(&self, model: &onnx::Model, path: &Path) -> Result<EncoderInfo> {
        let input_px = match inline::input_shape(model, path)?[..] {
            [_, 3, height, width] if height == width && height > 0 => height,
            ref shape => {
                return Err(Error::model(
                    path,
                    format!(
                        "takes an input of shape {shape:?} (0: open) where [N, 3, S, S] belongs; \
                         export it for square RGB images of a fixed size"
                    ),
                ));
            }
        };
        Ok(EncoderInfo {
            name: self.encoder_name.clone(),
            license: self.encoder_license.clone(),
            input_px,
            mean: colours("--encoder-mean", &self.encoder_mean)?,
            std: colours("--encoder-std", &self.encoder_std)?,
            features: Vec::new(),
        })
    }

    /// The parts of a predictor whose head is in `directory`.
    pub fn load(&self, head: &Path, tile_px: usize) -> Result<Parts> {
        let config = HeadConfig::load(&head.join(CONFIG_FILE))?;
        let mut parts = Parts {
            tile_px,
            unet: None,
            encoder: None,
            head_weights: Checkpoint::read(&head.join(WEIGHTS_FILE))?,
            head: config,
        };
        if !parts.head.branch_channels.is_empty() {
            parts.unet = Some(self.unet()?.ok_or_else(|| needs(head, "--unet DIR"))?);
        }
        if parts.head.foundation_dim > 0 {
            parts.encoder = Some(self.encoder()?.ok_or_else(|| needs(head, "--encoder FILE"))?);
        }
        Ok(parts)
    }
}

fn needs(head: &Path, option: &str) -> Error {
    Error::Request(format!(
        "the head in {} was trained on features of another network; name it with {option}",
        head.display()
    ))
}

/// Runs `export`; returns what to tell the user.
pub fn run(arguments: &ExportArguments) -> Result<String> {
    let (parts, record) = match &arguments.head {
        Some(head) => {
            let record = TrainingRecord::load(head)?;
            (arguments.parts.load(head, record.tile_px)?, record)
        }
        None => {
            let encoder = arguments.parts.encoder()?;
            let genes = arguments.genes as usize;
            let mode = arguments.parts.feature_mode.into();
            random::parts(&arguments.preset, genes, encoder, mode, arguments.seed)?
        }
    };
    if record.panel.len() != parts.head.genes {
        return Err(Error::Request(format!(
            "the head predicts {} genes and its record names {}; train it again",
            parts.head.genes,
            record.panel.len()
        )));
    }
    let encoder = parts.encoder.as_ref().map_or_else(
        || "none".to_owned(),
        |encoder| format!("{} ({})", encoder.info.name, encoder.info.license),
    );
    let held_out = match &arguments.metrics {
        Some(path) => HeldOut::load(path, &arguments.metrics_row)?,
        None => HeldOut::default(),
    };
    let mut fused = fuse(parts)?;
    let metadata = metadata(arguments, record, held_out, encoder, fused.total_macs());
    metadata.check().map_err(|problem| Error::Request(format!("cannot export: {problem}")))?;
    onnx::set_properties(&mut fused.model, metadata.to_props());
    let megabytes = fused.model.encoded_len() as f64 / 1e6;
    check_limits(arguments, &fused, megabytes)?;
    onnx::write(&arguments.output, &fused.model)?;
    Ok(summary(&arguments.output, &fused, megabytes))
}

fn metadata(
    arguments: &ExportArguments,
    record: TrainingRecord,
    held_out: HeldOut,
    encoder: String,
    macs_per_tile: u64,
) -> Metadata {
    // Only genes of the panel: an evaluation may have chosen others in its folds.
    let mut gene_pearson = held_out.gene_pearson;
    gene_pearson.retain(|gene, _| record.panel.contains(gene));
    Metadata {
        schema_version: SCHEMA_VERSION,
        name: arguments.name.clone(),
        version: arguments.model_version.clone(),
        panel: record.panel,
        tile_px: record.tile_px as u32,
        um_per_px: record.um_per_px,
        unit: record.unit,
        precision: "float32".to_owned(),
        quantization: None,
        macs_per_tile,
        license: arguments.license.clone(),
        training_data: record.training_data,
        metrics: held_out.metrics,
        gene_pearson,
        confidence: record.confidence,
        provenance: Provenance {
            crate_version: crate::VERSION.to_owned(),
            config_sha256: record.config_sha256,
            seed: record.seed,
            encoder,
        },
    }
}

fn check_limits(arguments: &ExportArguments, fused: &Fused, megabytes: f64) -> Result<()> {
    let gmac = fused.total_macs() as f64 / 1e9;
    let refuse = |what: &str, is: f64, limit: f64, unit: &str| {
        Err(Error::Request(format!(
            "the model has {is:.2} {unit} {what}, more than the {limit} allowed; choose a smaller \
             preset or encoder, or raise the limit"
        )))
    };
    match (arguments.max_gmac, arguments.max_mb) {
        (Some(limit), _) if gmac > limit => refuse("per tile", gmac, limit, "GMAC"),
        (_, Some(limit)) if megabytes > limit => refuse("in its file", megabytes, limit, "MB"),
        _ => Ok(()),
    }
}

fn summary(path: &Path, fused: &Fused, megabytes: f64) -> String {
    let mut lines = vec![format!("{}: {megabytes:.1} MB", path.display())];
    for (part, macs) in &fused.macs {
        lines.push(format!("  {part:8} {:9.2} MMAC per tile", *macs as f64 / 1e6));
    }
    let total = fused.total_macs() as f64 / 1e6;
    lines.push(format!("  {:8} {total:9.2} MMAC per tile", "in all"));
    lines.join("\n")
}
