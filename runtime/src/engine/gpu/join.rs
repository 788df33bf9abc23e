//! Puts functions of one map's pixels where that map is made: they become steps of the operator that stores it, and
//! cost no dispatch and no reading of their own.

use crate::engine::fused::{BufferId, Channels, Core, FusedGraph, FusedOp, Step};

/// Joins what can be joined.
pub(super) fn join(graph: &mut FusedGraph) {
    let mut k = 0;
    while k < graph.ops.len() {
        match maker(graph, k) {
            Some((at, place)) => {
                let joined = graph.ops.remove(k);
                let map = joined.inputs[0].buffer;
                let steps = &mut graph.ops[at].steps;
                let rest = steps.split_off(place + 1);
                steps.extend(joined.steps);
                if !rest.is_empty() {
                    steps.push(Step::Load(map));
                    steps.extend(rest);
                }
            }
            None => k += 1,
        }
    }
}

/// The operator that operator `k` can join, and the step after which.
fn maker(graph: &FusedGraph, k: usize) -> Option<(usize, usize)> {
    let op = &graph.ops[k];
    let ([input], Core::Map) = (&op.inputs[..], &op.core) else { return None };
    let other = |step: &Step| matches!(step, Step::Norm { .. } | Step::Pool | Step::Load(_));
    if input.upsample != 1 || op.steps.iter().any(other) {
        return None;
    }
    let stores = |op: &FusedOp| {
        op.steps.iter().position(|step| matches!(step, Step::Store(id) if *id == input.buffer))
    };
    let (at, place) = graph.ops[..k]
        .iter()
        .enumerate()
        .find_map(|(at, op)| stores(op).map(|place| (at, place)))?;
    let found = &graph.ops[at];
    let is_able = matches!(
        found.core,
        Core::Conv(_) | Core::IntegerConv(_) | Core::Map | Core::Attention(_) | Core::Dense(_)
    );
    let last = place + 1 == found.steps.len();
    let made_before = |id: BufferId| {
        graph.inputs.contains(&id) || graph.ops[..at].iter().any(|op| op.writes().any(|w| w == id))
    };
    let fits = op.steps.iter().all(|step| match step {
        Step::Add { input, .. } | Step::Multiply(input) => last && made_before(input.buffer),
        Step::Scale(Channels::Each(_)) | Step::Offset(Channels::Each(_)) => last,
        _ => true,
    });
    (is_able && fits).then_some((at, place))
}
