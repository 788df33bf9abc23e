//! What an engine costs on this machine: loading, one tile as fast as possible, as many tiles as
//! possible, memory, and each operator.

mod report;

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use diffbulk_kernels::{Isa, measure_peak};
use serde::Serialize;

use crate::engine::{self, DevicePeak, DeviceShares, Engine, OperatorTime};
use crate::model::Model;
use crate::process;
use crate::{Error, Result};

pub use report::text;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The model's file.
    pub model: PathBuf,
    /// Engine by name.
    pub engine: String,
    /// What is asked of it.
    pub options: engine::Options,
    /// Threads.
    pub threads: usize,
    /// Shortest time to measure each mode for.
    pub seconds: f64,
    /// Raw RGB tiles to run, one after the other; random ones where there are none.
    pub tiles: Option<PathBuf>,
    /// Where to write the predictions of all tiles as little-endian float32.
    pub values: Option<PathBuf>,
    /// Modes to leave out.
    pub only: Option<Mode>,
}

/// A way to use several threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All threads on one tile.
    Latency,
    /// A tile for each thread.
    Throughput,
}

/// What was measured. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Engine.
    pub engine: &'static str,
    /// Its instruction set, where it tells.
    pub instructions: Option<String>,
    /// Threads.
    pub threads: usize,
    /// From opening the file to the first session, once.
    pub load_ms: f64,
    /// One tile with one thread.
    pub single: Option<Tiles>,
    /// One tile with all threads.
    pub latency: Option<Tiles>,
    /// As many tiles as there are threads at a time.
    pub throughput: Option<Tiles>,
    /// Multiply-accumulates a tile, as the model tells.
    pub macs: u64,
    /// Peak of float32 multiply-adds of one core, or of the engine's device, GFLOP/s.
    pub peak_gflops: f64,
    /// What the engine's device can do, where it has one of its own.
    pub device: Option<DevicePeak>,
    /// Where a tile's time goes on it, where it tells.
    pub shares: Option<DeviceShares>,
    /// Sessions that run side by side in throughput mode.
    pub sessions: usize,
    /// Largest resident memory of the process until now, in KiB, where the system tells.
    pub peak_memory_kib: Option<u64>,
    /// Each operator with one thread, where the engine tells; on a device a tile's share of a full
    /// batch.
    pub operators: Vec<OperatorTime>,
    /// Bytes that each of them has to move at least, where the engine tells.
    pub operator_bytes: Vec<u64>,
}

/// Tiles in one mode.
#[derive(Debug, Clone, Serialize)]
pub struct Tiles {
    /// Tiles timed.
    pub tiles: u64,
    /// Median time from a tile's start to its end.
    pub median_ms: f64,
    /// Tiles a second, all threads together.
    pub per_second: f64,
    /// Processor time of the whole process a tile, where the system tells.
    pub cpu_ms: Option<f64>,
}

/// Loads the model and measures.
///
/// # Errors
/// When the model cannot be loaded or run, or a file not be read or written.
pub fn run(settings: &Settings) -> Result<Measurement> {
    let start = Instant::now();
    let mut model = Model::open(&settings.model)?;
    let engine = engine::load(&settings.engine, &mut model, &settings.options)?;
    let session = engine.session()?;
    let load_ms = milliseconds(start.elapsed());
    drop(session);
    let tiles = tiles(settings, &model)?;
    if let Some(path) = &settings.values {
        let threads = if settings.only == Some(Mode::Latency) { settings.threads } else { 1 };
        write_values(&*engine, threads, &tiles, path)?;
    }
    let sessions = engine.sessions(settings.threads);
    let wanted = |mode| settings.only.is_none_or(|only| only == mode);
    let duration = Duration::from_secs_f64(settings.seconds);
    let all = settings.only.is_none();
    let single = if all { Some(one_by_one(&*engine, 1, &tiles, duration)?) } else { None };
    let latency = if wanted(Mode::Latency) {
        Some(one_by_one(&*engine, settings.threads, &tiles, duration)?)
    } else {
        None
    };
    let throughput = if wanted(Mode::Throughput) {
        Some(side_by_side(&*engine, sessions, &tiles, duration)?)
    } else {
        None
    };
    let operators = if all { engine.operator_times(&tiles[0], 15)? } else { vec![] };
    let shares = if all { engine.device_shares(&tiles[0], 15)? } else { None };
    let device = if all { engine.device_peak()? } else { None };
    let peak_gflops = match device {
        Some(device) => device.gflops,
        None if all => peak_gflops()?,
        None => 0.0,
    };
    Ok(Measurement {
        engine: engine.name(),
        instructions: engine.instructions(),
        threads: settings.threads,
        load_ms,
        single,
        latency,
        throughput,
        macs: model.metadata().macs_per_tile,
        peak_gflops,
        device,
        shares,
        sessions,
        peak_memory_kib: process::peak_memory_kib(),
        operators,
        operator_bytes: engine.operator_bytes(),
    })
}

/// The list of operators that the engine runs, in words.
///
/// # Errors
/// When the model cannot be loaded, or the engine has no list.
pub fn list(settings: &Settings) -> Result<String> {
    let model = Model::open(&settings.model)?;
    engine::open_with(&settings.engine, &model, &settings.options)?.list().ok_or_else(|| {
        Error::Request(format!("engine {} has no list of fused operators", settings.engine))
    })
}

