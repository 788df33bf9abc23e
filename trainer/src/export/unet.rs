//! Folds the EDM2 U-Net at one noise level, without genes, into plain convolutions.
//!
//! At inference the noise level never changes, so weight normalisation and gains, the noise
//! embedding and every block's modulation, SiLU's 1/0.596, the coefficients of sums and
//! concatenations and the input's scaling are constants. What cannot go into a convolution at once
//! travels beside the tensor as a factor ([`Flow`]) until a convolution or a pixel norm absorbs
//! it, and is multiplied out only before a SiLU.

use super::onnx::{Attribute, Graph, Kernel, Value, Window};
use super::weights::Checkpoint;
use crate::diffusion::FeatureMode;
use crate::diffusion::config::{Block, Config, Resample, Side};
use crate::{Error, Result};

/// Added to every norm so that nothing divides by zero.
const NORM_EPSILON: f64 = 1e-4;
/// SiLU of a unit-variance input has this root mean square.
const SILU_GAIN: f64 = 0.596;
/// Share of the residual branch in a block's sum.
const RESIDUAL_BALANCE: f64 = 0.3;
/// Share of the attention branch in its sum.
const ATTENTION_BALANCE: f64 = 0.3;
/// Share of the skip connection in a concatenation.
const CONCAT_BALANCE: f64 = 0.5;
/// Activations are clipped to this magnitude after every block.
const CLIP: f64 = 256.0;

/// A tensor and the factor it has yet to be multiplied by.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The tensor in the graph, `[N, channels, side, side]`.
    pub value: Value,
    /// The true activation is `scale` times the tensor.
    pub scale: f64,
    /// Channels.
    pub channels: usize,
    /// Height and width.
    pub side: usize,
}

/// Writes the U-Net's decoder features into `graph`, coarsest level first.
///
/// `pixels` is the image as floats 0 to 255, `[N, img_channels, img_resolution, img_resolution]`.
pub fn features(
    graph: &mut Graph,
    pixels: &Value,
    config: &Config,
    weights: &Checkpoint,
    mode: FeatureMode,
) -> Result<Vec<Flow>> {
    let folding = Folding { config, weights, mode, embedding: embedding(config, weights, mode)? };
    folding.run(graph, pixels)
}

