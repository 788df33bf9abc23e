//! Stage 1: trains the gene-conditioned diffusion model.
//!
//! A model directory holds `config.json` and `weights.safetensors` (an average of the parameters,
//! what later commands read), `checkpoint.safetensors` (the run itself), `pretrain.json` (its
//! settings), `ema-*.safetensors` (averages to reconstruct others from), `metrics.jsonl` and
//! `samples/*.png`. The next step depends only on the checkpoint and the data: a resumed run gives
//! the numbers of one that was never stopped.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::checkpoint::{self, Checkpoint, Progress, State};
use super::metrics::{MetricsFile, StepMetrics};
pub use super::settings::PretrainArgs;
use super::settings::{Settings, architecture, differences, settings};
use super::source::{DatasetSource, Slides};
use super::step::{self, Recipe};
use super::tiles::{Order, Tile, TileSource};
use super::{atomic, ema, grid, interrupt};
use crate::diffusion::parameters::host;
use crate::diffusion::{Denoiser, Parameters};
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
            let pictures = self.args.picture_every != Some(0);
            if pictures && (progress.step.is_multiple_of(picture_steps) || last) {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::diffusion::{UNet, Weights};
    use crate::train::tiles::made_up::MadeUp;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: PretrainArgs,
    }

    /// Arguments of a tiny run into `out`.
    fn args(out: &Path, more: &[&str]) -> PretrainArgs {
        let out = out.to_string_lossy().into_owned();
        let line = ["pretrain", "--data", "unused", "-o", &out, "--preset", "tiny", "--batch", "4"];
        let more = ["--threads", "2", "--unlabelled"].iter().chain(more);
        Line::parse_from(line.iter().chain(more)).args
    }

    /// Runs on made-up tiles; stops after `stop` steps.
    fn train(out: &Path, more: &[&str], stop: usize) -> Result<()> {
        let args = args(out, more);
        let source = MadeUp::new(32, 6, 5);
        let symbols = (0..5).map(|g| format!("G{g}"));
        let vocabulary = Vocabulary::new(symbols)?;
        let views: Vec<&dyn TileSource> = vec![&source];
        let config = architecture(&args, &views, &vocabulary)?;
        let settings = settings(&args, config, Vec::new());
        let train = Train { args: &args, views, settings, device: args.device.open()? };
        let mut steps = 0;
        train.run(&mut || {
            steps += 1;
            steps >= stop
        })
    }

    fn tensors(out: &Path, name: &str) -> Weights {
        Weights::load(&out.join(name)).unwrap()
    }

    fn losses(out: &Path) -> Vec<(u64, f64)> {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<StepMetrics>(l).unwrap());
        lines.map(|m| (m.step, m.loss)).collect()
    }

    #[test]
    fn a_resumed_run_gives_the_numbers_of_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        let images = ["--images", "32", "--picture-every", "16"];
        train(&whole, &images, usize::MAX).unwrap();
        for stop in [3, 2] {
            let error = train(&parts, &images, stop).unwrap_err();
            assert!(matches!(error, Error::Interrupted), "{error}");
        }
        train(&parts, &["--images", "32", "--picture-every", "16", "--resume"], usize::MAX)
            .unwrap();
        for name in ["checkpoint.safetensors", "weights.safetensors"] {
            assert!(tensors(&whole, name) == tensors(&parts, name), "{name} differs");
        }
        assert_eq!(losses(&whole), losses(&parts));
        let picture = |out: &Path| std::fs::read(out.join("samples/000000032.png")).unwrap();
        assert_eq!(picture(&whole), picture(&parts));
    }

    #[test]
    fn a_run_learns_and_can_be_used_and_lengthened() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let fixed = ["--lr", "0.02", "--ramp-images", "40", "--picture-every", "0"];
        let with = |images: &'static str| [&fixed[..], &["--images", images]].concat();
        train(&out, &with("600"), usize::MAX).unwrap();
        train(&out, &with("800"), usize::MAX).unwrap();
        let losses = losses(&out);
        assert_eq!(losses.len(), 200);
        let mean = |part: &[(u64, f64)]| {
            part.iter().map(|(_, loss)| loss).sum::<f64>() / part.len() as f64
        };
        let (early, late) = (mean(&losses[..20]), mean(&losses[180..]));
        assert!(late < early - 0.5, "loss went from {early} to {late}");

        let unet = UNet::load(&out, &Device::flex()).unwrap();
        let features = unet.features(Tensor::zeros([1, 3, 32, 32], &Device::flex()));
        let dims: Vec<[usize; 4]> = features.iter().map(|f| f.dims()).collect();
        assert_eq!(dims, [[1, 16, 8, 8], [1, 8, 16, 16]]);
        assert!(!out.join("samples").exists());
    }

    #[test]
    fn other_settings_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        train(&out, &["--images", "8"], usize::MAX).unwrap();
        let message = train(&out, &["--images", "8", "--seed", "2"], 1).unwrap_err().to_string();
        assert!(message.contains("seed") && !message.contains("batch"), "{message}");
    }

    #[test]
    fn there_must_be_a_whole_run_to_resume() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let message = train(&out, &["--resume"], 1).unwrap_err().to_string();
        assert!(message.contains("no run to resume"), "{message}");
        train(&out, &["--images", "8"], usize::MAX).unwrap();
        let path = checkpoint::path(&out);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = train(&out, &["--images", "8"], 1).unwrap_err().to_string();
        assert!(message.contains("checkpoint.safetensors"), "{message}");
    }
}
