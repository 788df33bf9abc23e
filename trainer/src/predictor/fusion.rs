//! The four ways to join foundation features z_fm and diffusion features z_diff.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::HeadConfig;

/// How z_fm and z_diff become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum FusionKind {
    /// z = z_fm + sigmoid(W [z_fm, z_diff]) * P z_diff.
    #[default]
    GatedResidual,
    /// z = [z_fm, c z_diff].
    Concat,
    /// z = c z_fm + (1 - c) z_diff.
    Add,
    /// z = (1 + gamma(z_diff)) * z_fm + beta(z_diff).
    Film,
}

impl FusionKind {
    /// Whether the fusion has a weight c.
    pub fn has_c(self) -> bool {
        matches!(self, Self::Concat | Self::Add)
    }
}

/// A linear layer behind an index, as in a published sequence of layers (`gate.0`).
pub type Indexed = [Linear; 1];

/// Parameters of one fusion; those that its kind does not use are absent.
#[derive(Module, Debug)]
pub struct Fusion {
    /// W of the gated residual.
    pub gate: Option<Indexed>,
    /// P of the gated residual; also brings z_diff to the width of z_fm where they are added.
    pub fusion_proj: Option<Linear>,
    /// gamma of FiLM.
    pub film_gamma: Option<Linear>,
    /// beta of FiLM.
    pub film_beta: Option<Linear>,
    /// The learned weight of concat and add, before its sigmoid.
    pub c: Option<Param<Tensor<1>>>,
    #[module(skip)]
    kind: FusionKind,
    #[module(skip)]
    fixed_c: f32,
}

impl Fusion {
    /// Fresh parameters for z_fm and z_diff of the given widths.
    pub fn new(config: &HeadConfig, foundation: usize, diffusion: usize, device: &Device) -> Self {
        let kind = config.fusion;
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let gated = kind == FusionKind::GatedResidual;
        let film = kind == FusionKind::Film;
        let projected =
            gated || config.projected || (kind == FusionKind::Add && foundation != diffusion);
        // What FiLM's layers see of z_diff.
        let seen = if projected { foundation } else { diffusion };
        Self {
            gate: gated.then(|| [linear(foundation + diffusion, foundation)]),
            fusion_proj: projected.then(|| linear(diffusion, foundation)),
            film_gamma: film.then(|| linear(seen, foundation)),
            film_beta: film.then(|| linear(seen, foundation)),
            c: (kind.has_c() && config.c_learnable)
                .then(|| Param::from_tensor(Tensor::full([1], config.c, device))),
            kind,
            fixed_c: config.c,
        }
    }

    /// Width of the joined vector.
    pub fn width(config: &HeadConfig, foundation: usize, diffusion: usize) -> usize {
        match config.fusion {
            FusionKind::Concat if config.projected => 2 * foundation,
            FusionKind::Concat => foundation + diffusion,
            _ => foundation,
        }
    }

    /// Joins z_fm [N, F] and z_diff [N, D].
    pub fn forward(&self, foundation: Tensor<2>, diffusion: Tensor<2>) -> Tensor<2> {
        let projected = |z: Tensor<2>| match &self.fusion_proj {
            Some(projection) => projection.forward(z),
            None => z,
        };
        match self.kind {
            FusionKind::GatedResidual => {
                let residual = projected(diffusion.clone());
                let residual = match &self.gate {
                    Some([gate]) => {
                        let both = Tensor::cat(vec![foundation.clone(), diffusion], 1);
                        residual * sigmoid(gate.forward(both))
                    }
                    None => residual,
                };
                foundation + residual
            }
            FusionKind::Concat => {
                let weighted = projected(diffusion);
                let weighted = match self.weight() {
                    Some(c) => weighted * c,
                    None => weighted * self.fixed_c,
                };
                Tensor::cat(vec![foundation, weighted], 1)
            }
            FusionKind::Add => {
                let diffusion = projected(diffusion);
                match self.weight() {
                    Some(c) => foundation * c.clone() + diffusion * (c.neg() + 1.0),
                    None => foundation * self.fixed_c + diffusion * (1.0 - self.fixed_c),
                }
            }
            FusionKind::Film => {
                let diffusion = projected(diffusion);
                let scaled = match &self.film_gamma {
                    Some(gamma) => foundation * (gamma.forward(diffusion.clone()) + 1.0),
                    None => foundation,
                };
                match &self.film_beta {
                    Some(beta) => scaled + beta.forward(diffusion),
                    None => scaled,
                }
            }
        }
    }

    /// The learned weight [1, 1], if it is learned.
    fn weight(&self) -> Option<Tensor<2>> {
        self.c.as_ref().map(|c| sigmoid(c.val()).unsqueeze())
    }
}
