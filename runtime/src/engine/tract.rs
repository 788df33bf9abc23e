//! The `tract` engine: any ONNX graph, one tile at a time, one thread a session.
//!
//! tract runs a batch of one fastest and single-threaded, so the batch dimension is fixed to 1 when
//! loading and parallelism comes from running one session per core.

use std::borrow::Cow;
use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;

use super::{Engine, Session, expect_bytes};
use crate::model::typed::{guarded, typed};
use crate::model::{Model, OUTPUT, pb};
use crate::{Error, Result};

/// Registered name.
pub(crate) const NAME: &str = "tract";

/// A plan shared by all sessions.
pub(crate) type Plan = Arc<TypedSimplePlan>;

struct TractEngine {
    plan: Plan,
    input: [usize; 4],
    genes: usize,
}

struct TractSession {
    state: TypedSimpleState,
    input: [usize; 4],
    genes: usize,
}

/// Loads `model`.
pub(crate) fn open(model: &Model, proto: Cow<pb::ModelProto>) -> Result<Box<dyn Engine>> {
    let input = model.input_shape();
    let genes = model.metadata().panel.len();
    let plan = guarded(model.path(), || plan(&proto, &input))?;
    let shape = guarded(model.path(), || output_shape(&plan, 0))?;
    if shape != [1, genes] {
        return Err(Error::model(
            model.path(),
            format!(
                "for one tile its output `{OUTPUT}` has shape {shape:?}, but its panel has \
                 {genes} genes; export it again"
            ),
        ));
    }
    Ok(Box::new(TractEngine { plan, input, genes }))
}

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        let state = self.plan.spawn().map_err(failure)?;
        Ok(Box::new(TractSession { state, input: self.input, genes: self.genes }))
    }
}

impl Session for TractSession {
    fn predict_into(&mut self, image: &[u8], into: &mut Vec<f32>) -> Result<()> {
        let bytes: usize = self.input.iter().product();
        expect_bytes(NAME, image, bytes)?;
        let input = Tensor::from_shape(&self.input, image).map_err(failure)?;
        let values = run(&mut self.state, input, 0)?;
        if values.len() != self.genes {
            return Err(failure(format!(
                "{} values came out for {} genes",
                values.len(),
                self.genes
            )));
        }
        *into = values;
        Ok(())
    }
}

/// Runs one input through `state` and copies output `output` out.
pub(crate) fn run(state: &mut TypedSimpleState, input: Tensor, output: usize) -> Result<Vec<f32>> {
    let outputs = state.run(tvec!(input.into())).map_err(failure)?;
    let tensor = outputs.get(output).ok_or_else(|| failure("the graph has no such output"))?;
    let view = tensor.try_as_plain_ram().map_err(failure)?;
    Ok(view.as_slice::<f32>().map_err(failure)?.to_vec())
}

/// An optimised plan of `proto` for one input of shape `input`.
pub(crate) fn plan(proto: &pb::ModelProto, input: &[usize]) -> TractResult<Plan> {
    typed(proto, input)?.into_optimized()?.into_runnable()
}

/// Concrete shape of output `output`.
pub(crate) fn output_shape(plan: &Plan, output: usize) -> TractResult<Vec<usize>> {
    let fact = plan.model().output_fact(output)?;
    Ok(fact.shape.iter().map(DimLike::to_usize).collect::<Result<_, _>>()?)
}

/// An error of this engine while running.
pub(crate) fn failure(problem: impl std::fmt::Display) -> Error {
    Error::Engine { engine: NAME, problem: format!("{problem:#}") }
}
