//! A list of fused operators in burn's tensor operations. Maps are `[1, channels, height, width]`.

use std::path::Path;

use burn::tensor::ops::{AvgPoolOptions, ConvOptions};
use burn::tensor::{Device, Tensor, TensorData, activation, module};
use diffbulk::engine::fused::{
    Activation, Attention, Channels, Conv, Core, FusedGraph, Input, Pool, Step, fuse,
};
use tract_onnx::prelude::*;

use crate::Failure;

type Map = Tensor<4>;

/// A predictor on burn's device.
pub struct Network {
    graph: FusedGraph,
    /// Each operator's weights and the factors of its steps.
    constants: Vec<Constants>,
    device: Device,
    side: usize,
}

#[derive(Default)]
struct Constants {
    kernel: Option<Tensor<4>>,
    matrix: Option<Tensor<2>>,
    affine: Option<[Map; 2]>,
    steps: Vec<Option<Map>>,
}

impl Network {
    /// Reads the predictor at `path` for tiles of `side` pixels.
    pub fn load(path: &Path, side: usize, device: &Device) -> Result<Self, Failure> {
        let mut model = tract_onnx::onnx().with_ignore_output_shapes(true).model_for_path(path)?;
        model.set_input_fact(0, u8::fact([1, side, side, 3]).into())?;
        let graph = fuse(model.into_typed()?)?;
        let constants = graph.ops.iter().map(|op| {
            let each = |channels: &Channels| match channels {
                Channels::One(value) => tensor(vec![*value], [1; 4], device),
                Channels::Each(values) => tensor(values.to_vec(), [1, values.len(), 1, 1], device),
            };
            let mut constants = Constants::default();
            match &op.core {
                Core::Conv(conv) => {
                    let per_group = conv.channels / conv.groups;
                    let shape = [conv.outputs, per_group, conv.kernel[0], conv.kernel[1]];
                    constants.kernel = Some(tensor(conv.weights.values().to_vec(), shape, device));
                }
                Core::Dense(dense) => {
                    let shape = [dense.outputs, dense.channels];
                    let matrix = tensor(dense.weights.values().to_vec(), shape, device);
                    constants.matrix = Some(matrix.swap_dims(0, 1));
                }
                Core::Image { affine: Some((scale, offset)), .. } => {
                    constants.affine = Some([each(scale), each(offset)]);
                }
                _ => {}
            }
            constants.steps = op
                .steps
                .iter()
                .map(|step| match step {
                    Step::Scale(channels) | Step::Offset(channels) => Some(each(channels)),
                    _ => None,
                })
                .collect();
            constants
        });
        let constants = constants.collect();
        Ok(Self { graph, constants, device: device.clone(), side })
    }

    /// The genes' values of a tile.
    pub fn predict(&self, tile: &[u8]) -> Result<Vec<f32>, Failure> {
        let mut planes = vec![0.0; tile.len()];
        for (at, pixel) in tile.chunks_exact(3).enumerate() {
            for (channel, value) in pixel.iter().enumerate() {
                planes[channel * self.side * self.side + at] = f32::from(*value);
            }
        }
        let image = tensor(planes, [1, 3, self.side, self.side], &self.device);
        let mut maps: Vec<Option<Map>> = vec![None; self.graph.buffers.len()];
        maps[self.graph.inputs[0]] = Some(image);
        for k in 0..self.graph.ops.len() {
            self.operator(k, &mut maps)?;
        }
        let output = maps[self.graph.outputs[0]].take().ok_or("nothing comes out")?;
        output.into_data().try_into_vec::<f32>().map_err(|error| format!("{error:?}").into())
    }

