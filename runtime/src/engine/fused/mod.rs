//! A model as a short list of fused operators with planned buffers, made from tract's typed graph.
//!
//! [`fuse`] is the way in: [`recognise`] finds the operators, [`plan`] gives every buffer its place,
//! and [`FusedGraph`] is the list, printable with shapes and buffers. It says what to compute and
//! where values lie, not how: an engine lowers it to its own kernels.

mod bytes;
mod list;
mod plan;
mod quantised;
mod recognise;
mod show;

use tract_onnx::prelude::*;

pub use bytes::{Bias, Tables, tables};
pub use list::*;
pub use plan::plan;

/// The fused operators of `model`: the graph as loading typed it, with a fixed shape for every
/// input. What is not recognised stays an operator of tract's; a graph that cannot be read at all
/// becomes a single one.
///
/// # Errors
/// When tract cannot run the graph either.
pub fn fuse(model: TypedModel) -> TractResult<FusedGraph> {
    let mut graph = match recognise::recognise(&model) {
        Ok(graph) => graph,
        Err(problem) => {
            tracing::debug!("the graph is left to tract: {problem:#}");
            recognise::whole(model)?
        }
    };
    quantised::quantise(&mut graph);
    plan::plan(&mut graph);
    Ok(graph)
}
