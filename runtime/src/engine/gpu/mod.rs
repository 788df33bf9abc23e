//! The `wgpu` engine: the list of fused operators on any graphics processor with Vulkan, Metal or
//! DX12, from the same file as the other engines.
//!
//! [`legalise`] fits the list to the shaders, [`lower`] writes each operator's shaders and packs its
//! weights, [`program`] is all of that with every place planned; [`adapter`] opens the device, [`tune`]
//! measures tile shapes on it, [`resident`] puts a program on it, and [`worker`] runs batches of the tiles that sessions hand in.
//!
//! What a shader may touch is settled before there is a device: [`lower`] derives the size of every map
//! from the operators' geometry and refuses a graph whose buffers say otherwise, so no index leaves
//! its map whatever a model file holds.

pub mod adapter;
mod bytes;
mod conv;
mod cooperative;
mod direct;
mod elements;
mod integer;
mod join;
mod legalise;
mod lower;
mod map;
mod peak;
mod pixelwise;
mod product;
mod program;
mod reduce;
#[cfg(test)]
mod reference;
mod requantise;
mod resident;
mod shader;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tiling;
mod timing;
mod tune;
mod winograd;
mod worker;

use std::borrow::Cow;
use std::sync::Arc;

use self::adapter::Device;
use self::program::Program;
use self::resident::{Resident, SLOTS};
use self::tune::Choices;
use self::worker::Desk;
use super::{
    DevicePeak, DeviceShares, Engine, OperatorTime, Options, Session, Tune, expect_bytes, fused,
};
use crate::bench::engine::median;
use crate::model::typed::{guarded, typed};
use crate::model::widen::{Rounding, widen};
use crate::model::{Model, pb::ModelProto};
use crate::{Error, Result};

/// Registered name.
pub(crate) const NAME: &str = "wgpu";

/// Tiles of a batch, where they fit: enough that small maps fill a device.
const BATCH: usize = 8;

/// What lowering makes, or why it cannot.
type Lowered<T> = std::result::Result<T, String>;

fn refuse<T>(why: impl Into<String>) -> Lowered<T> {
    Err(why.into())
}

struct GpuEngine {
    program: Arc<Program>,
    resident: Arc<Resident>,
    desk: Desk,
    about: String,
    cooperative_matrices: bool,
    genes: usize,
}

/// Loads `model` on the preferred adapter.
pub(crate) fn open(
    model: &Model,
    proto: Cow<ModelProto>,
    options: &Options,
) -> Result<Box<dyn Engine>> {
    let device = Device::open(options.cooperative_matrices).map_err(failure)?;
    open_on(device, model, proto, options)
}

/// Loads `model` on an adapter that is no software, if there is one or the user names another.
pub(crate) fn open_hardware(
    model: &Model,
    proto: Cow<ModelProto>,
    options: &Options,
) -> Result<Option<Box<dyn Engine>>> {
    let device = Device::open_hardware(options.cooperative_matrices).map_err(failure)?;
    device.map(|device| open_on(device, model, proto, options)).transpose()
}

fn open_on(
    device: Device,
    model: &Model,
    proto: Cow<ModelProto>,
    options: &Options,
) -> Result<Box<dyn Engine>> {
    let half = model.metadata().precision == "float16";
    let input = model.input_shape();
    let genes = model.metadata().panel.len();
    let graph = guarded(model.path(), || {
        let graph = typed(&widen(&proto, Rounding::Left), &input)?;
        drop(proto);
        fused::fuse(graph)
    })?;
    let device = Arc::new(device);
    let abilities = device.abilities(half);
    if options.cooperative_matrices && abilities.matrices.is_none() {
        let kind = if abilities.half { "float16" } else { "float32" };
        let name = &device.about.name;
        tracing::warn!("adapter {name} has no cooperative matrices of {kind}: it does without");
    }
    let software = device.about.is_software();
    // A program that plays a device gains nothing from batches.
    let batch = if software { 1 } else { BATCH };
    let tune = match options.tune {
        Tune::Never => false,
        Tune::Hardware => !software,
        Tune::Always => true,
    };
    let lower = |graph, choices: &Choices| {
        Program::new(graph, abilities, choices).map_err(|why| {
            Error::model(
                model.path(),
                format!("the {NAME} engine cannot run it: {why}; use --engine cpu"),
            )
        })
    };
    let program = if tune {
        let directory = tune::directory();
        let directory = directory.as_deref();
        let kept = tune::kept(&device, abilities, directory);
        let program = lower(graph.clone(), &kept)?;
        let measured = tune::measured(&device, &graph, &program, batch, kept, directory);
        match measured.map_err(failure)? {
            Some(choices) => lower(graph, &choices)?,
            None => program,
        }
    } else {
        lower(graph, &Choices::default())?
    };
    if program.image[0] != input.iter().product::<usize>()
        || [program.output.pixels(), program.output.channels] != [1, genes]
    {
        return Err(Error::model(
            model.path(),
            format!(
                "for one tile its output is not {genes} values, one for each gene of its panel; export \
                 it again"
            ),
        ));
    }
    let program = Arc::new(program);
    let kind = if abilities.half { "float16" } else { "float32" };
    let cooperative_matrices = abilities.matrices.is_some();
    let matrices = if cooperative_matrices { ", cooperative matrices" } else { "" };
    let about = format!("{} ({}), {kind}{matrices}", device.about.name, device.about.backend);
    let resident = Resident::new(device, Arc::clone(&program), batch).map_err(failure)?;
    let resident = Arc::new(resident);
    let desk = Desk::open(Arc::clone(&resident)).map_err(failure)?;
    Ok(Box::new(GpuEngine { program, resident, desk, about, cooperative_matrices, genes }))
}

