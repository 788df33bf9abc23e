//! Multiply-accumulates of one tile, by part of the graph.

use std::collections::BTreeMap;

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::Cost;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;

/// The model with the inputs' first dimension fixed to one tile, shapes and types known.
///
/// # Errors
/// If the graph is not one tract can type; the message says where.
pub fn typed(model: &ModelProto) -> TractResult<TypedModel> {
    // Outputs are declared for any number of tiles; here their shapes follow from the input.
    let mut model = onnx().with_ignore_output_shapes(true).model_for_proto_model(model)?;
    for index in 0..model.input_outlets()?.len() {
        let mut fact = model.input_fact(index)?.clone();
        fact.shape.set_dim(0, 1.to_dim());
        model.set_input_fact(index, fact)?;
    }
    model.into_typed()
}

/// Multiply-accumulates in convolutions and matrix products for one tile, by the first part of
/// the nodes' names.
///
/// # Errors
/// As [`typed`], and if a shape stays open.
pub fn by_part(model: &TypedModel) -> TractResult<BTreeMap<String, u64>> {
    let mut parts = BTreeMap::new();
    for node in model.nodes() {
        if !(node.op_is::<Conv>() || node.op_is::<EinSum>()) {
            continue;
        }
        let facts = node
            .inputs
            .iter()
            .map(|&outlet| model.outlet_fact(outlet))
            .collect::<TractResult<TVec<_>>>()?;
        for (cost, count) in node.op.cost(&facts)? {
            if matches!(cost, Cost::FMA(_)) {
                let part = node.name.split('/').next().unwrap_or_default().to_owned();
                *parts.entry(part).or_default() += count.to_i64()?.unsigned_abs();
            }
        }
    }
    Ok(parts)
}
