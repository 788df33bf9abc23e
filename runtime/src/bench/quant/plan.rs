//! Decides what is run on what, runs it interleaved, and goes on where it was stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cell::{CellRun, CellSpec};
use super::layers::{self, LayerNoise};
use super::report::{self, Results};
use super::tiles::Tiles;
use crate::engine::{self, Normalization};
use crate::model::{Metadata, OnnxFile, hex};
use crate::output::atomic;
use crate::{Error, Result};

/// Tiles whose layers are compared.
const LAYER_TILES: usize = 4;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Model files; the first float32 one is what others are compared with.
    pub models: Vec<PathBuf>,
    /// Dataset directory.
    pub data: PathBuf,
    /// Only tiles of these slides.
    pub slides: Vec<String>,
    /// At most so many tiles.
    pub tiles: usize,
    /// Engines; none: all there are.
    pub engines: Vec<String>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Runs of every cell.
    pub repetitions: usize,
    /// Tiles before the timed ones.
    pub warm_up: usize,
    /// Timed tiles.
    pub timed: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// What float inputs hold.
    pub normalization: Normalization,
    /// Directory for everything.
    pub output: PathBuf,
}

/// Facts of a model file that need no engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The file.
    pub path: PathBuf,
    /// Its hash; absent where it could not be read.
    pub sha256: Option<String>,
    /// Its size.
    pub bytes: Option<u64>,
    /// Its arithmetic, where it says.
    pub precision: String,
    /// How it was quantised, where it says.
    pub recipe: Option<serde_json::Value>,
    /// Names of its outputs, where they are genes.
    pub panel: Vec<String>,
    /// Slides it was trained on, where it says.
    pub trained_on: Vec<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// One cell, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Place among the models.
    pub model: usize,
    /// Engine.
    pub engine: String,
    /// Threads.
    pub threads: usize,
    /// Finished runs.
    pub runs: Vec<CellRun>,
    /// Outputs of all tiles.
    pub outputs: Option<PathBuf>,
    /// Why there are none.
    pub problem: Option<String>,
}

/// Runs the benchmark; `told` is given a line as each cell is done.
///
/// # Errors
/// When the dataset cannot be read or results cannot be written. Models that fail are rows.
pub fn run(settings: &Settings, told: &mut dyn FnMut(&str)) -> Result<Results> {
    let directory = settings.output.join("cells");
    std::fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
    let tiles = Tiles::read(&settings.data, &settings.slides, settings.tiles)?;
    let bytes: Vec<u8> = tiles.images.concat();
    let tiles_sha256 = hex(&Sha256::digest(&bytes));
    let path = directory.join("tiles.bin");
    if std::fs::metadata(&path).map_or(true, |found| found.len() != bytes.len() as u64) {
        std::fs::write(&path, &bytes).map_err(Error::io(&path))?;
    }
    drop(bytes);
    let spec = CellSpec {
        tiles: path,
        count: tiles.images.len(),
        side: tiles.side,
        warm_up: settings.warm_up,
        timed: settings.timed,
        normalization: settings.normalization,
    };
    let models: Vec<ModelFacts> = settings.models.iter().map(|path| facts(path)).collect();
    write_spec(&directory, &spec, &models, settings)?;

    let mut cells = Vec::new();
    let engines: Vec<String> = match settings.engines.as_slice() {
        [] => engine::present().map(|engine| engine.name.to_owned()).collect(),
        named => named.to_vec(),
    };
    for (model, facts) in models.iter().enumerate() {
        for engine in &engines {
            for &threads in &settings.threads {
                cells.push(Cell {
                    model,
                    engine: engine.clone(),
                    threads,
                    runs: Vec::new(),
                    outputs: None,
                    problem: facts.problem.clone(),
                });
            }
        }
    }
    // Interleaved: every cell once, then every cell again, so that a slow minute hits all alike.
    for repetition in 0..settings.repetitions {
        for cell in &mut cells {
            if cell.problem.is_some() {
                continue;
            }
            let key = key(&models[cell.model], cell, &spec, &tiles_sha256)?;
            one(&directory, &key, &spec, &models[cell.model], cell, repetition, told)?;
        }
    }
    cells.extend(peers(&directory, &models, &tiles_sha256)?);
    let reference = models
        .iter()
        .position(|model| model.precision == "float32" && model.problem.is_none())
        .unwrap_or(0);
    let layers = layer_noise(&models, reference, &tiles, settings, told);
    let results =
        Results::new(settings, &models, &cells, reference, &tiles, &tiles_sha256, layers)?;
    report::write(&results, &settings.output)?;
    Ok(results)
}