impl Engine for GpuEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        let (bytes, genes) = (self.program.image[0], self.genes);
        Ok(Box::new(GpuSession { desk: self.desk.clone(), bytes, genes }))
    }

    fn sessions(&self, threads: usize) -> usize {
        threads.max(self.resident.batch * SLOTS)
    }

    fn instructions(&self) -> Option<String> {
        Some(self.about.clone())
    }

    fn cooperative_matrices(&self) -> bool {
        self.cooperative_matrices
    }

    fn list(&self) -> Option<String> {
        Some(self.program.list())
    }

    fn operator_times(&self, image: &[u8], repetitions: usize) -> Result<Vec<OperatorTime>> {
        // Software is slow and its times are steady.
        let repetitions = if self.resident.device.about.is_software() { 3 } else { repetitions };
        let times = self.resident.times(image, repetitions).map_err(failure)?;
        let mut operators: Vec<OperatorTime> = self
            .program
            .ops
            .iter()
            .map(|op| OperatorTime {
                name: op.name.clone(),
                line: op.line.clone(),
                kernel: op.kernel.clone(),
                macs: op.macs,
                microseconds: 0.0,
            })
            .collect();
        let Some(times) = times else { return Ok(vec![]) };
        for (dispatch, time) in self.program.dispatches.iter().zip(times) {
            operators[dispatch.op].microseconds += time;
        }
        Ok(operators)
    }

    fn device_peak(&self) -> Result<Option<DevicePeak>> {
        peak::measure(&self.resident.device).map_err(failure)
    }

    fn device_shares(&self, image: &[u8], repetitions: usize) -> Result<Option<DeviceShares>> {
        let repetitions = if self.resident.device.about.is_software() { 3 } else { repetitions };
        let mut all: [Vec<f64>; 5] = Default::default();
        // In turns, so that a machine that becomes busier does not favour one of them.
        for _ in 0..repetitions {
            let Some(shares) = self.resident.shares(image, 1).map_err(failure)? else {
                return Ok(None);
            };
            let Some(times) = self.resident.times(image, 1).map_err(failure)? else {
                return Ok(None);
            };
            let kernels = times.iter().sum();
            let values = [shares.wall, shares.pass, kernels, shares.submitting, shares.reading];
            all.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
        }
        let [tile_us, dispatches_us, kernels_us, submitting_us, reading_us] =
            all.map(|mut values| median(&mut values));
        Ok(Some(DeviceShares { tile_us, dispatches_us, kernels_us, submitting_us, reading_us }))
    }

    fn operator_bytes(&self) -> Vec<u64> {
        self.program.ops.iter().map(|op| op.bytes).collect()
    }
}

struct GpuSession {
    desk: Desk,
    bytes: usize,
    genes: usize,
}

impl Session for GpuSession {
    fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
        expect_bytes(NAME, image, self.bytes)?;
        *values = self.desk.predict(image).map_err(failure)?;
        debug_assert_eq!(values.len(), self.genes);
        Ok(())
    }
}

/// An error of this engine while opening or running.
fn failure(problem: impl std::fmt::Display) -> Error {
    Error::Engine { engine: NAME, problem: format!("{problem}") }
}
