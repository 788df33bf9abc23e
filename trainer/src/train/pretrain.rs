//! Stage 1: trains the gene-conditioned diffusion model.
//!
//! A model directory holds `config.json` and `weights.safetensors` (an average of the parameters,
//! what later commands read), `checkpoint.safetensors` (the run itself), `pretrain.json` (its
//! settings), `ema-*.safetensors` (averages to reconstruct others from), `metrics.jsonl` and
//! `samples/*.png`. The next step depends only on the checkpoint and the data: a resumed run gives
//! the numbers of one that was never stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoint, Progress, State};
use super::device::DeviceName;
use super::metrics::{MetricsFile, StepMetrics};
use super::schedule::LearningRate;
use super::source::{DatasetSource, Slides, SourceSummary};
use super::step::{self, Recipe};
use super::tiles::{Order, Tile, TileSource};
use super::{atomic, ema, grid, interrupt};
use crate::diffusion::parameters::host;
use crate::diffusion::{Config, Denoiser, Parameters};
use crate::genes::Vocabulary;
use crate::{Error, Result};

/// Snapshots of the averages over a run.
const SNAPSHOTS: u64 = 16;
/// Pictures over a run.
const PICTURES: u64 = 8;
/// Columns of a picture.
const SHOWN: usize = 6;
/// Time between checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);
/// Tiles are kept in memory up to this many bytes.
const PRELOAD_LIMIT: u64 = 6 << 30;

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

/// Runs the command.
pub fn run(args: &PretrainArgs) -> Result<()> {
    interrupt::install()?;
    let (sources, vocabulary) = open_sources(args)?;
    let views: Vec<&dyn TileSource> = sources.iter().map(|s| s as &dyn TileSource).collect();
    let summaries = sources.iter().map(|s| s.summary().clone()).collect();
    for source in &sources {
        let s = source.summary();
        eprintln!(
            "{}: {} labelled and {} unlabelled tiles of {}; {} genes",
            s.dataset,
            s.labelled,
            s.unlabelled,
            s.slides.join(", "),
            s.panel.len()
        );
        if !source.preload_within(PRELOAD_LIMIT / sources.len() as u64)? {
            eprintln!("{}: too large for memory, tiles are read as they are needed", s.dataset);
        }
    }
    let config = architecture(args, &views, &vocabulary)?;
    let settings = settings(args, config, summaries);
    let train = Train { args, views, settings, device: args.device.open()? };
    train.run(&mut || interrupt::asked())
}

fn open_sources(args: &PretrainArgs) -> Result<(Vec<DatasetSource>, Vocabulary)> {
    let slides = Slides { include: args.slides.clone(), exclude: args.exclude.clone() };
    let mut vocabulary = Vocabulary::default();
    let sources = args
        .data
        .iter()
        .map(|d| DatasetSource::open(d, &slides, args.genes, args.unlabelled, &mut vocabulary))
        .collect::<Result<Vec<_>>>()?;
    let all: Vec<String> = sources.iter().flat_map(DatasetSource::all_slides).collect();
    slides.check(all.iter().map(String::as_str))?;
    Ok((sources, vocabulary))
}

