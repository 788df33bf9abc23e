//! Rows, rules and files of results.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::figures::{self, Accuracy};
use super::html;
use super::layers::LayerNoise;
use super::plan::{Cell, ModelFacts, Settings};
use super::tiles::Tiles;
use crate::output::atomic;
use crate::{Error, Result};

/// Outputs named in a row because their noise is largest.
const WORST_OUTPUTS: usize = 5;

/// Everything a benchmark found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// What was done, in sentences: printed with every table.
    pub rules: Vec<String>,
    /// Model files.
    pub models: Vec<ModelFacts>,
    /// Place of the model that others are compared with.
    pub reference: usize,
    /// One a model, engine and number of threads.
    pub rows: Vec<Row>,
    /// One a model: noise of its layers, in graph order.
    pub layers: Vec<Layers>,
    /// Where predictions moved, per model.
    #[serde(skip)]
    pub maps: Vec<Map>,
}

/// One row of the table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Row {
    /// File name of the model.
    pub model: String,
    /// Its arithmetic.
    pub precision: String,
    /// Engine.
    pub engine: String,
    /// Threads.
    pub threads: usize,
    /// Why there are no figures.
    pub problem: Option<String>,
    /// Mean per-output Pearson correlation with measured values.
    pub pearson: Option<f64>,
    /// Lower end of its 95 % interval.
    pub pearson_low: Option<f64>,
    /// Upper end.
    pub pearson_high: Option<f64>,
    /// Difference from float32.
    pub pearson_difference: Option<f64>,
    /// Lower end of its 95 % interval.
    pub difference_low: Option<f64>,
    /// Upper end.
    pub difference_high: Option<f64>,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// Signal to noise of the outputs against float32, in dB.
    pub sqnr_db: Option<f64>,
    /// Largest difference from float32, as a share of its largest output.
    pub largest_difference: Option<f64>,
    /// The noisiest outputs, with their dB.
    pub worst_outputs: String,
    /// Tiles a second, median over runs.
    pub tiles_per_s: Option<f64>,
    /// Median latency in ms.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// CPU time a tile in ms, median over runs.
    pub cpu_ms: Option<f64>,
    /// Load time in ms, median over runs.
    pub load_ms: Option<f64>,
    /// Largest memory of the process in MB, median over runs.
    pub peak_mb: Option<f64>,
    /// File size in bytes.
    pub file_bytes: Option<u64>,
    /// Joules a tile; absent where the platform does not tell.
    pub energy_j: Option<f64>,
    /// Runs behind the medians.
    pub runs: usize,
    /// SHA-256 of all outputs.
    pub outputs_sha256: String,
}

/// Noise of one model's layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layers {
    /// File name of the model.
    pub model: String,
    /// In graph order.
    pub noise: Vec<LayerNoise>,
    /// Why there is none.
    pub problem: Option<String>,
}

/// Mean difference of every tile's prediction from float32's.
#[derive(Debug, Clone)]
pub struct Map {
    /// File name of the model, and the engine.
    pub title: String,
    /// Slide, place on it, and mean absolute difference of each tile.
    pub tiles: Vec<(String, (f64, f64), f64)>,
}

impl Results {
    /// Puts the cells' runs together.
    pub(super) fn new(
        settings: &Settings,
        models: &[ModelFacts],
        cells: &[Cell],
        reference: usize,
        tiles: &Tiles,
        tiles_sha256: &str,
        layers: Vec<Result<Vec<LayerNoise>, String>>,
    ) -> Result<Self> {
        let outputs: Vec<Option<Vec<Vec<f32>>>> =
            cells.iter().map(|cell| rows_of(cell, tiles.images.len())).collect();
        // The float32 model on its own engine; any engine's where that one failed.
        let baseline = cells
            .iter()
            .zip(&outputs)
            .find(|(cell, outputs)| cell.model == reference && outputs.is_some())
            .and_then(|(_, outputs)| outputs.clone());
        let panel = models.get(reference).map_or(&[][..], |model| &model.panel);
        let truth = tiles.truth(panel);
        let mut rows = Vec::new();
        let mut maps: Vec<Map> = Vec::new();
        for (cell, outputs) in cells.iter().zip(&outputs) {
            let model = &models[cell.model];
            let mut row = Row {
                model: file_name(&model.path),
                precision: model.precision.clone(),
                engine: cell.engine.clone(),
                threads: cell.threads,
                problem: cell.problem.clone(),
                file_bytes: model.bytes,
                ..Row::default()
            };
            if cell.problem.is_none() {
                row.speed(cell);
                if let (Some(outputs), Some(baseline)) = (outputs, &baseline) {
                    row.accuracy(outputs, baseline, truth.as_deref(), tiles, settings.seed, panel);
                    let title = format!("{} on {}", row.model, row.engine);
                    if cell.model != reference && !maps.iter().any(|map| map.title == title) {
                        maps.push(Map { title, tiles: moved(outputs, baseline, tiles) });
                    }
                }
            }
            rows.push(row);
        }
        let layers = models
            .iter()
            .zip(layers)
            .map(|(model, layers)| {
                let (noise, problem) = match layers {
                    Ok(noise) => (noise, None),
                    Err(problem) => (Vec::new(), Some(problem)),
                };
                Layers { model: file_name(&model.path), noise, problem }
            })
            .collect();
        Ok(Self {
            rules: rules(settings, models, reference, tiles, tiles_sha256),
            models: models.to_vec(),
            reference,
            rows,
            layers,
            maps,
        })
    }
}