/// One run of a cell in a process of its own, or what an earlier call left of it.
fn one(
    directory: &Path,
    key: &str,
    spec: &CellSpec,
    model: &ModelFacts,
    cell: &mut Cell,
    repetition: usize,
    told: &mut dyn FnMut(&str),
) -> Result<()> {
    let kept = directory.join(format!("{key}.{repetition}.json"));
    let outputs = directory.join(format!("{key}.outputs"));
    let name = format!(
        "{} on {}, {} thread{}, run {}",
        model.path.display(),
        cell.engine,
        cell.threads,
        if cell.threads == 1 { "" } else { "s" },
        repetition + 1
    );
    let known = std::fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let run = match known {
        Some(run) => {
            told(&format!("{name}: kept from before"));
            run
        }
        None => {
            let wanted = (repetition == 0).then_some(outputs.as_path());
            match spawn(directory, spec, model, cell, wanted) {
                Ok(run) => {
                    told(&format!("{name}: {:.1} tiles/s", run.tiles_per_s));
                    let text = serde_json::to_vec_pretty(&run)
                        .map_err(|error| Error::Request(error.to_string()))?;
                    atomic::write(&kept, &text)?;
                    run
                }
                Err(problem) => {
                    told(&format!("{name}: {problem}"));
                    cell.problem = Some(problem);
                    return Ok(());
                }
            }
        }
    };
    if outputs.is_file() {
        cell.outputs = Some(outputs);
    }
    cell.runs.push(run);
    Ok(())
}

/// Runs this program again for one cell; the error is the reason in words.
fn spawn(
    directory: &Path,
    spec: &CellSpec,
    model: &ModelFacts,
    cell: &Cell,
    outputs: Option<&Path>,
) -> Result<CellRun, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let spec = serde_json::to_string(spec).map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["bench", "cell", "--spec", &spec, "--engine", &cell.engine]);
    command.arg("--model").arg(&model.path).args(["--threads", &cell.threads.to_string()]);
    if let Some(outputs) = outputs {
        command.arg("--outputs").arg(outputs);
    }
    let output = command
        .output()
        .map_err(|error| format!("{}: cannot be started: {error}", directory.display()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.trim().trim_start_matches("error: ");
        let reason = match message {
            "" => format!("the process ended with {}", output.status),
            message => message.lines().take(3).collect::<Vec<_>>().join(" "),
        };
        return Err(reason);
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("no result: {error}"))
}

fn facts(path: &Path) -> ModelFacts {
    let mut facts = ModelFacts {
        path: path.to_owned(),
        sha256: None,
        bytes: None,
        precision: "not stated".into(),
        recipe: None,
        panel: Vec::new(),
        trained_on: Vec::new(),
        problem: None,
    };
    match OnnxFile::open(path) {
        Err(error) => facts.problem = Some(error.to_string()),
        Ok(file) => {
            facts.sha256 = Some(file.sha256().to_owned());
            facts.bytes = Some(file.bytes());
            match Metadata::from_props(file.props()) {
                Ok(metadata) => {
                    facts.trained_on = metadata
                        .training_data
                        .iter()
                        .flat_map(|data| data.slides.iter().cloned())
                        .collect();
                    facts.precision = metadata.precision;
                    facts.recipe = metadata.quantization;
                    facts.panel = metadata.panel;
                }
                Err(_) => {
                    let recipe = file.prop("quantization");
                    facts.recipe = recipe.and_then(|text| serde_json::from_str(text).ok());
                    facts.precision = match &facts.recipe {
                        Some(recipe) => {
                            recipe["precision"].as_str().unwrap_or("not stated").to_owned()
                        }
                        None => "float32".into(),
                    };
                }
            }
        }
    }
    facts
}

