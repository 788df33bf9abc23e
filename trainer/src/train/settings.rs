//! What a stage-1 run is asked to do, and everything its numbers depend on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::device::DeviceName;
use super::schedule::LearningRate;
use super::source::SourceSummary;
use super::tiles::TileSource;
use crate::diffusion::Config;
use crate::genes::Vocabulary;
use crate::{Error, Result};

/// Train stage 1, the gene-conditioned diffusion model, on paired datasets.
#[derive(Debug, Clone, clap::Args)]
pub struct PretrainArgs {
    /// Paired dataset directory; give several to train on them in turn
    #[arg(long, required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Model directory to write; a run in it is resumed
    #[arg(short, long)]
    pub out: PathBuf,
    /// Architecture: edge, tiny, gene-img224-xs, gene-img224-s or gene-img224-m
    #[arg(long, default_value = "edge")]
    pub preset: String,
    /// Channels of the finest level instead of the preset's
    #[arg(long)]
    pub channels: Option<usize>,
    /// Train on these slides only
    #[arg(long, value_delimiter = ',')]
    pub slides: Vec<String>,
    /// Leave these slides out
    #[arg(long, value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// Most variable genes of the chosen slides to condition on; 0 trains without genes
    #[arg(long, default_value_t = 250)]
    pub genes: usize,
    /// Images to train on, repetitions counted
    #[arg(long, default_value_t = 20_000)]
    pub images: u64,
    /// Images of one optimiser step [default: by preset]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Images of one forward pass [default: 2 on the processor, 16 elsewhere]
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Threads that work on micro-batches [default: all cores on the processor, 1 elsewhere]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Learning rate between ramp-up and decay [default: by preset]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Images of the linear ramp-up [default: by preset]
    #[arg(long)]
    pub ramp_images: Option<u64>,
    /// Images after which the rate decays with the inverse square root [default: by preset]
    #[arg(long)]
    pub decay_images: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Also train, without genes, on the dataset's unlabelled tissue tiles
    #[arg(long)]
    pub unlabelled: bool,
    /// Share of labelled tiles where unlabelled ones are used too
    #[arg(long, default_value_t = 0.5)]
    pub labelled_share: f64,
    /// Probability of training an image without its genes
    #[arg(long, default_value_t = 0.5)]
    pub gene_drop: f64,
    /// Dropout inside the gene encoder
    #[arg(long, default_value_t = 0.1)]
    pub dropout: f64,
    /// Strength of the random change of stain amounts, 0 for none
    #[arg(long, default_value_t = 0.0)]
    pub stain_jitter: f32,
    /// Relative width of the parameter average that becomes weights.safetensors
    #[arg(long, default_value_t = 0.10)]
    pub ema: f64,
    /// Images between pictures [default: an eighth of the run; 0 for none]
    #[arg(long)]
    pub picture_every: Option<u64>,
    /// Fail unless there is a run to resume
    #[arg(long)]
    pub resume: bool,
    /// Device to train on
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceName,
}

/// Everything a run's numbers depend on besides its length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Architecture and vocabulary.
    pub config: Config,
    /// What was taken from each dataset.
    pub sources: Vec<SourceSummary>,
    /// Seed.
    pub seed: u64,
    /// Images of a step.
    pub batch: usize,
    /// Images of a forward pass.
    pub micro_batch: usize,
    /// Threads.
    pub lanes: usize,
    /// Learning rate.
    pub rate: LearningRate,
    /// Share of labelled tiles.
    pub labelled_share: f64,
    /// Probability of dropping genes.
    pub gene_drop: f64,
    /// Dropout of the gene encoder.
    pub dropout: f64,
    /// Stain jitter.
    pub stain_jitter: f32,
}

/// Batch, learning rate and its timing where the user names none.
struct Defaults {
    batch: usize,
    rate: f64,
    ramp_images: u64,
    decay_images: u64,
}

