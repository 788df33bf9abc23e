//! The graph with all types and shapes worked out: what counting and running start from.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tract_onnx::prelude::*;

use super::dequantise::{dequantise_weights, has_integer_weights};
use super::pb;
use super::widen::{Rounding, widen};
use crate::process::release_free_memory;
use crate::{Error, Result};

/// The typed graph of `proto` for one input of shape `input`, its element type as declared.
pub(crate) fn typed(proto: &pb::ModelProto, input: &[usize]) -> TractResult<TypedModel> {
    typed_once(Cow::Borrowed(proto), input)
}

/// As [`typed`]; a graph that comes owned is let go as soon as its weights are copied.
pub(crate) fn typed_once(
    mut proto: Cow<pb::ModelProto>,
    input: &[usize],
) -> TractResult<TypedModel> {
    if has_integer_weights(&proto)
        && let Some(graph) = &mut proto.to_mut().graph
    {
        dequantise_weights(graph);
    }
    let mut model = tract_onnx::onnx()
        // The declared output shapes carry a symbolic batch, which contradicts the fixed one.
        .with_ignore_output_shapes(true)
        .model_for_proto_model(&widen(&proto, Rounding::Kept))?;
    if let Cow::Owned(proto) = proto {
        drop(proto);
        // A copy of all weights, which what follows needs.
        release_free_memory();
    }
    let declared = model.input_fact(0)?.clone();
    let fact = InferenceFact::new().with_shape(input);
    let fact = match declared.datum_type() {
        Some(datum_type) => fact.with_datum_type(datum_type),
        None => fact,
    };
    model.set_input_fact(0, fact)?;
    model.into_typed()
}

/// Runs tract's graph building. Its errors, and the panics that some damaged graphs still cause
/// in it, become an error about the model at `path`.
pub(crate) fn guarded<T>(path: &Path, build: impl FnOnce() -> TractResult<T>) -> Result<T> {
    let problem = match catch_unwind(AssertUnwindSafe(build)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".into()),
    };
    Err(Error::model(path, format!("its graph cannot be loaded ({problem}); is the file damaged?")))
}
