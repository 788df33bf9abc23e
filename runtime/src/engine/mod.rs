//! Run the fused predictor. Every engine is one [`Engine`] implementation, asked for by name.
//!
//! [`open`] is the way in; [`ENGINES`] is the one list of what there is. Besides, [`Runner`] runs
//! any other ONNX file (an image encoder, an export under test) with the same loader, and [`Probe`]
//! shows its inner tensors.

#[cfg_attr(
    not(feature = "wgpu"),
    allow(
        dead_code,
        unused_imports,
        reason = "without devices there is nothing to choose between"
    )
)]
mod auto;
mod cpu;
pub mod fused;
#[cfg(feature = "wgpu")]
pub mod gpu;
mod pixels;
mod probe;
mod runner;
mod tract;

pub use pixels::{Normalization, Pixels};
pub use probe::{Probe, ProbeSession};
pub use runner::{Runner, RunnerSession};

use std::borrow::Cow;

use serde::Serialize;

use crate::model::Model;
use crate::model::pb::ModelProto;
use crate::{Error, Result};

/// An engine that has a model loaded. Shared between worker threads; each worker runs its own
/// [`Session`].
pub trait Engine: Send + Sync {
    /// Registered name, for example `tract`.
    fn name(&self) -> &'static str;

    /// A session for one worker thread, with its own scratch memory.
    fn session(&self) -> Result<Box<dyn Session>>;

    /// How many sessions keep it busy, where `threads` threads are free to prepare tiles for it: as many
    /// for an engine that computes on the sessions' own threads.
    fn sessions(&self, threads: usize) -> usize {
        threads
    }

    /// A session in which `threads` threads work on one tile together, for the shortest time until
    /// it is done; an engine that cannot do that runs it on one.
    fn team_session(&self, threads: usize) -> Result<Box<dyn Session>> {
        let _ = threads;
        self.session()
    }

    /// The instruction set it computes with, where it knows.
    fn instructions(&self) -> Option<String> {
        None
    }

    /// True where numbers come from a device's cooperative matrices, which reports have to tell.
    fn cooperative_matrices(&self) -> bool {
        false
    }

    /// The fused operators it runs, in words, where it fuses.
    fn list(&self) -> Option<String> {
        None
    }

    /// Bytes that each operator of [`Engine::operator_times`] has to move at least for a tile, where
    /// the engine tells.
    fn operator_bytes(&self) -> Vec<u64> {
        vec![]
    }

    /// What its device can do, measured, where it runs on one of its own.
    fn device_peak(&self) -> Result<Option<DevicePeak>> {
        Ok(None)
    }

    /// Where a tile's time goes on its device, over `repetitions` full batches of `image` that follow each other,
    /// where it runs on one of its own that tells.
    fn device_shares(&self, image: &[u8], repetitions: usize) -> Result<Option<DeviceShares>> {
        let _ = (image, repetitions);
        Ok(None)
    }

    /// Median time of each operator with one thread over `repetitions` runs of `image`; none where
    /// the engine cannot tell.
    fn operator_times(&self, image: &[u8], repetitions: usize) -> Result<Vec<OperatorTime>> {
        let _ = (image, repetitions);
        Ok(vec![])
    }
}

/// One worker's running state.
pub trait Session: Send {
    /// Predicts one tile: `image` is `tile_px` x `tile_px` x 3 RGB bytes (row-major HWC); leaves
    /// one value per panel gene in `values`.
    fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()>;

    /// Name of the engine that the last tile came from, where that can differ from tile to tile.
    fn ran_on(&self) -> Option<&'static str> {
        None
    }

    /// As [`Session::predict_into`], with the values in a new vector.
    fn predict(&mut self, image: &[u8]) -> Result<Vec<f32>> {
        let mut values = vec![];
        self.predict_into(image, &mut values)?;
        Ok(values)
    }
}

/// Where a tile's time goes on a device while full batches follow each other: medians in microseconds, a tile's part
/// of its batch.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DeviceShares {
    /// From one batch's end to the next one's.
    pub tile_us: f64,
    /// While the device is at a batch's dispatches, by its own clock.
    pub dispatches_us: f64,
    /// The same with each dispatch measured by itself: what lies between them is left out.
    pub kernels_us: f64,
    /// While the program hands over images and commands; the device need not wait for that.
    pub submitting_us: f64,
    /// While the program reads results; likewise.
    pub reading_us: f64,
}

/// What one operator takes.
#[derive(Debug, Clone, Serialize)]
pub struct OperatorTime {
    /// Name of its graph node.
    pub name: String,
    /// What it does, with shapes and buffers.
    pub line: String,
    /// What computes it.
    pub kernel: String,
    /// Multiply-accumulates of the direct form.
    pub macs: u64,
    /// Median time.
    pub microseconds: f64,
}

/// What a device reaches in probes of nothing else.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DevicePeak {
    /// Float32 multiply-adds, GFLOP/s.
    pub gflops: f64,
    /// Reading and writing memory, GB/s.
    pub gbytes: f64,
}

/// Loads a model into an engine. The graph comes apart from the model, so that it can be let go once
/// it is read.
pub type Open = fn(&Model, Cow<ModelProto>, &Options) -> Result<Box<dyn Engine>>;

/// Which devices to tune for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tune {
    /// None.
    Never,
    /// Graphics processors.
    Hardware,
    /// Programs that play one, too.
    Always,
}

/// What a user can ask of an engine besides its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Which devices to measure what is fastest on, where that is not known yet.
    pub tune: Tune,
    /// Multiply with the device's cooperative matrices, where it has them in the model's precision.
    pub cooperative_matrices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { tune: Tune::Hardware, cooperative_matrices: false }
    }
}

