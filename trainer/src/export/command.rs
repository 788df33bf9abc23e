//! `export`: the fused predictor as one ONNX file with its metadata.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use diffbulk::model::{Metadata, Provenance, SCHEMA_VERSION};
use prost::Message;
use sha2::{Digest, Sha256};

use super::fused::{EncoderPart, Fused, Parts, UnetPart, fuse};
use super::onnx;
use super::record::{HeadFacts, HeldOut, NetworkFacts};
use super::weights::Checkpoint;
use super::{inline, random};
use crate::diffusion::{Config, FeatureMode};
use crate::foundation::{Encoder, EncoderFlags};
use crate::predictor::{CONFIG_FILE, HeadConfig, WEIGHTS_FILE};
use crate::quantize::command::{label, told};
use crate::quantize::recipe::quantize;
use crate::quantize::{Precision, QuantizeFlags};
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
    /// What the encoder's file does not say.
    #[command(flatten)]
    pub encoder_flags: EncoderFlags,
    /// How the head's U-Net features were computed.
    #[arg(long, value_enum, default_value_t)]
    pub feature_mode: ModeArgument,
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
    #[arg(long = "license", value_name = "TEXT", default_value = "not stated")]
    model_license: String,
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
    /// Arithmetic of the written file.
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    #[command(flatten)]
    quantize: QuantizeFlags,
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
    /// The U-Net, where one is named; it must be the one of `facts`, where they name one.
    fn unet(&self, facts: Option<&NetworkFacts>) -> Result<Option<UnetPart>> {
        let Some(directory) = &self.unet else { return Ok(None) };
        let path = directory.join("weights.safetensors");
        if let Some(facts) = facts {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let found: String =
                Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            same_file(&path, &found, &facts.sha256)?;
        }
        Ok(Some(UnetPart {
            config: Config::load(directory)?,
            weights: Checkpoint::read(&path)?,
            mode: self.feature_mode.into(),
        }))
    }

    /// The encoder, where one is named; it must be the one of `facts`, where they name one.
    fn encoder(&self, facts: Option<&NetworkFacts>) -> Result<Option<EncoderPart>> {
        let Some(path) = &self.encoder else { return Ok(None) };
        let encoder = Encoder::open(path, &self.encoder_flags)?;
        if let Some(facts) = facts {
            same_file(path, encoder.sha256(), &facts.sha256)?;
        }
        let model = onnx::read(path)?;
        inline::check(&model, path)?;
        let info = encoder.info().clone();
        Ok(Some(EncoderPart { model, info, width: encoder.features(), path: path.clone() }))
    }

    /// The parts of the predictor whose head is in the directory `head`.
    pub fn load(&self, head: &Path, facts: &HeadFacts) -> Result<Parts> {
        let config = HeadConfig::load(&head.join(CONFIG_FILE))?;
        let mut parts = Parts {
            tile_px: facts.exported.tile_px,
            unet: None,
            encoder: None,
            head_weights: Checkpoint::read(&head.join(WEIGHTS_FILE))?,
            head: config,
        };
        if !parts.head.branch_channels.is_empty() {
            let unet = self.unet(facts.unet.as_ref())?;
            parts.unet = Some(unet.ok_or_else(|| needs(head, "--unet DIR"))?);
        }
        if parts.head.foundation_dim > 0 {
            let encoder = self.encoder(facts.encoder.as_ref())?;
            parts.encoder = Some(encoder.ok_or_else(|| needs(head, "--encoder FILE"))?);
        }
        Ok(parts)
    }
}

fn same_file(path: &Path, found: &str, trained: &str) -> Result<()> {
    if found == trained {
        return Ok(());
    }
    Err(Error::model(
        path,
        format!(
            "is not the file the head was trained on (SHA-256 {found}, trained on {trained}); name \
             that one, or train the head on this one"
        ),
    ))
}