/// The preset for these tiles: a stem patch that keeps the preset's internal resolution.
fn architecture(
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

fn settings(args: &PretrainArgs, config: Config, sources: Vec<SourceSummary>) -> Settings {
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

/// A run with its data.
struct Train<'a> {
    args: &'a PretrainArgs,
    views: Vec<&'a dyn TileSource>,
    settings: Settings,
    device: Device,
}

impl Train<'_> {
    /// Trains until the run is complete or `stop` says so.
    fn run(mut self, stop: &mut dyn FnMut() -> bool) -> Result<()> {
        let out = self.args.out.clone();
        std::fs::create_dir_all(&out).map_err(Error::io(&out))?;
        let (mut state, mut progress) = self.start(&out)?;
        self.write_description(&out)?;
        let mut metrics = MetricsFile::open(&out, progress.step)?;
        let batch = self.settings.batch as u64;
        let total = self.args.images.div_ceil(batch);
        let snapshot_steps = (total / SNAPSHOTS).max(1);
        let picture_steps = match self.args.picture_every {
            Some(0) => u64::MAX,
            Some(images) => images.div_ceil(batch).max(1),
            None => (total / PICTURES).max(1),
        };
        let orders: Vec<Order> = self
            .views
            .iter()
            .map(|v| Order::new(*v, self.settings.labelled_share, self.settings.seed))
            .collect();
        let shown = self.views.first().map(|v| grid::shown(*v, SHOWN)).unwrap_or_default();

        let bar = progress_bar(total * batch, progress.images);
        let mut smooth: Option<f64> = None;
        let mut saved = Instant::now();
        while progress.step < total {
            let begun = Instant::now();
            let (loss, norm, rate) = self.step(&mut state, &progress, &orders)?;
            progress.step += 1;
            progress.images += batch;
            let seconds = begun.elapsed().as_secs_f64();
            progress.seconds += seconds;
            metrics.write(&StepMetrics {
                step: progress.step,
                images: progress.images,
                loss,
                learning_rate: rate,
                gradient_norm: norm,
                images_per_second: batch as f64 / seconds.max(1e-9),
            })?;
            smooth = Some(smooth.map_or(loss, |s| 0.98 * s + 0.02 * loss));
            bar.set_position(progress.images);
            bar.set_message(format!("loss {:.4}", smooth.unwrap_or(loss)));

            let last = progress.step == total;
            if progress.step.is_multiple_of(snapshot_steps) || last {
                self.snapshot(&out, &state, &progress)?;
                bar.suspend(|| {
                    eprintln!(
                        "{} of {} images, loss {:.4}, {:.1} images/s",
                        progress.images,
                        total * batch,
                        smooth.unwrap_or(loss),
                        progress.images as f64 / progress.seconds.max(1e-9)
                    );
                });
                saved = Instant::now();
            }
            if progress.step.is_multiple_of(picture_steps) || last {
                self.picture(&out, &state, &progress, &shown)?;
            }
            if stop() && !last {
                checkpoint::save(&out, &state, progress, &self.settings)?;
                bar.abandon();
                return Err(Error::Interrupted);
            }
            if saved.elapsed() >= CHECKPOINT_EVERY {
                checkpoint::save(&out, &state, progress, &self.settings)?;
                saved = Instant::now();
            }
        }
        bar.finish();
        Ok(())
    }

    /// A fresh state, or the stored one after a check that it belongs to this command.
    fn start(&mut self, out: &Path) -> Result<(State, Progress)> {
        if !checkpoint::path(out).exists() {
            if self.args.resume {
                return Err(Error::Request(format!(
                    "{} holds no run to resume; leave --resume out to start one",
                    out.display()
                )));
            }
            let state = State::new(&self.settings.config, self.settings.seed, &self.device);
            return Ok((state, Progress::default()));
        }
        let stored: Checkpoint<Settings> = checkpoint::load(out)?;
        self.keep_unstated(&stored.settings);
        if stored.settings != self.settings {
            return Err(Error::Request(format!(
                "the run in {} was started with other settings ({}); use those, or another output \
                 directory",
                out.display(),
                differences(&stored.settings, &self.settings)
            )));
        }
        eprintln!("resuming after {} images", stored.progress.images);
        Ok((stored.state(&self.settings.config, &self.device)?, stored.progress))
    }

    /// Defaults that follow from the length of the run or from the machine stay what they were
    /// when it was started.
    fn keep_unstated(&mut self, stored: &Settings) {
        let (mine, args) = (&mut self.settings, self.args);
        if args.threads.is_none() {
            mine.lanes = stored.lanes;
        }
        if args.decay_images.is_none() {
            mine.rate.decay_images = stored.rate.decay_images;
        }
        if args.ramp_images.is_none() {
            mine.rate.ramp_images = stored.rate.ramp_images;
        }
    }

    /// One optimiser step: loss, gradient norm, learning rate.
    fn step(
        &self,
        state: &mut State,
        progress: &Progress,
        orders: &[Order],
    ) -> Result<(f64, f64, f64)> {
        let s = &self.settings;
        // Datasets take turns, each walking through its own order.
        let turn = (progress.step % orders.len().max(1) as u64) as usize;
        let first = progress.step / orders.len().max(1) as u64 * s.batch as u64;
        let tiles: Vec<Tile> = orders[turn].tiles(first, s.batch);
        let recipe = Recipe {
            seed: s.seed,
            micro_batch: s.micro_batch,
            lanes: s.lanes,
            gene_drop: s.gene_drop,
            dropout: s.dropout,
            stain_jitter: s.stain_jitter,
        };
        state.parameters.force_normalization();
        let (source, images) = (self.views[turn], progress.images);
        let parameters = &state.parameters;
        let result =
            step::gradients(source, &s.config, parameters, &tiles, images, &recipe, &self.device)?;
        let rate = s.rate.at(images + s.batch as u64);
        let norm = norm(&result.gradients)?;
        state.adam.step(&mut state.parameters, result.gradients, progress.step + 1, rate);
        let batch = s.batch as u64;
        state.averages.update(&state.parameters, images + batch, batch);
        Ok((result.loss, norm, rate))
    }

    /// Stores the averages, the run, and the weights later commands read.
    fn snapshot(&self, out: &Path, state: &State, progress: &Progress) -> Result<()> {
        for (width, values) in ema::TRACKED.iter().zip(&state.averages.values) {
            let mut averaged = state.parameters.clone();
            averaged.set_values(values.clone());
            let name = ema::snapshot_name(progress.images, *width);
            averaged.to_weights()?.save(&out.join(name))?;
        }
        checkpoint::save(out, state, *progress, &self.settings)?;
        let mut widths = ema::RECONSTRUCTED.to_vec();
        if !widths.contains(&self.args.ema) {
            widths.push(self.args.ema);
        }
        for width in widths {
            let weights = ema::reconstruct(out, progress.images, width)?;
            weights.save(&out.join(format!("weights-ema-{width:.3}.safetensors")))?;
            if width == self.args.ema {
                weights.save(&out.join("weights.safetensors"))?;
            }
        }
        Ok(())
    }

    fn picture(
        &self,
        out: &Path,
        state: &State,
        progress: &Progress,
        shown: &[Tile],
    ) -> Result<()> {
        let Some(source) = self.views.first() else { return Ok(()) };
        let folder = out.join("samples");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let mut averaged: Parameters = state.parameters.clone();
        if let Some(values) = state.averages.values.last() {
            averaged.set_values(values.clone());
        }
        let denoiser = Denoiser::new(&self.settings.config, &averaged.effective())?;
        let path = folder.join(format!("{:09}.png", progress.images));
        grid::write(&path, &denoiser, *source, shown, self.settings.seed, &self.device)
    }

    /// `config.json` and `pretrain.json`.
    fn write_description(&self, out: &Path) -> Result<()> {
        let described = serde_json::json!({
            "version": crate::VERSION,
            "preset": self.args.preset,
            "images": self.args.images,
            "ema": self.args.ema,
            "macs_per_tile": self.settings.config.macs(),
            "settings": self.settings,
        });
        write_json(&out.join("config.json"), &self.settings.config)?;
        write_json(&out.join("pretrain.json"), &described)
    }
}

/// Names the parts of two settings that differ.
fn differences(a: &Settings, b: &Settings) -> String {
    let (Ok(serde_json::Value::Object(a)), Ok(serde_json::Value::Object(b))) =
        (serde_json::to_value(a), serde_json::to_value(b))
    else {
        return "unknown".to_owned();
    };
    let names: Vec<&str> =
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
    names.join(", ")
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::model(path, format!("cannot be written: {e}")))?;
    atomic::write(path, text.as_bytes())
}

fn norm(gradients: &[Option<Tensor<1>>]) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients.iter().flatten() {
        let square = host(gradient.clone().square().sum())?;
        total += f64::from(square.first().copied().unwrap_or(0.0));
    }
    Ok(total.sqrt())
}

fn progress_bar(total: u64, position: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_position(position);
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} images  {msg}  {per_sec}  {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}