/// One entry of the list of engines.
pub struct Registration {
    /// Name the user asks for.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Loads a model into it.
    pub open: Open,
    /// It runs on a graphics adapter, where there is one.
    pub graphics: bool,
}

/// All engines, the default one first.
pub const ENGINES: &[Registration] = &[
    Registration {
        name: cpu::NAME,
        about: "this project's own kernels, one tile a core",
        open: |model, proto, _| cpu::open(model, proto),
        graphics: false,
    },
    Registration {
        name: tract::NAME,
        about: "tract's kernels, one tile a core; what the others are checked against",
        open: |model, proto, _| tract::open(model, proto),
        graphics: false,
    },
    #[cfg(feature = "wgpu")]
    Registration {
        name: gpu::NAME,
        about: "shaders on a graphics adapter, batches of tiles",
        open: gpu::open,
        graphics: true,
    },
    Registration {
        name: auto::NAME,
        about: "wgpu where there is a graphics processor, else cpu",
        open: auto::open,
        graphics: true,
    },
];

/// The engines that this machine has the hardware for; not the one that chooses between others.
pub fn present() -> impl Iterator<Item = &'static Registration> {
    #[cfg(feature = "wgpu")]
    let hardware = gpu::adapter::adapters().iter().any(|adapter| !adapter.is_software());
    #[cfg(not(feature = "wgpu"))]
    let hardware = false;
    ENGINES.iter().filter(move |engine| engine.name != auto::NAME && (hardware || !engine.graphics))
}

/// Loads `model` into the engine called `name`.
///
/// # Errors
/// When there is no such engine, or it cannot run this model.
pub fn open(name: &str, model: &Model) -> Result<Box<dyn Engine>> {
    open_with(name, model, &Options::default())
}

/// The same with `options`.
///
/// # Errors
/// As [`open`].
pub fn open_with(name: &str, model: &Model, options: &Options) -> Result<Box<dyn Engine>> {
    open_graph(name, model, Cow::Borrowed(model.file().proto()), options)
}

/// As [`open_with`], with the model's graph apart from it.
pub(crate) fn open_graph(
    name: &str,
    model: &Model,
    graph: Cow<ModelProto>,
    options: &Options,
) -> Result<Box<dyn Engine>> {
    (find(name)?.open)(model, graph, options)
}

/// As [`open_with`], for a model of which only metadata and identity are needed afterwards: its graph
/// and weights are let go as the engine reads them, which halves what loading takes.
///
/// # Errors
/// As [`open`].
pub fn load(name: &str, model: &mut Model, options: &Options) -> Result<Box<dyn Engine>> {
    let engine = find(name)?;
    let proto = model.release_graph();
    (engine.open)(model, Cow::Owned(proto), options)
}

fn find(name: &str) -> Result<&'static Registration> {
    ENGINES.iter().find(|engine| engine.name == name).ok_or_else(|| {
        let known: Vec<&str> = ENGINES.iter().map(|engine| engine.name).collect();
        Error::Request(format!("there is no engine `{name}`; this build has {}", known.join(", ")))
    })
}

/// Refuses a tile of another size than the `bytes` of the model's input.
fn expect_bytes(engine: &'static str, image: &[u8], bytes: usize) -> Result<()> {
    if image.len() == bytes {
        return Ok(());
    }
    let problem = format!("a tile has {bytes} bytes, this one {}", image.len());
    Err(Error::Engine { engine, problem })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{OnnxFile, testing};

    /// Loads a tiny model into every engine, so that a new registration is tested at once.
    fn engines() -> Vec<Box<dyn Engine>> {
        let proto = testing::tiny_model(&testing::metadata(4, &["A", "B", "C", "D"]));
        let file = OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap();
        let model = Model::from_file(file).unwrap();
        let here = |engine: &&Registration| match engine.name {
            #[cfg(feature = "wgpu")]
            gpu::NAME => gpu::testing::adapter_or_skip(),
            _ => true,
        };
        ENGINES.iter().filter(here).map(|engine| open(engine.name, &model).unwrap()).collect()
    }

    #[test]
    fn every_engine_predicts_the_mean_colour() {
        let image: Vec<u8> = (0..16).flat_map(|k| [255, 0, k * 17]).collect();
        for engine in engines() {
            let mut session = engine.session().unwrap();
            // Twice: a session has to be reusable.
            for _ in 0..2 {
                let values = session.predict(&image).unwrap();
                let expected = [1.0, 0.0, 1.5, 4.0];
                assert_eq!(values.len(), 4);
                for (value, expected) in values.iter().zip(expected) {
                    assert!((value - expected).abs() < 1e-5, "{}: {values:?}", engine.name());
                }
            }
        }
    }

    #[test]
    fn every_engine_runs_sessions_in_parallel() {
        for engine in engines() {
            std::thread::scope(|scope| {
                for value in [0u8, 100, 200] {
                    let engine = &engine;
                    scope.spawn(move || {
                        let mut session = engine.session().unwrap();
                        for _ in 0..20 {
                            let values = session.predict(&[value; 48]).unwrap();
                            assert!((values[0] - f32::from(value) / 255.0).abs() < 1e-5);
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_tile_of_another_size_is_refused() {
        for engine in engines() {
            let error = engine.session().unwrap().predict(&[0; 12]).unwrap_err().to_string();
            assert!(error.contains("48"), "{error}");
        }
    }

    #[test]
    fn an_unknown_engine_is_told_the_known_ones() {
        let proto = testing::tiny_model(&testing::metadata(4, &["A"]));
        let file = OnnxFile::from_proto(proto, Path::new("tiny.onnx")).unwrap();
        let model = Model::from_file(file).unwrap();
        let error = open("abacus", &model).err().unwrap().to_string();
        assert!(error.contains("`abacus`") && error.contains("tract"), "{error}");
    }
}
