//! MSFE-Net: one small branch per level of the U-Net's decoder, and plain statistics of a level.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};

use super::config::HeadConfig;

/// conv 3x3 -> GroupNorm -> SiLU -> global average pool.
#[derive(Module, Debug)]
pub struct Branch {
    /// 3x3, padded to keep the resolution.
    pub conv: Conv2d,
    /// Over groups of channels, eps 1e-5.
    pub norm: GroupNorm,
}

impl Branch {
    /// A branch for a level of `channels` channels.
    pub fn new(channels: usize, config: &HeadConfig, device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new([channels, config.branch_out], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            norm: GroupNormConfig::new(config.groups, config.branch_out).init(device),
        }
    }

    /// [N, C, H, W] to [N, branch_out].
    pub fn forward(&self, features: Tensor<4>) -> Tensor<2> {
        let [images, ..] = features.dims();
        let activated = silu(self.norm.forward(self.conv.forward(features)));
        let [_, channels, height, width] = activated.dims();
        activated.reshape([images, channels, height * width]).mean_dim(2).squeeze_dim(2)
    }
}

/// Mean, then standard deviation (divided by their number) over the positions of every channel:
/// [N, C, H, W] to [N, 2 C].
pub fn statistics(features: Tensor<4>) -> Tensor<2> {
    let [images, channels, height, width] = features.dims();
    let values = features.reshape([images, channels, height * width]);
    let mean = values.clone().mean_dim(2);
    let deviation = (values - mean.clone()).square().mean_dim(2).sqrt();
    Tensor::cat(vec![mean.squeeze_dim(2), deviation.squeeze_dim(2)], 1)
}