impl Row {
    fn speed(&mut self, cell: &Cell) {
        let all = |value: fn(&super::CellRun) -> Option<f64>| -> Option<f64> {
            let values: Vec<f64> = cell.runs.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| figures::median(values))
        };
        let mut latencies: Vec<f64> =
            cell.runs.iter().flat_map(|run| run.latencies_ms.iter().copied()).collect();
        latencies.sort_by(f64::total_cmp);
        let at = |share| (!latencies.is_empty()).then(|| figures::percentile(&latencies, share));
        (self.p50_ms, self.p95_ms, self.p99_ms) = (at(0.5), at(0.95), at(0.99));
        self.tiles_per_s = all(|run| Some(run.tiles_per_s));
        self.cpu_ms = all(|run| run.cpu_ms);
        self.load_ms = all(|run| Some(run.load_ms));
        self.peak_mb = all(|run| run.peak_memory.map(|bytes| bytes as f64 / 1e6));
        self.energy_j = all(|run| run.energy_j);
        self.runs = cell.runs.len();
        let hash = cell.runs.iter().find_map(|run| run.outputs_sha256.clone());
        self.outputs_sha256 = hash.unwrap_or_default();
    }

    fn accuracy(
        &mut self,
        outputs: &[Vec<f32>],
        baseline: &[Vec<f32>],
        truth: Option<&[Vec<f32>]>,
        tiles: &Tiles,
        seed: u64,
        panel: &[String],
    ) {
        if outputs.first().map(Vec::len) != baseline.first().map(Vec::len) {
            self.problem = Some("it has another number of outputs than the float32 model".into());
            return;
        }
        let (sqnr, each) = figures::noise(outputs, baseline);
        self.sqnr_db = Some(sqnr);
        self.largest_difference = Some(figures::largest(outputs, baseline));
        let mut worst: Vec<(f64, usize)> = each.into_iter().zip(0..).collect();
        worst.sort_by(|a, b| a.0.total_cmp(&b.0));
        let named = worst.iter().take(WORST_OUTPUTS).map(|(db, index)| {
            let name = panel.get(*index).cloned().unwrap_or_else(|| index.to_string());
            format!("{name} {db:.1}")
        });
        self.worst_outputs = named.collect::<Vec<_>>().join(", ");
        let measured = truth
            .and_then(|truth| figures::accuracy(outputs, baseline, truth, &tiles.slides, seed));
        if let Some(Accuracy { pearson, interval, difference, difference_interval, mae }) = measured
        {
            self.pearson = Some(pearson);
            (self.pearson_low, self.pearson_high) = (Some(interval[0]), Some(interval[1]));
            self.pearson_difference = Some(difference);
            (self.difference_low, self.difference_high) =
                (Some(difference_interval[0]), Some(difference_interval[1]));
            self.mae = Some(mae);
        }
    }
}

fn rows_of(cell: &Cell, count: usize) -> Option<Vec<Vec<f32>>> {
    let width = cell.runs.first()?.width;
    let bytes = std::fs::read(cell.outputs.as_ref()?).ok()?;
    (width > 0 && bytes.len() == count * width * 4).then(|| {
        bytes
            .chunks_exact(width * 4)
            .map(|row| {
                let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                row.chunks_exact(4).map(word).collect()
            })
            .collect()
    })
}

fn moved(
    outputs: &[Vec<f32>],
    baseline: &[Vec<f32>],
    tiles: &Tiles,
) -> Vec<(String, (f64, f64), f64)> {
    let mut map = Vec::new();
    for (index, centre) in tiles.centres.iter().enumerate() {
        if let Some(centre) = centre {
            let pairs = outputs[index].iter().zip(&baseline[index]);
            let sum: f64 = pairs.map(|(a, b)| f64::from((a - b).abs())).sum();
            let mean = sum / baseline[index].len().max(1) as f64;
            map.push((tiles.slides[index].clone(), *centre, mean));
        }
    }
    map
}

