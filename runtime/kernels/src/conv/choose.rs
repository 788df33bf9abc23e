//! Which algorithm computes a shape fastest. The rules are measured by `benches/benches/kernels.rs`.

use super::{ConvAlgorithm, ConvSpec, winograd};
use crate::Isa;

pub(super) fn algorithm(_isa: Isa, spec: &ConvSpec) -> ConvAlgorithm {
    if spec.depthwise {
        return ConvAlgorithm::Depthwise;
    }
    if !winograd::fits(spec) {
        return ConvAlgorithm::Gemm;
    }
    ConvAlgorithm::Winograd4
}