    fn operator(&self, k: usize, maps: &mut [Option<Map>]) -> Result<(), Failure> {
        let (op, constants) = (&self.graph.ops[k], &self.constants[k]);
        let read = |input: &Input, maps: &[Option<Map>]| -> Result<Map, Failure> {
            let map = maps[input.buffer].clone().ok_or("a map is read before it is made")?;
            Ok(enlarged(map, input.upsample))
        };
        let inputs: Vec<Map> = op.inputs.iter().map(|i| read(i, maps)).collect::<Result<_, _>>()?;
        let all = match &inputs[..] {
            [one] => one.clone(),
            _ => Tensor::cat(inputs, 1),
        };
        let mut v = match &op.core {
            Core::Image { block, constant, .. } => {
                let v = match &constants.affine {
                    Some([scale, offset]) => all * scale.clone() + offset.clone(),
                    None => all,
                };
                let v = in_blocks(v, *block);
                let [_, _, h, w] = v.dims();
                match constant {
                    Some(value) => {
                        Tensor::cat(vec![v, Tensor::full([1, 1, h, w], *value, &self.device)], 1)
                    }
                    None => v,
                }
            }
            Core::Conv(conv) => {
                let kernel = constants.kernel.clone().ok_or("a convolution without weights")?;
                module::conv2d(all, kernel, None, options(conv))
            }
            Core::Dense(dense) => {
                let matrix = constants.matrix.clone().ok_or("a matrix without values")?;
                let made = all.reshape([1, dense.channels]).matmul(matrix);
                made.reshape([1, dense.outputs, 1, 1])
            }
            Core::Map => all,
            Core::Pool(pool) => pooled(all, pool)?,
            Core::Attention(attention) => attended(all, attention),
            Core::GroupNorm { groups, epsilon } => {
                let [_, c, h, w] = all.dims();
                let parts = all.reshape([*groups, c / groups * h * w]);
                let centred = parts.clone() - parts.mean_dim(1);
                let variance = centred.clone().square().mean_dim(1);
                (centred / (variance + *epsilon).sqrt()).reshape([1, c, h, w])
            }
            Core::Moments { mean, deviation } => {
                let [_, c, h, w] = all.dims();
                let pixels = all.reshape([c, h * w]);
                let means = pixels.clone().mean_dim(1);
                let mut outputs = op.outputs.iter();
                let mut put = |values: Tensor<2>| {
                    if let Some(&id) = outputs.next() {
                        maps[id] = Some(values.reshape([1, c, 1, 1]));
                    }
                };
                if *mean {
                    put(means.clone());
                }
                if *deviation {
                    put((pixels - means).square().mean_dim(1).sqrt());
                }
                return Ok(());
            }
            core => return Err(format!("{core} is not laid out for burn").into()),
        };
        for (step, factor) in op.steps.iter().zip(&constants.steps) {
            v = match (step, factor) {
                (Step::Scale(_), Some(factor)) => v * factor.clone(),
                (Step::Offset(_), Some(offset)) => v + offset.clone(),
                (Step::Add { input, scale: 1.0 }, _) => v + read(input, maps)?,
                (Step::Add { input, scale }, _) => v + read(input, maps)? * *scale,
                (Step::Multiply(input), _) => v * read(input, maps)?,
                (Step::Norm { epsilon }, _) => {
                    let root = v.clone().square().mean_dim(1).sqrt();
                    v / (root + *epsilon)
                }
                (Step::Activate(kind), _) => activated(v, *kind)?,
                (Step::Pool, _) => {
                    let [_, c, h, w] = v.dims();
                    v.reshape([c, h * w]).mean_dim(1).reshape([1, c, 1, 1])
                }
                (Step::Store(id), _) => {
                    maps[*id] = Some(v.clone());
                    v
                }
                (step, _) => return Err(format!("{step:?} is not laid out for burn").into()),
            };
        }
        Ok(())
    }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape.to_vec()), device)
}

/// Each pixel `by` x `by` times.
fn enlarged(map: Map, by: usize) -> Map {
    if by == 1 {
        return map;
    }
    let [_, c, h, w] = map.dims();
    let pixels: Tensor<5> = map.reshape([c, h, 1, w, 1]);
    let copies: Tensor<5> = pixels.expand([c, h, by, w, by]);
    copies.reshape([1, c, h * by, w * by])
}

/// Blocks of pixels gathered into channels: row in the block, column in the block, channel.
fn in_blocks(map: Map, block: usize) -> Map {
    if block == 1 {
        return map;
    }
    let [_, c, h, w] = map.dims();
    let cut: Tensor<5> = map.reshape([c, h / block, block, w / block, block]);
    cut.permute([2, 4, 0, 1, 3]).reshape([1, c * block * block, h / block, w / block])
}

fn options(conv: &Conv) -> ConvOptions<2> {
    let p = conv.padding;
    ConvOptions {
        stride: conv.stride,
        padding: [(p.top, p.bottom), (p.left, p.right)],
        dilation: conv.dilation,
        groups: conv.groups,
    }
}

fn pooled(map: Map, pool: &Pool) -> Result<Map, Failure> {
    if pool.maximum {
        return Err("a pooling of largest values is not laid out for burn".into());
    }
    let p = pool.padding;
    let options = AvgPoolOptions {
        kernel_size: pool.kernel,
        stride: pool.stride,
        padding: [(p.top, p.bottom), (p.left, p.right)],
        count_include_pad: pool.count_padding,
        ceil_mode: false,
    };
    Ok(module::avg_pool2d(map, options))
}

fn attended(map: Map, attention: &Attention) -> Map {
    let Attention { heads, dim, norm, scale } = *attention;
    let [_, _, h, w] = map.dims();
    let all: Tensor<4> = map.reshape([3, heads, dim, h * w]);
    let all = match norm {
        Some(epsilon) => {
            let root = all.clone().square().mean_dim(2).sqrt();
            all / (root + epsilon)
        }
        None => all,
    };
    let part = |k: usize| -> Tensor<3> {
        all.clone().slice([k..k + 1, 0..heads, 0..dim, 0..h * w]).reshape([heads, dim, h * w])
    };
    let scores = part(0).swap_dims(1, 2).matmul(part(1)) * scale;
    let shares = activation::softmax(scores, 2);
    part(2).matmul(shares.swap_dims(1, 2)).reshape([1, heads * dim, h, w])
}

fn activated(v: Map, kind: Activation) -> Result<Map, Failure> {
    Ok(match kind {
        Activation::Silu => activation::silu(v),
        Activation::Sigmoid => activation::sigmoid(v),
        Activation::Clip { low, high } => v.clamp(low, high),
        Activation::Sqrt => v.sqrt(),
        Activation::Square => v.square(),
        Activation::Exp => v.exp(),
        Activation::Tanh => v.tanh(),
        kind => return Err(format!("{kind:?} is not laid out for burn").into()),
    })
}