impl Defaults {
    fn of(preset: &str, images: u64) -> Self {
        if preset.starts_with("gene-img224") {
            // The published recipe: 70,000 batches of 1024, ramp-up over 10 million images capped
            // by the length of a shorter run.
            let batch = 1024;
            return Self {
                batch,
                rate: 0.012,
                ramp_images: 10_000_000.min(images / 20),
                decay_images: 70_000 * batch as u64,
            };
        }
        // Short runs: few, small steps, so the rate holds for a fifth of the run and then decays.
        Self { batch: 16, rate: 0.01, ramp_images: images / 20, decay_images: images / 5 }
    }
}

/// The preset for these tiles: a stem patch that keeps the preset's internal resolution.
pub fn architecture(
    args: &PretrainArgs,
    sources: &[&dyn TileSource],
    vocabulary: &Vocabulary,
) -> Result<Config> {
    let preset = Config::preset(&args.preset)?;
    let mut config = if vocabulary.is_empty() {
        preset
    } else {
        preset.with_vocabulary(vocabulary.symbols().to_vec())
    };
    if let Some(channels) = args.channels {
        config.model_channels = channels;
    }
    let px = sources.first().map_or(config.img_resolution, |s| s.tile_px());
    if sources.iter().any(|s| s.tile_px() != px) {
        return Err(Error::Request(
            "the datasets have tiles of different sizes; prepare them with one tile size"
                .to_owned(),
        ));
    }
    if px != config.img_resolution {
        let internal = config.internal_resolution();
        if px == 0 || !px.is_multiple_of(internal) {
            return Err(Error::Request(format!(
                "preset {} works on {internal} x {internal} patches, which tiles of {px} px cannot \
                 be cut into; prepare tiles of a multiple of {internal} px",
                args.preset
            )));
        }
        config.stem_patch = px / internal;
        config.img_resolution = px;
    }
    config.check().map_err(Error::Request)?;
    Ok(config)
}

/// Settings of a fresh run: what the arguments say, and defaults for what they leave open.
pub fn settings(args: &PretrainArgs, config: Config, sources: Vec<SourceSummary>) -> Settings {
    let defaults = Defaults::of(&args.preset, args.images);
    let batch = args.batch.unwrap_or(defaults.batch).max(1);
    let cpu = args.device == DeviceName::Cpu;
    let micro_batch = args.micro_batch.unwrap_or(if cpu { 2 } else { 16 }).clamp(1, batch);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = args.threads.unwrap_or(if cpu { cores } else { 1 });
    Settings {
        config,
        sources,
        seed: args.seed,
        batch,
        micro_batch,
        lanes: lanes.clamp(1, batch.div_ceil(micro_batch)),
        rate: LearningRate {
            reference: args.lr.unwrap_or(defaults.rate),
            decay_images: args.decay_images.unwrap_or(defaults.decay_images),
            ramp_images: args.ramp_images.unwrap_or(defaults.ramp_images),
        },
        labelled_share: args.labelled_share,
        gene_drop: args.gene_drop,
        dropout: args.dropout,
        stain_jitter: args.stain_jitter,
    }
}

/// Names the parts of two settings that differ.
pub fn differences(a: &Settings, b: &Settings) -> String {
    let (Ok(serde_json::Value::Object(a)), Ok(serde_json::Value::Object(b))) =
        (serde_json::to_value(a), serde_json::to_value(b))
    else {
        return "unknown".to_owned();
    };
    let names: Vec<&str> =
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::tiles::made_up::MadeUp;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PretrainArgs,
    }

    fn fitted(preset: &str, px: usize) -> Result<Config> {
        let args = Line::parse_from(["x", "--data", "d", "-o", "o", "--preset", preset]).args;
        let source = MadeUp::new(px, 1, 1);
        architecture(&args, &[&source], &Vocabulary::default())
    }

    #[test]
    fn larger_tiles_get_a_larger_stem() {
        let config = fitted("tiny", 224).unwrap();
        assert_eq!((config.stem_patch, config.internal_resolution()), (14, 16));
        assert_eq!(fitted("edge", 224).unwrap(), Config::preset("edge").unwrap());
    }

    #[test]
    fn tiles_that_do_not_fit_are_explained() {
        let message = fitted("tiny", 30).unwrap_err().to_string();
        assert!(message.contains("multiple of 16"), "{message}");
        let message = fitted("large", 32).unwrap_err().to_string();
        assert!(message.contains("'large'") && message.contains("edge"), "{message}");
    }
}