/// Peak of one core with the instruction set that the kernels use.
fn peak_gflops() -> Result<f64> {
    let isa = Isa::from_environment().map_err(|problem| Error::Request(problem.to_string()))?;
    Ok(measure_peak(isa) / 1e9)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Tiles from the file, or one of noise.
fn tiles(settings: &Settings, model: &Model) -> Result<Vec<Vec<u8>>> {
    let bytes: usize = model.input_shape().iter().product();
    let Some(path) = &settings.tiles else {
        let mut state = 0x2545_f491u32;
        let noise = (0..bytes).map(|_| {
            // Xorshift (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 24) as u8
        });
        return Ok(vec![noise.collect()]);
    };
    let raw = std::fs::read(path).map_err(Error::io(path))?;
    if raw.is_empty() || !raw.len().is_multiple_of(bytes) {
        return Err(Error::Request(format!(
            "{}: {} bytes are not whole tiles of {bytes} bytes; give the model's tile size, three \
             bytes a pixel, without a header",
            path.display(),
            raw.len()
        )));
    }
    Ok(raw.chunks_exact(bytes).map(<[u8]>::to_vec).collect())
}

fn write_values(
    engine: &dyn Engine,
    threads: usize,
    tiles: &[Vec<u8>],
    path: &std::path::Path,
) -> Result<()> {
    let mut session = engine.team_session(threads)?;
    let mut bytes = vec![];
    for tile in tiles {
        bytes.extend(session.predict(tile)?.iter().flat_map(|value| value.to_le_bytes()));
    }
    std::fs::write(path, bytes).map_err(Error::io(path))
}

/// One tile after the other, `threads` threads on each.
fn one_by_one(
    engine: &dyn Engine,
    threads: usize,
    tiles: &[Vec<u8>],
    duration: Duration,
) -> Result<Tiles> {
    let mut session = engine.team_session(threads)?;
    let mut values = vec![];
    for tile in tiles.iter().cycle().take(3) {
        session.predict_into(tile, &mut values)?;
    }
    let (cpu, start) = (process::cpu_ms(), Instant::now());
    let mut times = vec![];
    for tile in tiles.iter().cycle() {
        let began = Instant::now();
        session.predict_into(tile, &mut values)?;
        times.push(milliseconds(began.elapsed()));
        if start.elapsed() >= duration && times.len() >= 3 {
            break;
        }
    }
    let spent = process::cpu_ms().zip(cpu).map(|(after, before)| after - before);
    Ok(summary(times, start.elapsed(), spent))
}

/// A session for each thread.
fn side_by_side(
    engine: &dyn Engine,
    threads: usize,
    tiles: &[Vec<u8>],
    duration: Duration,
) -> Result<Tiles> {
    let barrier = Barrier::new(threads + 1);
    // On this thread, as whoever predicts slides does: so they take the memory of earlier sessions.
    let sessions: Vec<_> = (0..threads).map(|_| engine.session()).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(sessions)
            .map(|(thread, session): (usize, _)| {
                let barrier = &barrier;
                scope.spawn(move || -> Result<(Vec<f64>, Option<f64>)> {
                    let mut values = vec![];
                    let warm = session.and_then(|mut session| {
                        session.predict_into(&tiles[0], &mut values)?;
                        Ok(session)
                    });
                    barrier.wait();
                    let mut session = warm?;
                    let (cpu, start) = (process::thread_cpu_ms(), Instant::now());
                    let mut times = vec![];
                    for tile in tiles.iter().cycle().skip(thread % tiles.len()) {
                        let began = Instant::now();
                        session.predict_into(tile, &mut values)?;
                        times.push(milliseconds(began.elapsed()));
                        if start.elapsed() >= duration {
                            break;
                        }
                    }
                    // A thread's time is gone with the thread.
                    let cpu =
                        process::thread_cpu_ms().zip(cpu).map(|(after, before)| after - before);
                    Ok((times, cpu))
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let (mut times, mut cpu) = (vec![], Some(0.0));
        for worker in workers {
            let outcome = worker.join().unwrap_or_else(|_| {
                Err(Error::Engine { engine: engine.name(), problem: "a worker panicked".into() })
            });
            let (more, spent) = outcome?;
            times.extend(more);
            cpu = cpu.zip(spent).map(|(sum, spent)| sum + spent);
        }
        Ok(summary(times, start.elapsed(), cpu))
    })
}

/// `cpu` is the processor time of all tiles together.
fn summary(mut times: Vec<f64>, wall: Duration, cpu: Option<f64>) -> Tiles {
    let tiles = times.len() as u64;
    Tiles {
        tiles,
        median_ms: median(&mut times),
        per_second: tiles as f64 / wall.as_secs_f64(),
        cpu_ms: cpu.map(|cpu| cpu / tiles as f64),
    }
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn the_machine_has_a_peak_and_a_process_memory() {
        assert!(peak_gflops().unwrap() > 0.1);
        if cfg!(target_os = "linux") {
            assert!(process::peak_memory_kib().unwrap() > 100);
            assert!(process::cpu_ms().is_some());
        }
    }
}
