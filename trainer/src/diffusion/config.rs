//! Architecture of the stage-1 U-Net: `config.json` and the plan every consumer walks.
//!
//! Plain data without tensors, so that the exporter, the trainer and the checks read one
//! description. [`Config::blocks`] lists encoder and decoder in execution order and
//! [`Config::parameters`] the tensors a checkpoint holds, under their published names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Architecture of a U-Net and its gene encoder, as stored in `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Side of the square input image in pixels.
    pub img_resolution: usize,
    /// Colour channels of the image.
    pub img_channels: usize,
    /// Channels of the finest level.
    pub model_channels: usize,
    /// Channels of every level, finest first, as multiples of `model_channels`.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub num_blocks: usize,
    /// Internal resolutions whose blocks have self-attention.
    pub attn_resolutions: Vec<usize>,
    /// Channels of one attention head.
    pub channels_per_head: usize,
    /// Width of a gene's embedding.
    pub gene_embed_dim: usize,
    /// Attention heads of the gene encoder.
    pub gene_heads: usize,
    /// Pre-norm blocks of the gene encoder.
    pub num_gene_blocks: usize,
    /// Rows of the gene embedding table.
    pub panel_size: usize,
    /// Standard deviation of the data that preconditioning assumes.
    #[serde(default = "default_sigma_data")]
    pub sigma_data: f64,
    /// Fourier features of the uncertainty estimate.
    #[serde(default = "default_logvar_channels")]
    pub logvar_channels: usize,
    /// Noise level at which stage 2 reads features.
    #[serde(default = "default_feature_sigma")]
    pub feature_sigma: f64,
    /// Space-to-depth factor before the first convolution; 1 is the published network.
    #[serde(default = "default_stem_patch")]
    pub stem_patch: usize,
    /// Symbols of the embedding table's rows. Absent in checkpoints of the released code, whose
    /// only key is the panel's length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gene_vocabulary: Option<Vec<String>>,
}

pub(super) fn default_sigma_data() -> f64 {
    0.5
}
pub(super) fn default_logvar_channels() -> usize {
    128
}
pub(super) fn default_feature_sigma() -> f64 {
    0.01
}
pub(super) fn default_stem_patch() -> usize {
    1
}

/// Resampling before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Same resolution.
    Keep,
    /// Mean of 2 x 2 pixels.
    Down,
    /// Every pixel repeated 2 x 2.
    Up,
}

/// Side of the U-Net a block is on; the order of its skip convolution and normalisation differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Encoder: skip convolution and pixel norm before the residual branch.
    Encoder,
    /// Decoder: skip convolution after it, input from a concatenation.
    Decoder,
}

/// One residual block of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Name under `unet.`, for example `enc.56x56_block0`.
    pub name: String,
    /// Encoder or decoder.
    pub side: Side,
    /// Channels that enter, after concatenation.
    pub in_channels: usize,
    /// Channels of the skip connection concatenated to the input, 0 for none.
    pub skip_channels: usize,
    /// Channels that leave.
    pub out_channels: usize,
    /// Resolution inside the block.
    pub resolution: usize,
    /// Resampling of the input.
    pub resample: Resample,
    /// Attention heads, 0 for a block without attention.
    pub heads: usize,
    /// Whether this is the last decoder block of its level, whose output is a stage-2 feature.
    pub feature: bool,
}

impl Block {
    /// Whether a 1x1 convolution matches the input's channels to the output's.
    pub fn has_skip_convolution(&self) -> bool {
        self.in_channels != self.out_channels
    }

    /// Input channels of the first 3x3 convolution.
    pub fn residual_in(&self) -> usize {
        match self.side {
            Side::Encoder => self.out_channels,
            Side::Decoder => self.in_channels,
        }
    }
}

/// What a stored tensor is, which decides how it is initialised and used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Magnitude-preserving weight: used normalised, times the scalar `gain` where one is named.
    Normalized {
        /// Name of the gain parameter.
        gain: Option<String>,
    },
    /// Scalar gain of a normalised weight, zero at the start.
    Gain,
    /// Gene embedding rows.
    Embedding,
    /// Weight matrix of the gene encoder.
    Linear,
    /// Bias, zero at the start.
    Bias,
    /// LayerNorm scale, one at the start.
    Scale,
    /// Learned pooling query.
    Query,
    /// Fourier frequencies: drawn once, never trained.
    Frequencies,
    /// Fourier phases: drawn once, never trained.
    Phases,
}

impl Role {
    /// Whether the optimiser changes it.
    pub fn trained(&self) -> bool {
        !matches!(self, Self::Frequencies | Self::Phases)
    }
}

