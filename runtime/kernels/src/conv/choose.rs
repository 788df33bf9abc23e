//! Which algorithm and which vectors compute a shape fastest. The rules are measured by `benches/benches/kernels.rs`.

use super::{ConvAlgorithm, ConvSpec, winograd};
use crate::Isa;

/// Tiles of 4x4 outputs below which a transformed weight, fetched once a tile of the slide, serves too few of them: a
/// 7x7 map has four. F(2x2) has less than half the weights and is then faster unless they are in the second-level cache
/// already (192 to 96 channels: 90 microseconds to 155).
const FEW_TILES: usize = 8;

/// F(4x4) wins on all larger maps, down to 16 channels. Half precision doubles the products a cycle, which is less than
/// F(4x4) saves in single.
pub(super) fn algorithm(isa: Isa, spec: &ConvSpec) -> ConvAlgorithm {
    if spec.depthwise {
        ConvAlgorithm::Depthwise
    } else if winograd::fits(spec) {
        let tiles = spec.out_height().div_ceil(4) * spec.out_width().div_ceil(4);
        if tiles < FEW_TILES { ConvAlgorithm::Winograd2 } else { ConvAlgorithm::Winograd4 }
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