fn needs(head: &Path, option: &str) -> Error {
    Error::Request(format!(
        "the head in {} was trained on features of another network; name it with {option}",
        head.display()
    ))
}

/// Runs `export`; returns what to tell the user.
pub fn run(arguments: &ExportArguments) -> Result<String> {
    let (parts, facts) = match &arguments.head {
        Some(head) => {
            let facts = HeadFacts::load(head)?;
            (arguments.parts.load(head, &facts)?, facts)
        }
        None => {
            let encoder = arguments.parts.encoder(None)?;
            let genes = arguments.genes as usize;
            let mode = arguments.parts.feature_mode.into();
            random::parts(&arguments.preset, genes, encoder, mode, arguments.seed)?
        }
    };
    if facts.exported.panel.len() != parts.head.genes {
        return Err(Error::Request(format!(
            "the head predicts {} genes and its panel names {}; train it again",
            parts.head.genes,
            facts.exported.panel.len()
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
    let mut metadata = metadata(arguments, facts, held_out, encoder, fused.total_macs());
    metadata.check().map_err(|problem| Error::Request(format!("cannot export: {problem}")))?;
    let mut cost = String::new();
    if arguments.precision != Precision::Float32 {
        let (precision, flags) = (arguments.precision, &arguments.quantize);
        let path = &arguments.output;
        let quantized = quantize(&fused.model, precision, flags, &metadata.panel, path)?;
        cost = format!("\n{}", told(precision, &quantized));
        metadata = label(metadata, precision, quantized.recipe);
        fused.model = quantized.model;
    }
    onnx::set_properties(&mut fused.model, metadata.to_props());
    let megabytes = fused.model.encoded_len() as f64 / 1e6;
    check_limits(arguments, &fused, megabytes)?;
    onnx::write(&arguments.output, &fused.model)?;
    Ok(summary(&arguments.output, &fused, megabytes) + &cost)
}

fn metadata(
    arguments: &ExportArguments,
    facts: HeadFacts,
    held_out: HeldOut,
    encoder: String,
    macs_per_tile: u64,
) -> Metadata {
    // Only genes of the panel: an evaluation may have chosen others in its folds.
    let mut gene_pearson = held_out.gene_pearson;
    let training_data = facts.training_data();
    let record = facts.exported;
    gene_pearson.retain(|gene, _| record.panel.contains(gene));
    Metadata {
        schema_version: SCHEMA_VERSION,
        name: arguments.name.clone(),
        version: arguments.model_version.clone(),
        training_data,
        confidence: record.confidence,
        panel: record.panel,
        tile_px: record.tile_px as u32,
        um_per_px: record.um_per_px,
        unit: record.unit,
        precision: "float32".to_owned(),
        quantization: None,
        macs_per_tile,
        license: arguments.model_license.clone(),
        metrics: held_out.metrics,
        gene_pearson,
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: ExportArguments,
    }

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Program::command().debug_assert();
        let words = ["p", "--random", "--name", "n", "-o"];
        assert!(Program::try_parse_from(words).is_err());
    }

    #[test]
    fn a_random_model_opens_as_a_predictor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("random.onnx");
        let output = path.to_str().unwrap();
        let words =
            ["p", "--random", "--preset", "tiny", "--genes", "4", "--name", "n", "-o", output];
        let program = Program::try_parse_from(words).unwrap();
        let told = run(&program.arguments).unwrap();
        assert!(told.contains("unet") && told.contains("in all"), "{told}");
        let model = diffbulk::model::Model::open(&path).unwrap();
        assert_eq!(model.metadata().panel.len(), 4);
        let macs = diffbulk::model::graph::macs(model.file().proto(), &model.input_shape());
        assert_eq!(macs.unwrap(), model.metadata().macs_per_tile);

        let limited = [&words[..], &["--max-gmac", "0.000001"]].concat();
        let program = Program::try_parse_from(limited).unwrap();
        assert!(run(&program.arguments).unwrap_err().to_string().contains("GMAC"));
    }
}
