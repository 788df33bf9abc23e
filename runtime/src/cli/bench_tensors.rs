//! `diffbulk bench tensors`: inner tensors of a model as an engine computes them, for comparisons
//! with other programs.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::engine::{ENGINES, Normalization, Pixels, Probe};
use crate::model::OnnxFile;
use crate::output::atomic;
use crate::{Error, Result};

/// Arguments of `bench tensors`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// ONNX model
    model: PathBuf,
    /// One tile: raw RGB bytes, row by row
    #[arg(long, value_name = "FILE")]
    tile: PathBuf,
    /// File with the names of the tensors, one a line
    #[arg(long, value_name = "FILE")]
    names: PathBuf,
    /// Engine
    #[arg(long, value_name = "NAME", default_value = ENGINES[0].name)]
    engine: String,
    /// File to write: all tensors one after the other, row-major float32, little-endian
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs `bench tensors`; prints the shapes as JSON.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let file = OnnxFile::open(&arguments.model)?;
    let image = std::fs::read(&arguments.tile).map_err(Error::io(&arguments.tile))?;
    let side = (image.len() / 3).isqrt();
    if side == 0 || side * side * 3 != image.len() {
        return Err(Error::Request(format!(
            "{} has {} bytes, which is no square RGB tile",
            arguments.tile.display(),
            image.len()
        )));
    }
    let names = std::fs::read_to_string(&arguments.names).map_err(Error::io(&arguments.names))?;
    let names: Vec<String> = names.lines().map(str::to_owned).collect();
    let pixels = Pixels::of(&file, side, Normalization::default())?;
    let probe = Probe::on(&arguments.engine, &file, &pixels, &names)?;
    let tensors = probe.session()?.run(&image)?;
    let bytes: Vec<u8> = tensors.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    atomic::write(&arguments.output, &bytes)?;
    let shapes = serde_json::to_string(&probe.shapes()?);
    print(&format!("{}\n", shapes.map_err(|error| Error::Request(error.to_string()))?))
}
