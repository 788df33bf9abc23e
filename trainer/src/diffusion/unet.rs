//! The gene-conditioned U-Net F(x, c_noise, genes).

use std::path::Path;

use burn::tensor::{Device, Int, Tensor};

use super::config::{Block, Config, Resample, Side};
use super::ops;
use super::parameters::{Effective, Parameters};
use super::weights::Weights;
use crate::genes::GeneEncoder;
use crate::{Error, Result};

/// How stage-2 features are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FeatureMode {
    /// The denoiser's own forward.
    #[default]
    Consistent,
    /// As the released stage-2 code does: plain concatenation, and the noise embedding without
    /// its SiLU. For heads trained by that code.
    Published,
}

/// Expression that conditions the first `values.dims()[0]` images of a batch; the remaining
/// images are denoised without genes.
#[derive(Debug, Clone)]
pub struct Condition {
    /// log1p expression `[M, G]`.
    pub values: Tensor<2>,
    /// Rows of the gene table, one for each column of `values`; absent for the whole table in
    /// order.
    pub rows: Option<Tensor<1, Int>>,
    /// Dropout of the gene encoder in training: the probability and the stream that decides.
    pub dropout: Option<(f64, crate::train::random::Stream)>,
}

impl Condition {
    /// Conditions on the whole panel without dropout.
    pub fn panel(values: Tensor<2>) -> Self {
        Self { values, rows: None, dropout: None }
    }
}

#[derive(Debug, Clone)]
struct Attention {
    qkv: Tensor<4>,
    proj: Tensor<4>,
    heads: usize,
}

#[derive(Debug, Clone)]
struct Layer {
    block: Block,
    conv_res0: Tensor<4>,
    conv_res1: Tensor<4>,
    emb_linear: Tensor<2>,
    conv_skip: Option<Tensor<4>>,
    attention: Option<Attention>,
}

impl Layer {
    fn new(block: Block, effective: &Effective) -> Result<Self> {
        let name = |part: &str| format!("unet.{}.{part}.weight", block.name);
        Ok(Self {
            conv_res0: effective.get(&name("conv_res0"))?,
            conv_res1: effective.get(&name("conv_res1"))?,
            emb_linear: effective.get(&name("emb_linear"))?,
            conv_skip: block
                .has_skip_convolution()
                .then(|| effective.get(&name("conv_skip")))
                .transpose()?,
            attention: (block.heads > 0)
                .then(|| {
                    Ok::<_, Error>(Attention {
                        qkv: effective.get(&name("attn_qkv"))?,
                        proj: effective.get(&name("attn_proj"))?,
                        heads: block.heads,
                    })
                })
                .transpose()?,
            block,
        })
    }

    fn forward(&self, x: Tensor<4>, embedding: Tensor<2>) -> Tensor<4> {
        let mut x = match self.block.resample {
            Resample::Keep => x,
            Resample::Down => ops::down(x),
            Resample::Up => ops::up(x),
        };
        if self.block.side == Side::Encoder {
            if let Some(weight) = &self.conv_skip {
                x = ops::conv(x, weight.clone());
            }
            x = ops::pixel_norm(x);
        }

        let y = ops::conv(ops::mp_silu_image(x.clone()), self.conv_res0.clone());
        let factor = ops::linear(embedding, self.emb_linear.clone()).add_scalar(1.0);
        let y = ops::conv(ops::mp_silu_modulated(y, factor), self.conv_res1.clone());

        if self.block.side == Side::Decoder
            && let Some(weight) = &self.conv_skip
        {
            x = ops::conv(x, weight.clone());
        }
        let clip_now = self.attention.is_none();
        let x = ops::mp_sum_image(x, y, ops::BRANCH_BALANCE, clip_now);
        match &self.attention {
            None => x,
            Some(attention) => {
                let qkv = ops::conv(x.clone(), attention.qkv.clone());
                let y = ops::pixel_attention(qkv, attention.heads);
                let y = ops::conv(y, attention.proj.clone());
                ops::mp_sum_image(x, y, ops::BRANCH_BALANCE, true)
            }
        }
    }
}

/// The U-Net with its effective (normalised) weights on a device.
#[derive(Debug, Clone)]
pub struct UNet {
    config: Config,
    frequencies: Tensor<1>,
    phases: Tensor<1>,
    emb_noise: Tensor<2>,
    genes: Option<(GeneEncoder, Tensor<2>)>,
    stem: Tensor<4>,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    out_conv: Tensor<4>,
}

impl UNet {
    /// Loads a stage-1 model directory (`config.json`, `weights.safetensors`).
    pub fn load(directory: &Path, device: &Device) -> Result<Self> {
        let config = Config::load(directory)?;
        let path = directory.join("weights.safetensors");
        let parameters = Parameters::from_weights(&config, &Weights::load(&path)?, device)
            .map_err(|problem| Error::model(&path, problem))?;
        Self::new(&config, &parameters.effective())
    }

    /// Assembles the network from effective weights.
    pub fn new(config: &Config, effective: &Effective) -> Result<Self> {
        let (encoder, decoder) = config.blocks();
        let layers = |blocks: Vec<Block>| {
            blocks.into_iter().map(|b| Layer::new(b, effective)).collect::<Result<Vec<_>>>()
        };
        let genes = if config.panel_size > 0 {
            let encoder = GeneEncoder::new(config, effective)?;
            Some((encoder, effective.get("unet.emb_gene.1.weight")?))
        } else {
            None
        };
        Ok(Self {
            config: config.clone(),
            frequencies: effective.get("unet.noise_emb_fourier.freqs")?,
            phases: effective.get("unet.noise_emb_fourier.phases")?,
            emb_noise: effective.get("unet.emb_noise.weight")?,
            genes,
            stem: effective.get(&format!("unet.{}.weight", config.stem_name()))?,
            encoder: layers(encoder)?,
            decoder: layers(decoder)?,
            out_conv: effective.get("unet.out_conv.weight")?,
        })
    }

