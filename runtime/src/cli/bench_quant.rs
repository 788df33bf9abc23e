//! `diffbulk bench quant`: models of several precisions side by side.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::bench::quant::{self, Settings, cell};
use crate::engine::Normalization;
use crate::{Error, Result};

/// Arguments of `bench quant`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// ONNX models; the first float32 one is what the others are compared with
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Dataset directory with patches.h5 and, to measure accuracy, adata.h5ad
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only tiles of these slides: those that no model was trained on
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    slides: Vec<String>,
    /// At most so many tiles, spread over the slides
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    tiles: usize,
    /// Engines [default: all there are]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    engines: Vec<String>,
    /// Numbers of threads
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Runs of every cell
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: usize,
    /// Tiles before the timed ones
    #[arg(long, value_name = "N", default_value_t = 4)]
    warm_up: usize,
    /// Timed tiles of every run
    #[arg(long, value_name = "N", default_value_t = 64)]
    timed: usize,
    /// Seed of the intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Mean of red, green and blue (0 to 1) that float inputs expect taken off
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    mean: Vec<f32>,
    /// Standard deviation of red, green and blue that float inputs expect divided by
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', num_args = 3)]
    std: Vec<f32>,
    /// Directory for quant.json, quant.csv and quant.html; a benchmark that was stopped goes on
    /// from what is there
    #[arg(short, long, value_name = "DIR", default_value = "quant-benchmark")]
    output: PathBuf,
}

/// Arguments of one cell.
#[derive(Debug, Args)]
pub(super) struct CellArguments {
    #[arg(long)]
    spec: String,
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    engine: String,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    outputs: Option<PathBuf>,
}

/// Runs `bench quant`.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let positive = [
        ("--tiles", arguments.tiles),
        ("--repetitions", arguments.repetitions),
        ("--timed", arguments.timed),
        ("--threads", arguments.threads.iter().copied().min().unwrap_or(0)),
    ];
    if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(Error::Request(format!("{name} has to be at least 1")));
    }
    let triple = |values: &[f32], default: [f32; 3]| match values {
        [r, g, b] => [*r, *g, *b],
        _ => default,
    };
    let settings = Settings {
        models: arguments.models.clone(),
        data: arguments.data.clone(),
        slides: arguments.slides.clone(),
        tiles: arguments.tiles,
        engines: arguments.engines.clone(),
        threads: arguments.threads.clone(),
        repetitions: arguments.repetitions,
        warm_up: arguments.warm_up,
        timed: arguments.timed,
        seed: arguments.seed,
        normalization: Normalization {
            mean: triple(&arguments.mean, [0.0; 3]),
            std: triple(&arguments.std, [1.0; 3]),
        },
        output: arguments.output.clone(),
    };
    let results = quant::run(&settings, &mut |line| eprintln!("{line}"))?;
    print(&format!("{}\n", quant::text(&results)))
}

/// Runs one cell and prints its result as JSON.
pub(super) fn run_cell(arguments: &CellArguments) -> Result<()> {
    let spec = serde_json::from_str(&arguments.spec)
        .map_err(|error| Error::Request(format!("--spec: {error}")))?;
    let outputs = arguments.outputs.as_deref();
    let run = cell::run(&spec, &arguments.model, &arguments.engine, arguments.threads, outputs)?;
    print(&serde_json::to_string(&run).map_err(|error| Error::Request(error.to_string()))?)
}