/// The embedding of the features' noise level, the same for every image.
fn embedding(config: &Config, weights: &Checkpoint, mode: FeatureMode) -> Result<Vec<f64>> {
    let count = config.noise_channels();
    let frequencies = weights.shaped("unet.noise_emb_fourier.freqs", &[count])?;
    let phases = weights.shaped("unet.noise_emb_fourier.phases", &[count])?;
    let noise = config.feature_sigma.ln() / 4.0;
    let fourier: Vec<f64> = frequencies
        .iter()
        .zip(phases)
        .map(|(&f, &p)| (noise * f64::from(f) + f64::from(p)).cos() * std::f64::consts::SQRT_2)
        .collect();
    let (name, width) = ("unet.emb_noise.weight", config.embedding_channels());
    let embedded = UnitWeights::new(weights.shaped(name, &[width, count])?, width).apply(&fourier);
    Ok(match mode {
        FeatureMode::Consistent => embedded.into_iter().map(|v| silu(v) / SILU_GAIN).collect(),
        FeatureMode::Published => embedded,
    })
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Weights of a magnitude-preserving layer as they act at inference, before any gain: each
/// output's weights have unit norm.
#[derive(Debug, Clone)]
struct UnitWeights {
    out: usize,
    fan_in: usize,
    data: Vec<f64>,
}

impl UnitWeights {
    fn new(raw: &[f32], out: usize) -> Self {
        let fan_in = raw.len() / out.max(1);
        let root = (fan_in as f64).sqrt();
        let data = raw
            .chunks(fan_in.max(1))
            .flat_map(|row| {
                let norm = row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
                // Divided by the root mean square, then by the root of the fan-in.
                let divisor = (NORM_EPSILON + norm / root) * root;
                row.iter().map(move |&w| f64::from(w) / divisor)
            })
            .collect();
        Self { out, fan_in, data }
    }

    fn apply(&self, x: &[f64]) -> Vec<f64> {
        self.data
            .chunks(self.fan_in)
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    /// A kernel with output channel `o` multiplied by `factor(o)`.
    fn kernel(&self, side: usize, factor: impl Fn(usize) -> f64) -> Kernel {
        let data = self
            .data
            .chunks(self.fan_in)
            .enumerate()
            .flat_map(|(o, row)| {
                let factor = factor(o);
                row.iter().map(move |w| (w * factor) as f32)
            })
            .collect();
        Kernel { out: self.out, input: self.fan_in / (side * side), side, data }
    }
}

/// Coefficients of a magnitude-preserving sum of `a` and `b` with share `t` of `b`.
fn sum_coefficients(t: f64) -> (f64, f64) {
    let norm = ((1.0 - t).powi(2) + t.powi(2)).sqrt();
    ((1.0 - t) / norm, t / norm)
}

/// Coefficients of a magnitude-preserving concatenation of `a` and `b` channels.
fn concat_coefficients(a: usize, b: usize) -> (f64, f64) {
    let (a, b, t) = (a as f64, b as f64, CONCAT_BALANCE);
    let total = ((a + b) / ((1.0 - t).powi(2) + t.powi(2))).sqrt();
    (total / a.sqrt() * (1.0 - t), total / b.sqrt() * t)
}

struct Folding<'a> {
    config: &'a Config,
    weights: &'a Checkpoint,
    mode: FeatureMode,
    embedding: Vec<f64>,
}

impl Folding<'_> {
    fn run(&self, graph: &mut Graph, pixels: &Value) -> Result<Vec<Flow>> {
        let (encoder, decoder) = self.config.blocks();
        let mut x = self.stem(graph, pixels)?;
        let mut skips = vec![x.clone()];
        for block in &encoder {
            x = self.block(graph, block, x)?;
            skips.push(x.clone());
        }
        let mut features = Vec::new();
        for block in &decoder {
            if block.skip_channels > 0 {
                let skip = skips.pop().ok_or_else(|| {
                    Error::Request(format!("block {} has no skip connection left", block.name))
                })?;
                x = graph.scoped(&block.name, |graph| self.join(graph, x, skip));
            }
            x = self.block(graph, block, x)?;
            if block.feature {
                features.push(x.clone());
            }
        }
        Ok(features)
    }

    /// First convolution, with the image's scaling and preconditioning in its weights.
    fn stem(&self, graph: &mut Graph, pixels: &Value) -> Result<Flow> {
        let (config, side) = (self.config, self.config.internal_resolution());
        let (name, image_channels) = (config.stem_name(), config.internal_channels());
        let unit = self.conv_weights(&name, config.output_channels(), image_channels + 1, 3)?;
        let c_in = 1.0 / config.feature_sigma.hypot(config.sigma_data);
        // conv(c_in (v/127.5 - 1), 1) = conv(v, 1) with the slope in the image's weights and the
        // offset in those of the ones channel: exact at the borders, where all channels are padded
        // with zeros alike.
        let taps = 9;
        let mut kernel = Vec::with_capacity(unit.data.len());
        for row in unit.data.chunks(unit.fan_in) {
            let (image, ones) = row.split_at(image_channels * taps);
            kernel.extend(image.iter().map(|w| (w * c_in / 127.5) as f32));
            for (tap, one) in ones.iter().enumerate() {
                let offset: f64 = image.iter().skip(tap).step_by(taps).sum();
                kernel.push((one - c_in * offset) as f32);
            }
        }
        let kernel = Kernel { out: unit.out, input: image_channels + 1, side: 3, data: kernel };
        let value = graph.scoped(&name, |graph| {
            let image = if config.stem_patch > 1 {
                let block = Attribute::Int(config.stem_patch as i64);
                graph.op("SpaceToDepth", "space_to_depth", &[pixels], vec![("blocksize", block)])
            } else {
                pixels.clone()
            };
            let pads = graph.i64s("ones.pads", &[0, 0, 0, 0, 0, 1, 0, 0]);
            let one = graph.scalar("ones.value", 1.0);
            let with_ones = graph.op("Pad", "ones", &[&image, &pads, &one], vec![]);
            graph.conv("conv", &with_ones, &kernel, None, Window::same(3))
        });
        Ok(Flow { value, scale: 1.0, channels: kernel.out, side })
    }

    /// Concatenates the decoder's tensor with a skip connection.
    fn join(&self, graph: &mut Graph, x: Flow, skip: Flow) -> Flow {
        let (a, b) = match self.mode {
            FeatureMode::Consistent => concat_coefficients(x.channels, skip.channels),
            FeatureMode::Published => (1.0, 1.0),
        };
        let (a, b) = (a * x.scale, b * skip.scale);
        let channels = x.channels + skip.channels;
        let value = graph.concat("concat", &[&x.value, &skip.value], 1);
        let factors: Vec<f32> =
            (0..channels).map(|c| if c < x.channels { a } else { b } as f32).collect();
        let factors = graph.f32("concat.scale", &[1, channels, 1, 1], &factors);
        let value = graph.mul("concat.scaled", &value, &factors);
        Flow { value, scale: 1.0, channels, side: x.side }
    }

    fn block(&self, graph: &mut Graph, block: &Block, x: Flow) -> Result<Flow> {
        if x.channels != block.in_channels {
            return Err(Error::Request(format!(
                "block {} takes {} channels and is given {}",
                block.name, block.in_channels, x.channels
            )));
        }
        graph.scoped(&block.name, |graph| {
            let mut x = match block.side {
                Side::Encoder => self.encoder_sum(graph, block, x)?,
                Side::Decoder => self.decoder_sum(graph, block, x)?,
            };
            if block.heads > 0 {
                x = self.attention(graph, block, x)?;
            }
            let limit = CLIP / x.scale;
            x.value = graph.clip("clip", &x.value, -limit, limit);
            Ok(x)
        })
    }

    /// An encoder block up to its residual sum: skip convolution, pixel norm, sum.
    fn encoder_sum(&self, graph: &mut Graph, block: &Block, x: Flow) -> Result<Flow> {
        let mut x = resampled(graph, x, block.resample);
        if block.has_skip_convolution() {
            let kernel = self.skip_weights(block)?.kernel(1, |_| x.scale);
            x.value = graph.conv("conv_skip", &x.value, &kernel, None, Window::same(1));
            (x.scale, x.channels) = (1.0, block.out_channels);
        }
        // x / (eps + rms(x)) with x = scale * value: the scale only moves eps.
        x.value = pixel_norm(graph, "norm", &x.value, 1, NORM_EPSILON / x.scale);
        let (a, b) = sum_coefficients(RESIDUAL_BALANCE);
        let residual = self.residual(graph, block, &x.value, b / a)?;
        x.value = graph.add("sum", &x.value, &residual);
        x.scale = a;
        Ok(x)
    }

    /// A decoder block up to its residual sum, which takes the input through the skip convolution.
    fn decoder_sum(&self, graph: &mut Graph, block: &Block, x: Flow) -> Result<Flow> {
        let x = multiplied_out(graph, x);
        let mut x = resampled(graph, x, block.resample);
        let (a, b) = sum_coefficients(RESIDUAL_BALANCE);
        if block.has_skip_convolution() {
            let residual = self.residual(graph, block, &x.value, b)?;
            let kernel = self.skip_weights(block)?.kernel(1, |_| a);
            let main = graph.conv("conv_skip", &x.value, &kernel, None, Window::same(1));
            x.value = graph.add("sum", &main, &residual);
            x.channels = block.out_channels;
        } else {
            let residual = self.residual(graph, block, &x.value, b / a)?;
            x.value = graph.add("sum", &x.value, &residual);
            x.scale = a;
        }
        Ok(x)
    }

    fn skip_weights(&self, block: &Block) -> Result<UnitWeights> {
        let name = format!("{}.conv_skip", block.name);
        self.conv_weights(&name, block.out_channels, block.in_channels, 1)
    }

    /// `factor` times a block's residual branch of `x`, whose scale is 1.
    fn residual(&self, graph: &mut Graph, block: &Block, x: &Value, factor: f64) -> Result<Value> {
        let (name, out) = (&block.name, block.out_channels);
        let modulation = self.modulation(block)?;
        let first = self
            .conv_weights(&format!("{name}.conv_res0"), out, block.residual_in(), 3)?
            .kernel(3, |channel| modulation[channel] / SILU_GAIN);
        let second = self
            .conv_weights(&format!("{name}.conv_res1"), out, out, 3)?
            .kernel(3, |_| factor / SILU_GAIN);
        let y = graph.silu("silu0", x);
        let y = graph.conv("conv_res0", &y, &first, None, Window::same(3));
        let y = graph.silu("silu1", &y);
        Ok(graph.conv("conv_res1", &y, &second, None, Window::same(3)))
    }

    /// What the embedding multiplies each channel of a block by.
    fn modulation(&self, block: &Block) -> Result<Vec<f64>> {
        let gain = f64::from(self.weights.scalar(&format!("unet.{}.emb_gain", block.name))?);
        let name = tensor_name(&format!("{}.emb_linear", block.name));
        let raw = self.weights.shaped(&name, &[block.out_channels, self.embedding.len()])?;
        let linear = UnitWeights::new(raw, block.out_channels);
        Ok(linear.apply(&self.embedding).into_iter().map(|v| 1.0 + gain * v).collect())
    }

    fn attention(&self, graph: &mut Graph, block: &Block, x: Flow) -> Result<Flow> {
        let (name, channels) = (&block.name, x.channels);
        let (heads, width) = (block.heads, channels / block.heads);
        let positions = (x.side * x.side) as i64;
        // The file interleaves q, k and v (channel = (head, dimension, part)); here each is one
        // run of channels (part, head, dimension), so that they split without copying.
        let unit = self.conv_weights(&format!("{name}.attn_qkv"), 3 * channels, channels, 1)?;
        let mut data = Vec::with_capacity(unit.data.len());
        for part in 0..3 {
            for channel in 0..channels {
                let row = channel * 3 + part;
                data.extend_from_slice(&unit.data[row * channels..(row + 1) * channels]);
            }
        }
        let unit = UnitWeights { data, ..unit };
        let qkv = unit.kernel(1, |_| x.scale);
        let qkv = graph.conv("attn_qkv", &x.value, &qkv, None, Window::same(1));
        let (heads, width) = (heads as i64, width as i64);
        let qkv = graph.reshape("attn_heads", &qkv, &[0, 3 * heads, width, positions]);
        let qkv = pixel_norm(graph, "attn_norm", &qkv, 2, NORM_EPSILON);
        let sizes = graph.i64s("attn_split.sizes", &[heads, heads, heads]);
        let [q, k, v] = graph.op_many(
            "Split",
            "attn_split",
            &[&qkv, &sizes],
            vec![("axis", Attribute::Int(1))],
        );
        let q = graph.transpose("attn_q", &q, &[0, 1, 3, 2]);
        let v = graph.transpose("attn_v", &v, &[0, 1, 3, 2]);
        let scores = graph.op("MatMul", "attn_scores", &[&q, &k], vec![]);
        let temperature = graph.scalar("attn_temperature", 1.0 / (width as f64).sqrt());
        let scores = graph.mul("attn_scaled", &scores, &temperature);
        let share =
            graph.op("Softmax", "attn_softmax", &[&scores], vec![("axis", Attribute::Int(-1))]);
        let y = graph.op("MatMul", "attn_mix", &[&share, &v], vec![]);
        let y = graph.transpose("attn_channels", &y, &[0, 1, 3, 2]);
        let side = x.side as i64;
        let y = graph.reshape("attn_map", &y, &[0, channels as i64, side, side]);
        let (a, b) = sum_coefficients(ATTENTION_BALANCE);
        let scale = a * x.scale;
        let proj = self
            .conv_weights(&format!("{name}.attn_proj"), channels, channels, 1)?
            .kernel(1, |_| b / scale);
        let y = graph.conv("attn_proj", &y, &proj, None, Window::same(1));
        let value = graph.add("attn_sum", &x.value, &y);
        Ok(Flow { value, scale, ..x })
    }

    fn conv_weights(
        &self,
        layer: &str,
        out: usize,
        input: usize,
        side: usize,
    ) -> Result<UnitWeights> {
        let shape = [out, input, side, side];
        Ok(UnitWeights::new(self.weights.shaped(&tensor_name(layer), &shape)?, out))
    }
}

