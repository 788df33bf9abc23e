//! Which algorithm and which vectors compute a shape fastest. The rules are measured by `benches/benches/kernels.rs`.

use super::{ConvAlgorithm, ConvSpec, winograd};
use crate::Isa;

/// F(4x4) wins wherever it fits, down to 7x7 maps of 64 channels and 56x56 of 16. Half precision doubles the products a
/// cycle, which is less than F(4x4) saves in single.
pub(super) fn algorithm(isa: Isa, spec: &ConvSpec) -> ConvAlgorithm {
    if spec.depthwise {
        ConvAlgorithm::Depthwise
    } else if winograd::fits(spec) {
        ConvAlgorithm::Winograd4
    } else if isa == Isa::NeonFp16 {
        ConvAlgorithm::GemmHalf
    } else {
        ConvAlgorithm::Gemm
    }
}

/// The instruction set whose vectors fit the output channels: 24 channels are three vectors of 8 and one and a half of
/// 16, and cores with AVX-512 mostly multiply as many floats a cycle either way.
pub(super) fn vectors(isa: Isa, spec: &ConvSpec, algorithm: ConvAlgorithm) -> Isa {
    let half_empty = (1..=8).contains(&(spec.out_channels % 16)) && spec.out_channels < 48;
    match isa {
        Isa::Avx512 | Isa::Avx512Vnni if algorithm == ConvAlgorithm::Gemm && half_empty => {
            Isa::Avx2
        }
        _ => isa,
    }
}
