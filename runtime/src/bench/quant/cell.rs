//! One model on one engine with one number of threads, once, in a process of its own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::energy::Meter;
use super::subject::Subject;
use crate::engine::Normalization;
use crate::model::hex;
use crate::{Error, Result};

/// The tiles of a benchmark as every cell, ours or a peer's, finds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    /// File of RGB bytes, tiles one after the other.
    pub tiles: PathBuf,
    /// Number of tiles.
    pub count: usize,
    /// Side of a tile in pixels.
    pub side: usize,
    /// Tiles that are run before any is timed.
    pub warm_up: usize,
    /// Tiles that are timed.
    pub timed: usize,
    /// What float inputs hold.
    pub normalization: Normalization,
}

/// What one run of a cell gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellRun {
    /// Wall time until the model was ready, in ms.
    pub load_ms: f64,
    /// Latency of each timed tile, in ms.
    pub latencies_ms: Vec<f64>,
    /// Tiles a second over the timed tiles, all threads together.
    pub tiles_per_s: f64,
    /// CPU time of the process a timed tile, in ms, where the system tells.
    pub cpu_ms: Option<f64>,
    /// Largest memory of the process, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Energy of the timed tiles in joules a tile, where the platform tells.
    pub energy_j: Option<f64>,
    /// Values of an output.
    pub width: usize,
    /// SHA-256 of the outputs of all tiles; absent where they were not asked for.
    pub outputs_sha256: Option<String>,
}

/// Runs `model` on `engine`; with `outputs`, all tiles are predicted and written there as float32,
/// little-endian, one row a tile.
///
/// # Errors
/// When the model cannot be loaded or run.
pub fn run(
    spec: &CellSpec,
    model: &Path,
    engine: &str,
    threads: usize,
    outputs: Option<&Path>,
) -> Result<CellRun> {
    let start = Instant::now();
    let subject = Subject::open(model, engine, spec.side, spec.normalization)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let predicted = predict(&subject, spec, threads, spec.warm_up.max(threads), false)?;
    let width = predicted.rows.first().map_or(0, |(_, row)| row.len());
    let (meter, cpu) = (Meter::start(Path::new("/sys")), cpu_seconds());
    let timed = predict(&subject, spec, threads, spec.timed, true)?;
    let energy_j = meter.and_then(Meter::stop).map(|joules| joules / spec.timed as f64);
    let spent = cpu_seconds().zip(cpu).map(|(end, start)| end - start);
    let cpu_ms = spent.map(|seconds| seconds * 1e3 / spec.timed as f64);
    let peak_memory = peak_memory();
    let outputs_sha256 = match outputs {
        Some(path) => {
            let all = predict(&subject, spec, threads, spec.count, false)?;
            let bytes: Vec<u8> =
                all.rows.iter().flat_map(|(_, row)| row).flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(path, &bytes).map_err(Error::io(path))?;
            Some(hex(&Sha256::digest(&bytes)))
        }
        None => None,
    };
    Ok(CellRun {
        load_ms,
        latencies_ms: timed.latencies_ms,
        tiles_per_s: spec.timed as f64 / timed.seconds,
        cpu_ms,
        peak_memory,
        energy_j,
        width,
        outputs_sha256,
    })
}

struct Predicted {
    rows: Vec<(usize, Vec<f32>)>,
    latencies_ms: Vec<f64>,
    seconds: f64,
}

/// Predicts tiles `0..count` (again from the first where there are fewer), one a thread at a time.
fn predict(
    subject: &Subject,
    spec: &CellSpec,
    threads: usize,
    count: usize,
    timed: bool,
) -> Result<Predicted> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::new(), Vec::new()));
    let work = || -> Result<()> {
        let mut session = subject.session()?;
        let mut file = File::open(&spec.tiles).map_err(Error::io(&spec.tiles))?;
        let mut image = vec![0; spec.side * spec.side * 3];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(());
            }
            let at = (index % spec.count * image.len()) as u64;
            file.seek(SeekFrom::Start(at)).map_err(Error::io(&spec.tiles))?;
            file.read_exact(&mut image).map_err(Error::io(&spec.tiles))?;
            let start = Instant::now();
            let row = session.run(&image)?;
            let ms = start.elapsed().as_secs_f64() * 1e3;
            let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            done.1.push(ms);
            if !timed {
                done.0.push((index, row));
            }
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let (mut rows, latencies_ms) =
        done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_by_key(|(index, _)| *index);
    Ok(Predicted { rows, latencies_ms, seconds })
}

/// Largest resident memory of this process, in bytes (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// CPU time of this process so far, in seconds (Linux, clock ticks of 10 ms).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}
