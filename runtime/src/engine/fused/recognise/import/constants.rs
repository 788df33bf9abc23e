//! Constants: what is computed when loading, and what stands for one value a channel.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;
use tract_onnx::tract_core::ops::source::TypedSource;

use crate::engine::fused::list::Channels;
use crate::engine::fused::recognise::graph::{Graph, Id};

/// Largest constant that is computed when loading, in elements.
const MAX_FOLDED: usize = 1 << 24;

/// Its values, where they do not depend on the graph's inputs.
pub(super) fn folded(
    graph: &Graph,
    node: &TypedNode,
    inputs: &[Id],
) -> TractResult<Option<Vec<Arc<Tensor>>>> {
    if node.op_is::<TypedSource>() {
        return Ok(None);
    }
    if let [output] = node.outputs.as_slice()
        && let Some(constant) = &output.fact.konst
    {
        return Ok(Some(vec![Arc::clone(constant)]));
    }
    let constants: Option<TVec<TValue>> = inputs
        .iter()
        .map(|&id| graph.constant(id).map(|tensor| tensor.clone().into_tvalue()))
        .collect();
    let Some(constants) = constants else { return Ok(None) };
    let small = node.outputs.iter().all(|output| {
        let len: TDim = output.fact.shape.iter().product();
        len.to_usize().is_ok_and(|len| len <= MAX_FOLDED)
    });
    if !small || inputs.is_empty() {
        return Ok(None);
    }
    let values = node.op.eval_out_of_plan(constants)?;
    Ok(values.map(|values| values.into_iter().map(|value| value.into_arc_tensor()).collect()))
}

/// A constant that is broadcast against a value of the shape of `output`: one value, or one for each
/// index along the second axis (channels).
pub(super) fn channels(tensor: &Tensor, graph: &Graph, output: Id) -> Option<Channels> {
    if tensor.datum_type() != f32::datum_type() {
        return None;
    }
    let view = tensor.try_as_plain_ram().ok()?;
    let values = view.as_slice::<f32>().ok()?;
    if let [value] = values {
        return Some(Channels::One(*value));
    }
    if let Some((first, rest)) = values.split_first()
        && rest.iter().all(|value| value == first)
    {
        return Some(Channels::One(*first));
    }
    let dims = graph.dims(output);
    let lead = dims.len().checked_sub(tensor.rank())?;
    let along_channels = dims.len() >= 2
        && dims[1] == values.len()
        && tensor.shape().iter().enumerate().all(|(k, &n)| k + lead == 1 || n == 1);
    along_channels.then(|| Channels::Each(values.into()))
}