/// Names the files of a cell: the same for the same model, engine, threads, tiles and settings.
fn key(model: &ModelFacts, cell: &Cell, spec: &CellSpec, tiles_sha256: &str) -> Result<String> {
    let told = serde_json::to_string(&(
        &model.sha256,
        &cell.engine,
        cell.threads,
        (spec.warm_up, spec.timed, spec.normalization, tiles_sha256, crate::VERSION),
    ))
    .map_err(|error| Error::Request(error.to_string()))?;
    Ok(hex(&Sha256::digest(told.as_bytes()))[..16].to_owned())
}

/// Leaves what a peer needs to run the same.
fn write_spec(
    directory: &Path,
    spec: &CellSpec,
    models: &[ModelFacts],
    settings: &Settings,
) -> Result<()> {
    let told = serde_json::json!({
        "cell": spec,
        "models": models.iter().map(|model| serde_json::json!({
            "path": std::path::absolute(&model.path).unwrap_or_else(|_| model.path.clone()),
            "sha256": model.sha256,
        })).collect::<Vec<_>>(),
        "threads": settings.threads,
        "repetitions": settings.repetitions,
    });
    atomic::write(&directory.join("spec.json"), told.to_string().as_bytes())
}

/// A cell that another program left: `peer-*.json`.
#[derive(Debug, Deserialize)]
struct PeerCell {
    model_sha256: String,
    tiles_sha256: String,
    engine: String,
    threads: usize,
    runs: Vec<CellRun>,
    outputs: Option<PathBuf>,
    problem: Option<String>,
}

/// Cells that peers left for these models and tiles.
fn peers(directory: &Path, models: &[ModelFacts], tiles_sha256: &str) -> Result<Vec<Cell>> {
    let mut found: BTreeMap<PathBuf, Cell> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io(directory))?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.starts_with("peer-") && name.ends_with(".json")) {
            continue;
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let peer: PeerCell = serde_json::from_slice(&text)
            .map_err(|error| Error::Request(format!("{}: {error}", path.display())))?;
        let model =
            models.iter().position(|model| model.sha256.as_ref() == Some(&peer.model_sha256));
        if let Some(model) = model.filter(|_| peer.tiles_sha256 == tiles_sha256) {
            let outputs = peer.outputs.map(|name| directory.join(name));
            found.insert(
                path,
                Cell {
                    model,
                    engine: peer.engine,
                    threads: peer.threads,
                    runs: peer.runs,
                    outputs,
                    problem: peer.problem,
                },
            );
        }
    }
    Ok(found.into_values().collect())
}

/// Per model, its layers against the reference's, or why not.
fn layer_noise(
    models: &[ModelFacts],
    reference: usize,
    tiles: &Tiles,
    settings: &Settings,
    told: &mut dyn FnMut(&str),
) -> Vec<Result<Vec<LayerNoise>, String>> {
    let images = &tiles.images[..tiles.images.len().min(LAYER_TILES)];
    models
        .iter()
        .enumerate()
        .map(|(index, model)| {
            if index == reference || model.problem.is_some() {
                return Ok(Vec::new());
            }
            let of = &models[reference].path;
            let layers =
                layers::compare(of, &model.path, tiles.side, settings.normalization, images);
            if let Err(problem) = &layers {
                told(&format!("{}: layers: {problem}", model.path.display()));
            }
            layers.map_err(|problem| problem.to_string())
        })
        .collect()
}
