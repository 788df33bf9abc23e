//! Which tiling each kernel uses that has a choice: measured once on the device, and kept in the user's
//! cache directory by adapter, driver and shape.
//!
//! All choices add up in the same order, so tuning changes times and no number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::adapter::Device;
use super::program::Program;
use super::resident::{Compiled, Resident};
use super::shader::Abilities;
use super::tiling::Tiling;
use crate::engine::fused::FusedGraph;
use crate::output::atomic;

/// Tilings by shape; see [`Choice`](super::tiling::Choice).
pub(super) type Choices = BTreeMap<String, Tiling>;

/// Batches measured for each tiling.
const REPETITIONS: usize = 5;

/// Version of the file; another one is measured anew.
const VERSION: u32 = 2;

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    adapter: String,
    driver: String,
    half: bool,
    choices: Choices,
}

/// The tilings that are kept in `directory` for `device`.
pub(super) fn kept(device: &Device, abilities: Abilities, directory: Option<&Path>) -> Choices {
    let path = directory.map(|directory| directory.join(name(device, abilities)));
    path.and_then(|path| read(&path, device, abilities)).unwrap_or_default()
}

/// The tilings for `graph`, which is `program` with those `kept` so far: for shapes that are not among them the fastest
/// on the device, which are then kept in `directory` too. None where none is missing, or nothing can be measured.
///
/// # Errors
/// When the device fails.
pub(super) fn measured(
    device: &Arc<Device>,
    graph: &FusedGraph,
    program: &Program,
    batch: usize,
    mut kept: Choices,
    directory: Option<&Path>,
) -> Result<Option<Choices>, String> {
    let abilities = program.abilities;
    // What is kept may be of another version's tilings.
    let missing: BTreeMap<String, Vec<Tiling>> = program
        .ops
        .iter()
        .filter_map(|op| op.choice.clone())
        .filter(|choice| {
            let known = kept.get(&choice.shape);
            !known.is_some_and(|known| choice.tilings.contains(known))
        })
        .map(|choice| (choice.shape, choice.tilings))
        .collect();
    if missing.is_empty() || !device.about.timestamps {
        return Ok(None);
    }
    let tilings: usize = missing.values().map(Vec::len).sum();
    let name = &device.about.name;
    tracing::info!("{name}: measuring {tilings} tilings of {} shapes, once", missing.len());
    let image = vec![127; program.image[0]];
    let mut best: BTreeMap<&str, (f64, Tiling)> = BTreeMap::new();
    // Most shaders are the same from trial to trial.
    let mut compiled = Compiled::new();
    for trial in 0..missing.values().map(Vec::len).max().unwrap_or(0) {
        let tried = |(shape, tilings): (&String, &Vec<Tiling>)| {
            tilings.get(trial).map(|tiling| (shape.clone(), *tiling))
        };
        let mut choices = kept.clone();
        choices.extend(missing.iter().filter_map(tried));
        let program = Arc::new(Program::new(graph.clone(), abilities, &choices)?);
        let resident =
            Resident::sharing(Arc::clone(device), Arc::clone(&program), batch, &mut compiled)?;
        let Some(times) = resident.times(&image, REPETITIONS)? else { return Ok(None) };
        let mut sums: BTreeMap<&str, (f64, Tiling)> = BTreeMap::new();
        for (dispatch, time) in program.dispatches.iter().zip(times) {
            if let Some(choice) = &program.ops[dispatch.op].choice
                && let Some((shape, tilings)) = missing.get_key_value(&choice.shape)
                && let Some(tiling) = tilings.get(trial)
            {
                sums.entry(shape).or_insert((0.0, *tiling)).0 += time;
            }
        }
        for (shape, (time, tiling)) in sums {
            let entry = best.entry(shape).or_insert((time, tiling));
            if time < entry.0 {
                *entry = (time, tiling);
            }
        }
    }
    kept.extend(best.into_iter().map(|(shape, (_, tiling))| (shape.to_owned(), tiling)));
    if let Some(path) = directory.map(|directory| directory.join(self::name(device, abilities)))
        && let Err(problem) = write(&path, device, abilities, &kept)
    {
        tracing::debug!("{}: the measured tile shapes are not kept: {problem}", path.display());
    }
    Ok(Some(kept))
}

/// The user's cache directory for this program, where the system tells.
pub(super) fn directory() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("diffbulk"))
}

/// Name of the file for a device.
fn name(device: &Device, abilities: Abilities) -> String {
    let about = &device.about;
    let mut digest = Sha256::new();
    for part in [&about.name, &about.backend, &about.driver] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    let digest = digest.finalize();
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("tiles-{digest}-{}.json", if abilities.half { "f16" } else { "f32" })
}

/// What is kept at `path`, if it is for this device.
fn read(path: &Path, device: &Device, abilities: Abilities) -> Option<Choices> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let mine = kept.version == VERSION
        && kept.adapter == device.about.name
        && kept.driver == device.about.driver
        && kept.half == abilities.half;
    mine.then_some(kept.choices)
}

fn write(
    path: &Path,
    device: &Device,
    abilities: Abilities,
    choices: &Choices,
) -> crate::Result<()> {
    let kept = Kept {
        version: VERSION,
        adapter: device.about.name.clone(),
        driver: device.about.driver.clone(),
        half: abilities.half,
        choices: choices.clone(),
    };
    let text = serde_json::to_vec_pretty(&kept)
        .map_err(|error| crate::Error::Request(error.to_string()))?;
    atomic::write(path, &text)
}
