//! Rows, rules and files of results.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::figures::{self, Accuracy};
use super::html;
use super::layers::LayerNoise;
use super::plan::{Cell, ModelFacts, Settings};
use super::rules::rules;
use super::tiles::Tiles;
use crate::output::atomic;
use crate::{Error, Result};

/// Outputs named in a row because their noise is largest.
const WORST_OUTPUTS: usize = 5;

/// What stands for no noise at all.
pub(super) const EXACT_DB: f64 = 200.0;

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
    /// One a row that has figures: noise of its outputs.
    pub outputs: Vec<OutputNoise>,
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

/// Signal to noise of every output of a row against float32, in dB.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputNoise {
    /// Place among the rows.
    pub row: usize,
    /// Names of the outputs, or their places.
    pub outputs: Vec<String>,
    /// In dB, in the same order.
    pub sqnr_db: Vec<f64>,
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
        let mut each = Vec::new();
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
            let others = !model.panel.is_empty() && !panel.is_empty() && model.panel != panel;
            if others && row.problem.is_none() {
                row.problem = Some("its panel is not that of the float32 model".into());
            }
            if row.problem.is_none() {
                row.speed(cell);
                if let (Some(outputs), Some(baseline)) = (outputs, &baseline) {
                    let truth = truth.as_deref();
                    let sqnr_db = row.accuracy(outputs, baseline, truth, tiles, settings.seed);
                    if row.problem.is_some() {
                        rows.push(row);
                        continue;
                    }
                    let names = (0..sqnr_db.len())
                        .map(|k| panel.get(k).cloned().unwrap_or_else(|| k.to_string()));
                    let noise = OutputNoise { row: rows.len(), outputs: names.collect(), sqnr_db };
                    row.worst_outputs = noise.worst();
                    each.push(noise);
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
            outputs: each,
            layers,
            maps,
        })
    }
}

impl OutputNoise {
    /// The noisiest, in words.
    fn worst(&self) -> String {
        let mut order: Vec<usize> =
            (0..self.sqnr_db.len()).filter(|&k| self.sqnr_db[k] < EXACT_DB).collect();
        order.sort_by(|&a, &b| self.sqnr_db[a].total_cmp(&self.sqnr_db[b]));
        let named = |&k: &usize| format!("{} {:.1}", self.outputs[k], self.sqnr_db[k]);
        order.iter().take(WORST_OUTPUTS).map(named).collect::<Vec<_>>().join(", ")
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

    /// Compares outputs with float32's and with what was measured; returns the noise of each.
    fn accuracy(
        &mut self,
        outputs: &[Vec<f32>],
        baseline: &[Vec<f32>],
        truth: Option<&[Vec<f32>]>,
        tiles: &Tiles,
        seed: u64,
    ) -> Vec<f64> {
        if outputs.first().map(Vec::len) != baseline.first().map(Vec::len) {
            self.problem = Some("it has another number of outputs than the float32 model".into());
            return Vec::new();
        }
        let (sqnr, each) = figures::noise(outputs, baseline);
        self.sqnr_db = Some(sqnr);
        self.largest_difference = Some(figures::largest(outputs, baseline));
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
        each
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

/// A file's name without its directory.
pub(super) fn file_name(path: &Path) -> String {
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