fn tensor_name(layer: &str) -> String {
    format!("unet.{layer}.weight")
}

fn resampled(graph: &mut Graph, mut x: Flow, resample: Resample) -> Flow {
    match resample {
        Resample::Keep => {}
        // The box filter [1, 1] is a mean of 2 x 2 downwards and a repetition upwards.
        Resample::Down => {
            x.value = graph.halve("down", &x.value);
            x.side /= 2;
        }
        Resample::Up => {
            x.value = graph.double("up", &x.value);
            x.side *= 2;
        }
    }
    x
}

/// `x` with its factor multiplied out.
fn multiplied_out(graph: &mut Graph, mut x: Flow) -> Flow {
    if x.scale != 1.0 {
        let scale = graph.scalar("scale", x.scale);
        x.value = graph.mul("scaled", &x.value, &scale);
        x.scale = 1.0;
    }
    x
}

/// `x / (epsilon + rms(x))`, the root mean square taken along `axis`.
fn pixel_norm(graph: &mut Graph, hint: &str, x: &Value, axis: i64, epsilon: f64) -> Value {
    let square = graph.mul(&format!("{hint}.square"), x, x);
    let mean = graph.mean(&format!("{hint}.mean"), &square, &[axis]);
    let rms = graph.op("Sqrt", &format!("{hint}.rms"), &[&mean], vec![]);
    let epsilon = graph.scalar(&format!("{hint}.epsilon"), epsilon);
    let norm = graph.add(&format!("{hint}.guarded"), &rms, &epsilon);
    let inverse = graph.op("Reciprocal", &format!("{hint}.inverse"), &[&norm], vec![]);
    graph.mul(hint, x, &inverse)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tract_onnx::prelude::Tensor;

    use super::super::onnx::{Dim, Element, Model, OPSET};
    use super::super::testing::{Loaded, assert_close, row};
    use super::*;
    use crate::diffusion::Weights;

    fn fixture() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/edm2_small")
    }

    /// The features' graph of the reference network, one output a level.
    fn graph(mode: FeatureMode) -> (Config, Model) {
        let config = Config::load(&fixture()).unwrap();
        let weights = Checkpoint::read(&fixture().join("weights.safetensors")).unwrap();
        let mut graph = Graph::new("features", OPSET);
        let side = config.img_resolution;
        let dims = [Dim::Symbol("N"), Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)];
        let image = graph.input("image", Element::U8, &dims);
        let pixels = graph.to_f32("pixels", &image);
        let flows = features(&mut graph, &pixels, &config, &weights, mode).unwrap();
        for flow in flows {
            let flow = multiplied_out(&mut graph, flow);
            let side = Dim::Fixed(flow.side);
            let dims = [Dim::Symbol("N"), Dim::Fixed(flow.channels), side.clone(), side];
            let name = format!("{0}x{0}", flow.side);
            graph.output(&name, &flow.value, Element::F32, &dims);
        }
        (config, graph.finish(Vec::new()))
    }

    fn agree(mode: FeatureMode, prefix: &str) {
        let (config, model) = graph(mode);
        let loaded = Loaded::new(&model);
        let io = Weights::load(&fixture().join("io.safetensors")).unwrap();
        let images = io.get("image_u8").unwrap();
        let side = config.img_resolution;
        for index in 0..images.shape[0] {
            let one: Vec<u8> = row(images, index).iter().map(|&v| v as u8).collect();
            let outputs = loaded.run(vec![Tensor::from_shape(&[1, 3, side, side], &one).unwrap()]);
            for (name, output) in outputs {
                let expected = io.get(&format!("{prefix}.{name}_block1")).unwrap();
                assert_close(row(expected, index), &output, expected.max_abs(), &name);
            }
        }
    }

    #[test]
    fn folded_features_are_the_references() {
        agree(FeatureMode::Consistent, "features");
    }

    #[test]
    fn folded_features_of_the_released_code() {
        agree(FeatureMode::Published, "features_published_code");
    }

    #[test]
    fn weights_of_another_architecture_are_named() {
        let mut config = Config::load(&fixture()).unwrap();
        config.model_channels = 32;
        config.channels_per_head = 32;
        let weights = Checkpoint::read(&fixture().join("weights.safetensors")).unwrap();
        let mut graph = Graph::new("features", OPSET);
        let pixels = graph.input("pixels", Element::F32, &[Dim::Fixed(1)]);
        let error = features(&mut graph, &pixels, &config, &weights, FeatureMode::Consistent);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("has shape"), "{message}");
    }
}
