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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Weights;
    use crate::predictor::parameters;
    use crate::predictor::{Head, Start};
    use burn::tensor::TensorData;

    const F: usize = 2;
    const D: usize = 3;

    fn config(fusion: FusionKind, c_learnable: bool) -> HeadConfig {
        HeadConfig {
            fusion,
            c: 0.7,
            c_learnable,
            genes: 1,
            branch_channels: vec![1],
            branch_out: D,
            groups: 1,
            foundation_dim: F,
            map_statistics: false,
            standardized: false,
            projected: false,
            foundation_width: None,
            activated: false,
            hidden: Vec::new(),
            linear_skip: false,
            dropout: 0.0,
            input_dropout: 0.0,
            components: None,
            members: 1,
        }
    }

    /// Bias plus weight times vector, by the published layout [outputs, inputs].
    fn linear(weights: &Weights, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = weights.get(&format!("{name}.weight")).unwrap();
        let bias = weights.get(&format!("{name}.bias")).unwrap();
        let row = |o: usize| {
            let w = &weight.data[o * x.len()..][..x.len()];
            f64::from(bias.data[o]) + w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>()
        };
        (0..bias.data.len()).map(row).collect()
    }

    fn logistic(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn expected(config: &HeadConfig, w: &Weights, fm: &[f64], diff: &[f64]) -> Vec<f64> {
        let c = match w.get("c") {
            Some(c) => logistic(f64::from(c.data[0])),
            None => f64::from(config.c),
        };
        let zip = |a: Vec<f64>, b: Vec<f64>, f: fn(f64, f64) -> f64| -> Vec<f64> {
            a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()
        };
        match config.fusion {
            FusionKind::GatedResidual => {
                let gate = linear(w, "gate.0", &[fm, diff].concat());
                let residual = linear(w, "fusion_proj", diff);
                let gated = zip(gate, residual, |g, p| logistic(g) * p);
                zip(fm.to_vec(), gated, |a, b| a + b)
            }
            FusionKind::Concat => [fm.to_vec(), diff.iter().map(|v| c * v).collect()].concat(),
            FusionKind::Add => {
                let diff = linear(w, "fusion_proj", diff);
                fm.iter().zip(diff).map(|(a, b)| c * a + (1.0 - c) * b).collect()
            }
            FusionKind::Film => {
                let scaled = zip(linear(w, "film_gamma", diff), fm.to_vec(), |g, z| (1.0 + g) * z);
                zip(scaled, linear(w, "film_beta", diff), |a, b| a + b)
            }
        }
    }

    #[test]
    fn every_fusion_is_its_equation() {
        let device = Device::flex();
        let (fm, diff) = ([0.5, -1.25], [0.3, 2.0, -0.7]);
        let row = |v: &[f64]| {
            let values: Vec<f32> = v.iter().map(|v| *v as f32).collect();
            Tensor::<2>::from_data(TensorData::new(values, [1, v.len()]), &device)
        };
        for fusion in
            [FusionKind::GatedResidual, FusionKind::Concat, FusionKind::Add, FusionKind::Film]
        {
            for learnable in [false, true] {
                let config = config(fusion, learnable);
                let head = Head::seeded(&config, Start::Uniform, 4, &device);
                let fusion = head.member[0].fusion.as_ref().unwrap();
                let weights = parameters::parameters(fusion);
                let got = fusion.forward(row(&fm), row(&diff));
                let got = got.into_data().try_into_vec::<f32>().unwrap();
                let want = expected(&config, &weights, &fm, &diff);
                assert_eq!(got.len(), want.len());
                assert_eq!(want.len(), Fusion::width(&config, F, D));
                for (a, b) in got.iter().zip(&want) {
                    assert!(
                        (f64::from(*a) - b).abs() < 1e-5,
                        "{:?}: {got:?}, {want:?}",
                        config.fusion
                    );
                }
            }
        }
    }

    #[test]
    fn a_plain_head_has_the_published_names() {
        let config = config(FusionKind::GatedResidual, true);
        let weights = Head::seeded(&config, Start::Uniform, 0, &Device::flex()).to_weights();
        let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "block1.conv.bias",
                "block1.conv.weight",
                "block1.norm.bias",
                "block1.norm.weight",
                "fusion_proj.bias",
                "fusion_proj.weight",
                "gate.0.bias",
                "gate.0.weight",
                "out.bias",
                "out.weight",
            ]
        );
        assert_eq!(weights.get("gate.0.weight").unwrap().shape, [F, F + D]);
    }
}
