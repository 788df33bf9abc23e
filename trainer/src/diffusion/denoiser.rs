//! Preconditioning and the uncertainty-weighted denoising loss.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::config::Config;
use super::ops;
use super::parameters::{Effective, Parameters};
use super::unet::{Condition, UNet};
use super::weights::Weights;
use crate::{Error, Result};

/// Mean and standard deviation of ln(sigma) in training.
pub const NOISE_MEAN: f64 = -0.4;
/// See [`NOISE_MEAN`].
pub const NOISE_STD: f64 = 1.0;

/// D(x; sigma, genes) = c_skip x + c_out F(c_in x, c_noise, genes), and the learned uncertainty
/// u(sigma).
#[derive(Debug, Clone)]
pub struct Denoiser {
    unet: UNet,
    frequencies: Tensor<1>,
    phases: Tensor<1>,
    logvar: Tensor<2>,
}

impl Denoiser {
    /// Assembles the denoiser from effective weights.
    pub fn new(config: &Config, effective: &Effective) -> Result<Self> {
        Ok(Self {
            unet: UNet::new(config, effective)?,
            frequencies: effective.get("logvar_fourier.freqs")?,
            phases: effective.get("logvar_fourier.phases")?,
            logvar: effective.get("logvar_linear.weight")?,
        })
    }

    /// Loads a stage-1 model directory.
    pub fn load(directory: &Path, device: &Device) -> Result<Self> {
        let config = Config::load(directory)?;
        let path = directory.join("weights.safetensors");
        let parameters = Parameters::from_weights(&config, &Weights::load(&path)?, device)
            .map_err(|problem| Error::model(&path, problem))?;
        Self::new(&config, &parameters.effective())
    }

    /// The network inside.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// Denoises `x [N, C, H, W]` at noise levels `sigma [N]`.
    pub fn denoise(
        &self,
        x: Tensor<4>,
        sigma: Tensor<1>,
        condition: Option<&Condition>,
    ) -> Tensor<4> {
        let n = sigma.dims()[0];
        let data = self.unet.config().sigma_data;
        let c_noise = sigma.clone().log().div_scalar(4.0);
        let s = sigma.reshape([n, 1, 1, 1]);
        let total = s.clone().square().add_scalar(data * data);
        let c_skip = total.clone().recip().mul_scalar(data * data);
        let c_in = total.sqrt().recip();
        let c_out = s * c_in.clone().mul_scalar(data);
        let f = self.unet.forward(x.clone() * c_in, c_noise, condition);
        x * c_skip + f * c_out
    }

    /// u(sigma) of every image, `[N]`.
    pub fn uncertainty(&self, sigma: Tensor<1>) -> Tensor<1> {
        let n = sigma.dims()[0];
        let c_noise = sigma.log().div_scalar(4.0);
        let features = ops::fourier(c_noise, self.frequencies.clone(), self.phases.clone());
        ops::linear(features, self.logvar.clone()).reshape([n])
    }

    /// Loss of every image, the mean over its pixels of `lambda / exp(u) |D - x0|^2 + u`, where x
    /// is `x0 + sigma noise` and `lambda = (s^2 + sd^2) / (s sd)^2`. `[N]`.
    pub fn loss(
        &self,
        x0: Tensor<4>,
        noise: Tensor<4>,
        sigma: Tensor<1>,
        condition: Option<&Condition>,
    ) -> Tensor<1> {
        let [n, c, h, w] = x0.dims();
        let data = self.unet.config().sigma_data;
        let x = x0.clone() + noise * sigma.clone().reshape([n, 1, 1, 1]);
        let error = self.denoise(x, sigma.clone(), condition) - x0;
        // Rows are summed first: one sum over a whole image loses digits in single precision.
        let squared = error.square().reshape([n, c * h, w]).sum_dim(2).sum_dim(1).reshape([n]);
        let mean = squared.div_scalar((c * h * w) as f64);
        let variance = sigma.clone().square();
        let lambda = variance.clone().add_scalar(data * data) / variance.mul_scalar(data * data);
        let u = self.uncertainty(sigma);
        mean * lambda * u.clone().neg().exp() + u
    }
}