    /// The architecture.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.stem.device()
    }

    /// Embedding of the noise level before any SiLU: `[N]` to `[N, E]`.
    pub fn noise_embedding(&self, c_noise: Tensor<1>) -> Tensor<2> {
        let features = ops::fourier(c_noise, self.frequencies.clone(), self.phases.clone());
        ops::linear(features, self.emb_noise.clone())
    }

    /// The gene encoder's output `[M, d]` and its projection to the embedding width `[M, E]`, or
    /// nothing for a network without genes.
    pub fn gene_embedding(&self, condition: &Condition) -> Option<(Tensor<2>, Tensor<2>)> {
        let (encoder, projection) = self.genes.as_ref()?;
        let pooled = encoder.forward(condition);
        Some((pooled.clone(), ops::linear(pooled, projection.clone())))
    }

    /// The condition of all blocks: noise alone, or balanced with genes for the first images.
    fn embedding(&self, c_noise: Tensor<1>, condition: Option<&Condition>) -> Tensor<2> {
        let noise = self.noise_embedding(c_noise);
        let Some((_, genes)) = condition.and_then(|c| self.gene_embedding(c)) else {
            return noise;
        };
        let (n, m) = (noise.dims()[0], genes.dims()[0]);
        let with = ops::mp_sum(noise.clone().narrow(0, 0, m), genes, 0.5);
        if m == n { with } else { Tensor::cat(vec![with, noise.narrow(0, m, n - m)], 0) }
    }

    /// F(x, c_noise, genes) in image space: `x [N, C, H, W]`, `c_noise [N]`.
    pub fn forward(
        &self,
        x: Tensor<4>,
        c_noise: Tensor<1>,
        condition: Option<&Condition>,
    ) -> Tensor<4> {
        let embedding = ops::mp_silu(self.embedding(c_noise, condition));
        let x = self.run(x, embedding, FeatureMode::Consistent, |_, _| ());
        ops::depth_to_space(ops::conv(x, self.out_conv.clone()), self.config.stem_patch)
    }

    /// Encoder and decoder; `seen` is shown every last decoder block of a level.
    fn run(
        &self,
        x: Tensor<4>,
        embedding: Tensor<2>,
        mode: FeatureMode,
        mut seen: impl FnMut(&Block, &Tensor<4>),
    ) -> Tensor<4> {
        let x = ops::space_to_depth(x, self.config.stem_patch);
        let [n, _, h, w] = x.dims();
        let ones = Tensor::ones([n, 1, h, w], &x.device());
        let mut x = ops::conv(Tensor::cat(vec![x, ones], 1), self.stem.clone());
        let mut skips = vec![x.clone()];
        for layer in &self.encoder {
            x = layer.forward(x, embedding.clone());
            skips.push(x.clone());
        }
        for layer in &self.decoder {
            if layer.block.skip_channels > 0
                && let Some(skip) = skips.pop()
            {
                x = match mode {
                    FeatureMode::Consistent => ops::mp_cat(x, skip, ops::CONCAT_BALANCE),
                    FeatureMode::Published => ops::plain_cat(x, skip),
                };
            }
            x = layer.forward(x, embedding.clone());
            if layer.block.feature {
                seen(&layer.block, &x);
            }
        }
        x
    }

    /// Stage-2 features of clean images `x0 [N, C, H, W]` in [-1, 1]: the last decoder block of
    /// every level, coarsest to finest, at the configuration's feature noise level and without
    /// genes.
    pub fn features(&self, x0: Tensor<4>) -> Vec<Tensor<4>> {
        self.features_with(x0, FeatureMode::Consistent, self.config.feature_sigma)
    }

    /// [`UNet::features`] in a given mode and at a given noise level.
    pub fn features_with(&self, x0: Tensor<4>, mode: FeatureMode, sigma: f64) -> Vec<Tensor<4>> {
        let n = x0.dims()[0];
        let c_in = 1.0 / (sigma * sigma + self.config.sigma_data.powi(2)).sqrt();
        let c_noise = Tensor::full([n], sigma.ln() / 4.0, &x0.device());
        let mut embedding = self.noise_embedding(c_noise);
        if mode == FeatureMode::Consistent {
            embedding = ops::mp_silu(embedding);
        }
        let mut features = Vec::new();
        self.run(x0.mul_scalar(c_in), embedding, mode, |_, x| features.push(x.clone()));
        features
    }

    /// Names of [`UNet::features`] in their order, for example `7x7_block1`.
    pub fn feature_names(&self) -> Vec<String> {
        let (_, decoder) = self.config.blocks();
        let last = decoder.iter().filter(|b| b.feature);
        last.map(|b| b.name.trim_start_matches("dec.").to_owned()).collect()
    }

    /// Channels of [`UNet::features`] in their order.
    pub fn feature_channels(&self) -> Vec<usize> {
        let (_, decoder) = self.config.blocks();
        decoder.iter().filter(|b| b.feature).map(|b| b.out_channels).collect()
    }
}
