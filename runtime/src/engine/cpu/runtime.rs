//! The engine as one of tract's runtimes, for any graph with fixed shapes.

use std::sync::Arc;

use diffbulk_kernels::Isa;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{
    Runnable, Runtime, State, StaticName, anyhow, ensure, inventory, register_runtime,
};
use tract_onnx::tract_core::runtime::RunOptions;

use super::program::Program;
use super::session::CpuSession;
use crate::engine::fused;

/// What tract finds under `diffbulk-cpu` (`cpu` is its own).
#[derive(Debug)]
pub(super) struct CpuRuntime;

register_runtime!(CpuRuntime = CpuRuntime);

impl Runtime for CpuRuntime {
    fn name(&self) -> StaticName {
        "diffbulk-cpu".into()
    }

    fn check(&self) -> TractResult<()> {
        Isa::from_environment().map(|_| ()).map_err(|problem| anyhow!("{problem}"))
    }

    fn prepare_with_options(
        &self,
        model: TypedModel,
        _: &RunOptions,
    ) -> TractResult<Box<dyn Runnable>> {
        let isa = Isa::from_environment().map_err(|problem| anyhow!("{problem}"))?;
        let program = Arc::new(Program::new(fused::fuse(model.clone())?, isa)?);
        Ok(Box::new(CpuRunnable { program, model: Arc::new(model) }))
    }
}

#[derive(Clone)]
struct CpuRunnable {
    program: Arc<Program>,
    model: Arc<TypedModel>,
}

impl std::fmt::Debug for CpuRunnable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuRunnable of {} operators", self.program.ops.len())
    }
}

impl Runnable for CpuRunnable {
    fn spawn(&self) -> TractResult<Box<dyn State>> {
        let session = CpuSession::new(Arc::clone(&self.program), 1)?;
        Ok(Box::new(CpuState { session, runnable: self.clone() }))
    }

    fn typed_plan(&self) -> Option<&Arc<TypedSimplePlan>> {
        None
    }

    fn typed_model(&self) -> Option<&Arc<TypedModel>> {
        Some(&self.model)
    }
}

struct CpuState {
    session: CpuSession,
    runnable: CpuRunnable,
}

impl std::fmt::Debug for CpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuState of {:?}", self.runnable)
    }
}

impl Clone for CpuState {
    /// A session of its own: sessions keep nothing from one run to the next.
    ///
    /// # Panics
    /// When there is no memory for it, as for any other clone.
    fn clone(&self) -> Self {
        let session = self.session.again().unwrap_or_else(|problem| panic!("{problem}"));
        Self { session, runnable: self.runnable.clone() }
    }
}

impl State for CpuState {
    fn run(&mut self, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == self.runnable.program.inputs.len(), "{} inputs", inputs.len());
        for (k, input) in inputs.iter().enumerate() {
            let expected = self.runnable.program.inputs[k].element;
            ensure!(input.datum_type() == expected, "input {k} is not of type {expected:?}");
            self.session.set_input(k, input.try_as_plain_ram()?.as_bytes())?;
        }
        self.session.run()?;
        (0..self.runnable.program.outputs.len())
            .map(|k| {
                let fact = self.runnable.model.output_fact(k)?;
                let shape =
                    fact.shape.as_concrete().ok_or_else(|| anyhow!("a shape of symbols"))?;
                let bytes = self.session.output_bytes(k)?;
                let element = self.runnable.program.outputs[k].element;
                ensure!(element == fact.datum_type, "output {k} is of type {element:?}");
                // SAFETY: the bytes are a buffer's of elements of this type, copied as they are.
                let tensor = unsafe { Tensor::from_raw_dt(fact.datum_type, shape, bytes)? };
                Ok(tensor.into_tvalue())
            })
            .collect()
    }

    fn runnable(&self) -> &dyn Runnable {
        &self.runnable
    }
}
