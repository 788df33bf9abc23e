//! `diffbulk bench`: benchmarks on the user's machine, models and data.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::engine::EngineChoice;
use super::{bench_quant, bench_tensors, print};
use crate::bench::engine;
use crate::{Error, Result};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time an engine on a model: tiles, operators, loading, memory.
    Engine(EngineArguments),
    /// Compare models of several precisions: accuracy, speed, memory and size.
    Quant(Box<bench_quant::Arguments>),
    /// Run one model once and print the result as JSON; `quant` starts these.
    #[command(hide = true)]
    Cell(bench_quant::CellArguments),
    /// Write inner tensors of a model as an engine computes them, for comparisons with other programs
    #[command(hide = true)]
    Tensors(bench_tensors::Arguments),
}

#[derive(Debug, Args)]
struct EngineArguments {
    /// The model (.onnx)
    model: PathBuf,
    #[command(flatten)]
    engine: EngineChoice,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<u16>,
    /// Time each mode for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Tiles to run: raw RGB bytes, row by row, one tile after the other
    #[arg(long, value_name = "FILE")]
    tiles: Option<PathBuf>,
    /// Write the predictions of all tiles, float32 in little-endian order
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// Time one mode only, and no operators
    #[arg(long, value_enum)]
    only: Option<Mode>,
    /// Print the list of fused operators and measure nothing
    #[arg(long)]
    list: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// All threads on one tile
    Latency,
    /// A tile for each thread
    Throughput,
}

/// Runs `bench`.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::Engine(arguments) => run_engine(arguments),
        What::Quant(arguments) => bench_quant::run(arguments),
        What::Cell(arguments) => bench_quant::run_cell(arguments),
        What::Tensors(arguments) => bench_tensors::run(arguments),
    }
}

fn run_engine(arguments: &EngineArguments) -> Result<()> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    if !(arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        return Err(Error::Request(format!(
            "--seconds {} is no time between 0 and 3600",
            arguments.seconds
        )));
    }
    let settings = engine::Settings {
        model: arguments.model.clone(),
        engine: arguments.engine.name.clone(),
        options: arguments.engine.options(),
        threads: arguments.threads.map_or_else(cores, |n| usize::from(n).max(1)),
        seconds: arguments.seconds,
        tiles: arguments.tiles.clone(),
        values: arguments.values.clone(),
        only: arguments.only.map(|mode| match mode {
            Mode::Latency => engine::Mode::Latency,
            Mode::Throughput => engine::Mode::Throughput,
        }),
    };
    if arguments.list {
        return print(&format!("{}\n", engine::list(&settings)?));
    }
    let measured = engine::run(&settings)?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&measured)
            .map_err(|error| Error::Request(error.to_string()))?;
        print(&format!("{json}\n"))
    } else {
        print(&engine::text(&measured))
    }
}