/// The rules of this benchmark, as they were for these results.
fn rules(
    settings: &Settings,
    models: &[ModelFacts],
    reference: usize,
    tiles: &Tiles,
    tiles_sha256: &str,
) -> Vec<String> {
    let slides = tiles.slide_names();
    let mut rules = vec![
        format!(
            "Tiles: {} of {} px from slides {}; SHA-256 of their pixels {}.",
            tiles.images.len(),
            tiles.side,
            slides.join(", "),
            tiles_sha256
        ),
        format!(
            "Every cell is a process of its own, run {} times, interleaved: each cell once, then \
             each again. Before {} timed tiles come {} others. Medians over runs; latencies of all \
             runs together.",
            settings.repetitions, settings.timed, settings.warm_up
        ),
        "Threads are tiles at a time, one session each. Peak memory is the process's, its \
         program and libraries included."
            .to_owned(),
        format!(
            "Pearson: per output over the tiles of a slide, then the mean over outputs, then over \
             slides. Intervals: 95 %, {} bootstrap resamples of the tiles, seed {}; differences on \
             the same resamples.",
            figures::RESAMPLES,
            settings.seed
        ),
        "SQNR: power of what varies between tiles over power of the difference from float32."
            .to_owned(),
        "Calibration sees training slides only, a fixed set of tiles whose hash is in the file; \
         no model is tuned on the tiles of this table."
            .to_owned(),
        format!("Machine: {}.", machine()),
        format!("diffbulk {}.", crate::VERSION),
    ];
    if let Some(model) = models.get(reference) {
        rules.push(format!("Compared with {}.", file_name(&model.path)));
        let seen: Vec<&str> =
            slides.iter().filter(|s| model.trained_on.contains(s)).map(String::as_str).collect();
        rules.push(if model.trained_on.is_empty() {
            "The model does not say what it was trained on: whether these figures are held out is \
             for you to know."
                .to_owned()
        } else if seen.is_empty() {
            "None of these slides was in its training.".to_owned()
        } else {
            format!(
                "NOT HELD OUT: it was trained on {}. Correlations are flattering; differences \
                 between precisions still tell.",
                seen.join(", ")
            )
        });
    }
    rules
}

/// The processor and its number of cores.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} cores, {}", std::env::consts::OS)
}

/// A file's name without its directory.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Writes `quant.json`, `quant.csv` and `quant.html`.
pub(super) fn write(results: &Results, directory: &Path) -> Result<()> {
    let json = serde_json::to_vec_pretty(results)
        .map_err(|error| Error::Request(format!("the results cannot be written: {error}")))?;
    atomic::write(&directory.join("quant.json"), &json)?;
    atomic::write(&directory.join("quant.csv"), &csv(results)?)?;
    atomic::write(&directory.join("quant.html"), html::page(results).as_bytes())
}

fn csv(results: &Results) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed =
        |error: csv::Error| Error::Request(format!("the table cannot be written: {error}"));
    for row in &results.rows {
        writer.serialize(row).map_err(failed)?;
    }
    writer
        .into_inner()
        .map_err(|error| Error::Request(format!("the table cannot be written: {error}")))
}

/// The table for a terminal.
pub fn text(results: &Results) -> String {
    let mut lines = vec![format!(
        "{:32} {:12} {:7} {:>8} {:>9} {:>7} {:>8} {:>8} {:>8} {:>7}",
        "model", "engine", "threads", "Pearson", "diff", "dB", "tiles/s", "p50 ms", "peak MB", "MB"
    )];
    let shown = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    for row in &results.rows {
        let head = format!("{:32} {:12} {:7}", row.model, row.engine, row.threads);
        lines.push(match &row.problem {
            Some(problem) => format!("{head} {problem}"),
            None => format!(
                "{head} {:>8} {:>9} {:>7} {:>8} {:>8} {:>8} {:>7}",
                shown(row.pearson, 4),
                row.pearson_difference.map_or("-".into(), |d| format!("{d:+.5}")),
                shown(row.sqnr_db, 1),
                shown(row.tiles_per_s, 1),
                shown(row.p50_ms, 1),
                shown(row.peak_mb, 0),
                shown(row.file_bytes.map(|bytes| bytes as f64 / 1e6), 2),
            ),
        });
    }
    lines.push(String::new());
    lines.extend(results.rules.iter().cloned());
    lines.join("\n")
}