/// Name, shape and role of one stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in `weights.safetensors`.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// How it is used.
    pub role: Role,
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inputs of one output: the product of all but the first dimension.
    pub fn fan_in(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

impl Config {
    /// Reads and checks `config.json` of a model directory.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config: Self = serde_json::from_str(&text).map_err(|e| {
            Error::model(&path, format!("is not a U-Net configuration: {e}; retrain or restore it"))
        })?;
        config.check().map_err(|problem| Error::model(&path, problem))?;
        Ok(config)
    }

    /// The same architecture with an open vocabulary of these symbols.
    pub fn with_vocabulary(mut self, symbols: Vec<String>) -> Self {
        self.panel_size = symbols.len();
        self.gene_vocabulary = Some(symbols);
        self
    }

    /// Names what makes the configuration impossible, and what would be possible.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("img_resolution", self.img_resolution),
            ("img_channels", self.img_channels),
            ("model_channels", self.model_channels),
            ("num_blocks", self.num_blocks),
            ("channels_per_head", self.channels_per_head),
            ("gene_embed_dim", self.gene_embed_dim),
            ("gene_heads", self.gene_heads),
            ("logvar_channels", self.logvar_channels),
            ("stem_patch", self.stem_patch),
            ("channel_mult (length)", self.channel_mult.len()),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0; it must be at least 1"));
        }
        if self.channel_mult.contains(&0) || self.channel_mult.len() > 16 {
            return Err("channel_mult must hold 1 to 16 multiples, each at least 1".to_owned());
        }
        let largest = self.channel_mult.iter().copied().max().unwrap_or(1);
        if self.model_channels.checked_mul(largest).is_none_or(|c| c > 1 << 16)
            || self.gene_embed_dim > 1 << 16
            || self.logvar_channels > 1 << 16
            || self.num_blocks > 64
            || self.num_gene_blocks > 64
            || self.img_channels > 64
            || self.stem_patch > 64
            || self.panel_size > 1 << 24
        {
            return Err("a width or depth is larger than any network this program can hold; \
                        check the numbers"
                .to_owned());
        }
        let divisor = self.stem_patch << (self.channel_mult.len() - 1);
        if !self.img_resolution.is_multiple_of(divisor) {
            return Err(format!(
                "img_resolution {} is not a multiple of {divisor} (stem_patch {} and {} levels); \
                 use a multiple or fewer levels",
                self.img_resolution,
                self.stem_patch,
                self.channel_mult.len()
            ));
        }
        if !self.gene_embed_dim.is_multiple_of(self.gene_heads) {
            return Err(format!(
                "gene_embed_dim {} is not a multiple of gene_heads {}",
                self.gene_embed_dim, self.gene_heads
            ));
        }
        for block in self.all_blocks() {
            if block.heads > 0 && block.heads * self.channels_per_head != block.out_channels {
                return Err(format!(
                    "block {} has attention over {} channels, not a multiple of channels_per_head \
                     {}",
                    block.name, block.out_channels, self.channels_per_head
                ));
            }
        }
        for (name, value) in
            [("sigma_data", self.sigma_data), ("feature_sigma", self.feature_sigma)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{name} is {value}; it must be a positive number"));
            }
        }
        if let Some(symbols) = &self.gene_vocabulary
            && symbols.len() != self.panel_size
        {
            return Err(format!(
                "gene_vocabulary has {} symbols but panel_size is {}",
                symbols.len(),
                self.panel_size
            ));
        }
        Ok(())
    }

    /// Resolution after space-to-depth.
    pub fn internal_resolution(&self) -> usize {
        self.img_resolution / self.stem_patch
    }

    /// Image channels after space-to-depth.
    pub fn internal_channels(&self) -> usize {
        self.img_channels * self.stem_patch * self.stem_patch
    }

    /// Channels of every level, finest first.
    pub fn level_channels(&self) -> Vec<usize> {
        self.channel_mult.iter().map(|m| m * self.model_channels).collect()
    }

    /// Fourier features of the noise level.
    pub fn noise_channels(&self) -> usize {
        self.model_channels * self.channel_mult[0]
    }

    /// Width of the embedding that modulates every block.
    pub fn embedding_channels(&self) -> usize {
        self.level_channels().into_iter().max().unwrap_or(self.model_channels)
    }

    /// Channels that leave the last decoder block.
    pub fn output_channels(&self) -> usize {
        self.level_channels()[0]
    }

    /// Name of the first convolution under `unet.`.
    pub fn stem_name(&self) -> String {
        let r = self.internal_resolution();
        format!("enc.{r}x{r}_conv")
    }

    /// Name of the gene table under `unet.emb_gene.0.`: by symbol, or by panel length in released
    /// checkpoints.
    pub fn table_name(&self) -> String {
        if self.gene_vocabulary.is_some() {
            "embedding".to_owned()
        } else {
            format!("embedding_{}", self.panel_size)
        }
    }

    /// Encoder blocks (after the first convolution) and decoder blocks in execution order.
    ///
    /// Decoder blocks with `skip_channels > 0` take the most recent unused encoder output.
    pub fn blocks(&self) -> (Vec<Block>, Vec<Block>) {
        let channels = self.level_channels();
        let levels = channels.len();
        let heads = |resolution: usize, channels: usize| {
            if self.attn_resolutions.contains(&resolution) {
                (channels / self.channels_per_head).max(1)
            } else {
                0
            }
        };
        let block = |name: String, side, in_channels, out_channels, resolution| Block {
            name,
            side,
            in_channels,
            skip_channels: 0,
            out_channels,
            resolution,
            resample: Resample::Keep,
            heads: 0,
            feature: false,
        };

        let mut encoder = Vec::new();
        let mut width = channels[0];
        let mut skips = vec![width];
        for (level, &out) in channels.iter().enumerate() {
            let r = self.internal_resolution() >> level;
            if level > 0 {
                let name = format!("enc.{r}x{r}_down");
                let down = block(name, Side::Encoder, width, width, r);
                encoder.push(Block { resample: Resample::Down, ..down });
                skips.push(width);
            }
            for k in 0..self.num_blocks {
                let name = format!("enc.{r}x{r}_block{k}");
                let plain = block(name, Side::Encoder, width, out, r);
                encoder.push(Block { heads: heads(r, out), ..plain });
                width = out;
                skips.push(width);
            }
        }

        let mut decoder = Vec::new();
        for (level, &out) in channels.iter().enumerate().rev() {
            let r = self.internal_resolution() >> level;
            if level == levels - 1 {
                let first = block(format!("dec.{r}x{r}_in0"), Side::Decoder, width, width, r);
                let always = (width / self.channels_per_head).max(1);
                decoder.push(Block { heads: always, ..first });
                decoder.push(block(format!("dec.{r}x{r}_in1"), Side::Decoder, width, width, r));
            } else {
                let up = block(format!("dec.{r}x{r}_up"), Side::Decoder, width, width, r);
                decoder.push(Block { resample: Resample::Up, ..up });
            }
            for k in 0..=self.num_blocks {
                let skip = skips.pop().unwrap_or(0);
                let name = format!("dec.{r}x{r}_block{k}");
                let plain = block(name, Side::Decoder, width + skip, out, r);
                decoder.push(Block {
                    skip_channels: skip,
                    heads: heads(r, out),
                    feature: k == self.num_blocks,
                    ..plain
                });
                width = out;
            }
        }
        (encoder, decoder)
    }

    /// Every block in execution order.
    pub fn all_blocks(&self) -> Vec<Block> {
        let (mut blocks, decoder) = self.blocks();
        blocks.extend(decoder);
        blocks
    }

    /// Every tensor a checkpoint holds, sorted by name.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, role: Role| {
            list.push(ParameterSpec { name, shape, role });
        };
        let normalized = |gain: Option<String>| Role::Normalized { gain };

        add("logvar_fourier.freqs".into(), vec![self.logvar_channels], Role::Frequencies);
        add("logvar_fourier.phases".into(), vec![self.logvar_channels], Role::Phases);
        add("logvar_linear.weight".into(), vec![1, self.logvar_channels], normalized(None));

        let noise = self.noise_channels();
        let width = self.embedding_channels();
        add("unet.noise_emb_fourier.freqs".into(), vec![noise], Role::Frequencies);
        add("unet.noise_emb_fourier.phases".into(), vec![noise], Role::Phases);
        add("unet.emb_noise.weight".into(), vec![width, noise], normalized(None));

        if self.panel_size > 0 {
            let d = self.gene_embed_dim;
            let genes = "unet.emb_gene.0";
            add(
                format!("{genes}.{}", self.table_name()),
                vec![self.panel_size, d],
                Role::Embedding,
            );
            add(format!("{genes}.aggregator.query"), vec![1, 1, d], Role::Query);
            let mut attention = |prefix: String| {
                add(format!("{prefix}.in_proj_weight"), vec![3 * d, d], Role::Linear);
                add(format!("{prefix}.in_proj_bias"), vec![3 * d], Role::Bias);
                add(format!("{prefix}.out_proj.weight"), vec![d, d], Role::Linear);
                add(format!("{prefix}.out_proj.bias"), vec![d], Role::Bias);
            };
            attention(format!("{genes}.aggregator.attn"));
            for k in 0..self.num_gene_blocks {
                attention(format!("{genes}.processor.{k}.attn"));
            }
            for k in 0..self.num_gene_blocks {
                let prefix = format!("{genes}.processor.{k}");
                for norm in ["norm1", "norm2"] {
                    add(format!("{prefix}.{norm}.weight"), vec![d], Role::Scale);
                    add(format!("{prefix}.{norm}.bias"), vec![d], Role::Bias);
                }
                add(format!("{prefix}.ffn.0.weight"), vec![4 * d, d], Role::Linear);
                add(format!("{prefix}.ffn.0.bias"), vec![4 * d], Role::Bias);
                add(format!("{prefix}.ffn.2.weight"), vec![d, 4 * d], Role::Linear);
                add(format!("{prefix}.ffn.2.bias"), vec![d], Role::Bias);
            }
            add("unet.emb_gene.1.weight".into(), vec![width, d], normalized(None));
        }

        let channels = self.level_channels()[0];
        add(
            format!("unet.{}.weight", self.stem_name()),
            vec![channels, self.internal_channels() + 1, 3, 3],
            normalized(None),
        );
        for block in self.all_blocks() {
            let prefix = format!("unet.{}", block.name);
            let out = block.out_channels;
            let gain = format!("{prefix}.emb_gain");
            add(
                format!("{prefix}.conv_res0.weight"),
                vec![out, block.residual_in(), 3, 3],
                normalized(None),
            );
            add(format!("{prefix}.conv_res1.weight"), vec![out, out, 3, 3], normalized(None));
            add(
                format!("{prefix}.emb_linear.weight"),
                vec![out, width],
                normalized(Some(gain.clone())),
            );
            add(gain, vec![], Role::Gain);
            if block.has_skip_convolution() {
                add(
                    format!("{prefix}.conv_skip.weight"),
                    vec![out, block.in_channels, 1, 1],
                    normalized(None),
                );
            }
            if block.heads > 0 {
                add(
                    format!("{prefix}.attn_qkv.weight"),
                    vec![3 * out, out, 1, 1],
                    normalized(None),
                );
                add(format!("{prefix}.attn_proj.weight"), vec![out, out, 1, 1], normalized(None));
            }
        }
        add("unet.out_gain".into(), vec![], Role::Gain);
        add(
            "unet.out_conv.weight".into(),
            vec![self.internal_channels(), self.output_channels(), 3, 3],
            normalized(Some("unet.out_gain".into())),
        );
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Multiply-accumulates of one unconditional forward pass over one image.
    pub fn macs(&self) -> u64 {
        let area = |r: usize| (r * r) as u64;
        let full = area(self.internal_resolution());
        let ends = (self.internal_channels() + 1 + self.internal_channels()) as u64;
        let mut total = full * 9 * ends * self.level_channels()[0] as u64;
        for block in self.all_blocks() {
            let (out, pixels) = (block.out_channels as u64, area(block.resolution));
            total += pixels * 9 * out * (block.residual_in() as u64 + out);
            if block.has_skip_convolution() {
                // The encoder's skip convolution runs after resampling as well: the same area.
                total += pixels * out * block.in_channels as u64;
            }
            if block.heads > 0 {
                total += pixels * out * 4 * out + 2 * pixels * pixels * out;
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_skip_is_used_once() {
        for name in Config::PRESETS {
            let (encoder, decoder) = Config::preset(name).unwrap().blocks();
            let taken = decoder.iter().filter(|b| b.skip_channels > 0).count();
            assert_eq!(taken, encoder.len() + 1, "{name}");
        }
    }

    #[test]
    fn impossible_configurations_are_explained() {
        let good = Config::preset("tiny").unwrap();
        let cases = [
            (Config { img_resolution: 30, ..good.clone() }, "multiple"),
            (Config { gene_heads: 7, ..good.clone() }, "gene_heads"),
            (Config { channels_per_head: 5, ..good.clone() }, "channels_per_head"),
            (Config { channel_mult: vec![], ..good.clone() }, "channel_mult"),
            (Config { sigma_data: -1.0, ..good.clone() }, "sigma_data"),
            (Config { gene_vocabulary: Some(vec!["A".into()]), ..good }, "gene_vocabulary"),
        ];
        for (config, word) in cases {
            let problem = config.check().unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }
}
