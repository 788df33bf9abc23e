//! The `cpu` engine: the list of fused operators on this project's own kernels.
//!
//! [`legalise`] fits the list to the kernels, [`residual`] finds blocks that run in bands of rows,
//! [`places`] gives every buffer its place, [`prepare`] packs weights into a [`program`] for all
//! sessions, [`run`] does one thread's share of one operator. A session runs one tile at a time on
//! the caller's thread, or with a [`team`] of threads that share every operator by rows. No number
//! depends on how many there are, and nothing is allocated for a tile.

mod arena;
mod integer;
mod legalise;
mod places;
mod plain;
mod prepare;
mod program;
mod residual;
mod run;
mod runtime;
mod session;
mod team;
#[cfg(test)]
pub(in crate::engine) mod testing;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use diffbulk_kernels::{Isa, memory};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{Runnable, Runtime};

use self::program::Program;
use self::session::CpuSession;
use super::{Engine, OperatorTime, Session, expect_bytes, fused};
use crate::bench::engine::median;
use crate::model::typed::{guarded, typed, typed_once};
use crate::model::widen::{Rounding, widen};
use crate::model::{Model, OUTPUT, pb::ModelProto};
use crate::process::release_free_memory;
use crate::{Error, Result};

/// Registered name.
pub(crate) const NAME: &str = "cpu";

struct CpuEngine {
    program: Arc<Program>,
    bytes: usize,
    genes: usize,
}

/// Loads `model`.
pub(crate) fn open(model: &Model, proto: Cow<ModelProto>) -> Result<Box<dyn Engine>> {
    let input = model.input_shape();
    let genes = model.metadata().panel.len();
    let isa = Isa::from_environment().map_err(|problem| Error::Request(problem.to_string()))?;
    let program = guarded(model.path(), || {
        let wide = match widen(&proto, Rounding::Left) {
            Cow::Owned(wide) => Some(Cow::Owned(wide)),
            Cow::Borrowed(_) => None,
        };
        Program::new(fused::fuse(typed_once(wide.unwrap_or(proto), &input)?)?, isa)
    })?;
    release_free_memory();
    // The first tiles need not wait for it; without a thread for it nothing but speed is lost.
    let _ = thread::Builder::new().name("huge-pages".into()).spawn(memory::settle);
    let bytes = input.iter().product();
    let fits = matches!(program.inputs.as_slice(), [image]
            if image.place.len == bytes && image.element == u8::datum_type())
        && matches!(program.outputs.as_slice(), [values]
            if values.place.len == genes && values.element == f32::datum_type());
    if !fits {
        return Err(Error::model(
            model.path(),
            format!(
                "for one tile its output `{OUTPUT}` is not {genes} values, one for each gene of its \
                 panel; export it again"
            ),
        ));
    }
    Ok(Box::new(CpuEngine { program: Arc::new(program), bytes, genes }))
}

/// Loads any graph with fixed shapes, for one input of shape `input`.
pub(super) fn runnable(proto: &ModelProto, input: &[usize]) -> TractResult<Box<dyn Runnable>> {
    runtime::CpuRuntime.prepare(typed(&widen(proto, Rounding::Left), input)?)
}

impl Engine for CpuEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        self.team_session(1)
    }

    fn team_session(&self, threads: usize) -> Result<Box<dyn Session>> {
        let session = CpuSession::new(Arc::clone(&self.program), threads).map_err(failure)?;
        Ok(Box::new(Tiles { session, bytes: self.bytes, genes: self.genes }))
    }

    fn instructions(&self) -> Option<String> {
        Some(self.program.isa.name().into())
    }

    fn list(&self) -> Option<String> {
        Some(self.program.list())
    }

    fn operator_times(&self, image: &[u8], repetitions: usize) -> Result<Vec<OperatorTime>> {
        let mut session = CpuSession::new(Arc::clone(&self.program), 1).map_err(failure)?;
        session.set_input(0, image).map_err(failure)?;
        session.run().map_err(failure)?;
        let mut times = vec![Vec::with_capacity(repetitions); self.program.ops.len()];
        for _ in 0..repetitions {
            session.set_input(0, image).map_err(failure)?;
            let mut before = Instant::now();
            let note = |k: usize| {
                let now = Instant::now();
                times[k].push((now - before).as_secs_f64() * 1e6);
                before = now;
            };
            session.run_with(note).map_err(failure)?;
        }
        let about = self.program.ops.iter().map(|op| &op.about);
        Ok(about
            .zip(&mut times)
            .map(|(about, times)| OperatorTime {
                name: about.name.clone(),
                line: about.line.clone(),
                kernel: about.kernel.clone(),
                macs: about.macs,
                microseconds: median(times),
            })
            .collect())
    }
}

/// A session as the program uses it: a tile in, genes out.
struct Tiles {
    session: CpuSession,
    bytes: usize,
    genes: usize,
}

impl Session for Tiles {
    fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
        expect_bytes(NAME, image, self.bytes)?;
        self.session.set_input(0, image).map_err(failure)?;
        self.session.run().map_err(failure)?;
        values.clear();
        values.extend_from_slice(self.session.output(0).map_err(failure)?);
        debug_assert_eq!(values.len(), self.genes);
        Ok(())
    }
}

/// An error of this engine while running.
fn failure(problem: impl std::fmt::Display) -> Error {
    Error::Engine { engine: NAME, problem: format!("{problem:#}") }
}
