//! Times burn's wgpu backend and this project's `wgpu` engine on one exported predictor, on the same adapter and the same
//! tiles, in turns, and compares what they predict.
//!
//! burn has no reader for ONNX files at run time, so [`network`] lays the file's list of fused operators out in burn's
//! tensor operations; weights lie on the device before anything is timed.

mod network;

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{Device, DeviceKind};
use clap::Parser;
use diffbulk::engine;
use diffbulk::model::Model;

use network::Network;

type Failure = Box<dyn std::error::Error>;

/// Times burn's wgpu backend and this engine on the same predictor
#[derive(Parser)]
struct Arguments {
    /// A float32 predictor
    model: PathBuf,
    /// A picture that the tiles are cut from
    #[arg(long, value_name = "FILE")]
    picture: PathBuf,
    /// Tiles
    #[arg(long, default_value_t = 4)]
    tiles: u32,
    /// Times that every tile is predicted by each
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let model = Model::open(&arguments.model)?;
    let tiles = tiles(&arguments, model.metadata().tile_px)?;
    let engine = engine::open("wgpu", &model)?;
    println!("adapter: {}", engine.instructions().unwrap_or_default());
    let mut session = engine.session()?;
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let network = Network::load(&arguments.model, model.metadata().tile_px as usize, &device)?;

    // What is compiled or tuned at first use is not timed.
    let mut worst = 0.0f32;
    for tile in &tiles {
        let (ours, theirs) = (session.predict(tile)?, network.predict(tile)?);
        let largest = theirs.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
        worst = off.fold(worst, |worst, off| worst.max(off / largest));
    }
    println!("largest difference {worst:.1e} of the largest value");
    if !(worst < 1e-4) {
        return Err("the two do not predict the same".into());
    }
    let mut times = [vec![], vec![]];
    for _ in 0..arguments.repetitions {
        for tile in &tiles {
            times[0].push(timed(|| Ok(session.predict(tile)?))?);
            times[1].push(timed(|| network.predict(tile))?);
        }
    }
    let [ours, theirs] = times.map(median);
    println!(
        "this engine: {ours:.1} ms a tile; burn: {theirs:.1} ms; {:.2} times as fast",
        theirs / ours
    );
    Ok(())
}

/// Tiles spread over the diagonal of the picture.
fn tiles(arguments: &Arguments, side: u32) -> Result<Vec<Vec<u8>>, Failure> {
    let picture = image::open(&arguments.picture)?.to_rgb8();
    let (width, height) = picture.dimensions();
    if width < side || height < side || arguments.tiles == 0 {
        return Err(format!("{width}x{height} pixels hold no tile of {side}").into());
    }
    let at = |size: u32, k: u32| (size - side) * k / arguments.tiles;
    let crop = |k| image::imageops::crop_imm(&picture, at(width, k), at(height, k), side, side);
    Ok((0..arguments.tiles).map(|k| crop(k).to_image().into_raw()).collect())
}

/// Milliseconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<Vec<f32>, Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
