//! What tests of other engines need of this one.

use std::sync::Arc;

use diffbulk_kernels::Isa;

use super::program::Program;
use super::session::CpuSession;
use crate::engine::fused::{BufferId, FusedGraph};

/// The values of maps `wanted`, all of reals, while `graph` predicts `image`.
pub(in crate::engine) fn maps(
    mut graph: FusedGraph,
    wanted: &[BufferId],
    image: &[u8],
) -> Vec<Vec<f32>> {
    graph.outputs = wanted.to_vec();
    let program = Program::new(graph, Isa::from_environment().unwrap()).unwrap();
    let mut session = CpuSession::new(Arc::new(program), 1).unwrap();
    session.set_input(0, image).unwrap();
    session.run().unwrap();
    (0..wanted.len()).map(|k| session.output(k).unwrap().to_vec()).collect()
}
