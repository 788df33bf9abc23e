//! The list of fused operators run plainly: cores by the kernels' scalar reference, steps one value at
//! a time. What the shaders are tested against.

use diffbulk_kernels::{self as kernels, ConvSpec, Epilogue, Isa, Source, SourceSpec, int8};

use crate::engine::fused::{
    Bias, Conv, Core, FusedGraph, FusedOp, Input, IntegerConv, Step, tables,
};

/// A map's values, `[height, width, channels]`.
#[derive(Debug, Clone, Default)]
struct Values {
    dims: [usize; 3],
    values: Vec<f32>,
}

impl Values {
    fn new(dims: [usize; 3]) -> Self {
        Self { dims, values: vec![0.0; dims.iter().product()] }
    }

    /// Each pixel `by` x `by` times.
    fn enlarged(&self, by: usize) -> Self {
        let [h, w, c] = self.dims;
        let mut out = Self::new([h * by, w * by, c]);
        for (p, pixel) in out.values.chunks_exact_mut(c).enumerate() {
            let (y, x) = (p / (w * by) / by, p % (w * by) / by);
            pixel.copy_from_slice(&self.values[(y * w + x) * c..][..c]);
        }
        out
    }
}

/// The output of `graph` for `image`.
pub(super) fn run(graph: &FusedGraph, image: &[u8]) -> Vec<f32> {
    let mut maps = vec![Values::default(); graph.buffers.len()];
    for op in &graph.ops {
        let values = match &op.core {
            Core::Image { affine, block, constant } => {
                let [h, w, c] = super::map::dims(&graph.buffers[op.inputs[0].buffer]);
                let (scale, offset) = match affine {
                    Some((scale, offset)) => (scale.to_vec(c), offset.to_vec(c)),
                    None => (vec![1.0; c], vec![0.0; c]),
                };
                let kernel = kernels::ImageInput::new(
                    Isa::Scalar,
                    h,
                    w,
                    c,
                    *block,
                    *constant,
                    &scale,
                    &offset,
                )
                .unwrap();
                let mut out = Values::new(kernel.out_shape());
                kernel.run(image, &mut out.values, 0..out.dims[0]);
                out
            }
            Core::IntegerConv(conv) => {
                integer(conv, op, &mut maps);
                continue;
            }
            core => self::core(core, op, &maps),
        };
        finish(op, &op.steps, values, &mut maps);
    }
    maps[graph.outputs[0]].values.clone()
}

fn inputs(op: &FusedOp, maps: &[Values]) -> Values {
    let all: Vec<Values> = op.inputs.iter().map(|i| maps[i.buffer].enlarged(i.upsample)).collect();
    let [h, w, _] = all[0].dims;
    let mut out = Values::new([h, w, all.iter().map(|map| map.dims[2]).sum()]);
    let channels = out.dims[2];
    for (p, pixel) in out.values.chunks_exact_mut(channels).enumerate() {
        let mut at = 0;
        for map in &all {
            let c = map.dims[2];
            pixel[at..at + c].copy_from_slice(&map.values[p * c..][..c]);
            at += c;
        }
    }
    out
}

fn spec(conv: &Conv, dims: [usize; 3]) -> ConvSpec {
    let p = conv.padding;
    ConvSpec {
        sources: vec![SourceSpec::new(dims[2])],
        height: dims[0],
        width: dims[1],
        out_channels: conv.outputs,
        kernel: conv.kernel,
        stride: conv.stride,
        dilation: conv.dilation,
        padding: [p.top, p.left, p.bottom, p.right],
        depthwise: conv.groups > 1,
    }
}

/// As the cpu engine has it: bytes where every value depends on one, reals otherwise.
fn integer(conv: &IntegerConv, op: &FusedOp, maps: &mut [Values]) {
    let source = inputs(op, maps);
    let spec = spec(&conv.conv, source.dims);
    let dims = [spec.out_height(), spec.out_width(), conv.conv.outputs];
    let mut out = Values::new(dims);
    let grid = conv.input;
    let mut bytes = vec![0; source.values.len()];
    int8::quantize(&source.values, grid.scale, grid.zero_point, &mut bytes);
    let bias = conv.bias(&op.steps);
    let exact = match &bias {
        Bias::Integers(bias) => Some(bias),
        _ => None,
    };
    let kernel = int8::Conv2d::new(
        Isa::Scalar,
        &spec,
        grid.zero_point,
        &conv.integers,
        exact.map(|bias| &bias[..]),
    )
    .unwrap();
    let products = conv.products();
    let mut window = vec![0; kernel.scratch_len(dims[0])];
    let mut sums = vec![0; kernel.sums_len()];
    let mut run = |mut to: int8::Output| {
        kernel.run(&bytes, &mut to, &mut window, &mut sums, 0..dims[0]);
    };
    if let (Some(tables), Bias::None | Bias::Integers(_)) = (tables(&op.steps), &bias)
        && conv.digits.is_empty()
    {
        let requantize = int8::Requantize {
            factors: conv.factors(tables.grid),
            zero_point: tables.grid.zero_point,
            table: None,
        };
        let mut to = vec![0u8; out.values.len()];
        run(int8::Output::Bytes { to: &mut to, requantize: &requantize });
        for (id, table) in tables.stores {
            let values = to.iter().map(|&byte| table[usize::from(byte)]).collect();
            maps[id] = Values { dims, values };
        }
        out.values = to.iter().map(|&byte| tables.last[usize::from(byte)]).collect();
        finish(op, &op.steps[tables.used..], out, maps);
        return;
    }
    if conv.digits.is_empty() {
        run(int8::Output::Reals { to: &mut out.values, factors: &products });
    } else {
        let all = [&conv.integers].into_iter().chain(&conv.digits);
        for (digits, power) in all.zip(conv.powers()) {
            let kernel =
                int8::Conv2d::new(Isa::Scalar, &spec, grid.zero_point, digits, None).unwrap();
            let mut to = vec![0; out.values.len()];
            let mut output = int8::Output::Sums(&mut to);
            kernel.run(&bytes, &mut output, &mut window, &mut sums, 0..dims[0]);
            out.values.iter_mut().zip(to).for_each(|(v, sum)| *v += sum as f32 * power);
        }
        for pixel in out.values.chunks_exact_mut(products.len()) {
            pixel.iter_mut().zip(&products).for_each(|(v, product)| *v *= product);
        }
    }
    finish(op, &op.steps[usize::from(exact.is_some())..], out, maps);
}

fn core(core: &Core, op: &FusedOp, maps: &[Values]) -> Values {
    let source = inputs(op, maps);
    let [h, w, c] = source.dims;
    match core {
        Core::Conv(conv) => {
            let spec = spec(conv, source.dims);
            let mut out = Values::new([spec.out_height(), spec.out_width(), conv.outputs]);
            let kernel =
                kernels::Conv2d::new(Isa::Scalar, &spec, conv.weights.values(), None).unwrap();
            let mut scratch = vec![0.0; kernel.scratch_len()];
            kernel.run(
                &[Source::new(&source.values)],
                &mut Epilogue::default(),
                &mut out.values,
                &mut scratch,
                0..out.dims[0],
            );
            out
        }
        Core::Dense(dense) => {
            let mut out = Values::new([1, 1, dense.outputs]);
            for (y, row) in out.values.iter_mut().zip(dense.weights.values().chunks(dense.channels))
            {
                *y = row.iter().zip(&source.values).map(|(w, x)| w * x).sum();
            }
            out
        }
        Core::Map => source,
        Core::Pool(pool) => {
            let reach = |n: usize, axis: usize, pad: usize| {
                (n + pad - pool.kernel[axis]) / pool.stride[axis] + 1
            };
            let p = pool.padding;
            let size = [reach(h, 0, p.top + p.bottom), reach(w, 1, p.left + p.right)];
            let mut out = Values::new([size[0], size[1], c]);
            for k in 0..out.values.len() {
                let (y, x, channel) = (k / c / size[1], k / c % size[1], k % c);
                let (mut count, mut sum, mut most) = (0, 0.0f32, f32::NEG_INFINITY);
                for ky in 0..pool.kernel[0] {
                    for kx in 0..pool.kernel[1] {
                        let y = (y * pool.stride[0] + ky).wrapping_sub(p.top);
                        let x = (x * pool.stride[1] + kx).wrapping_sub(p.left);
                        if y < h && x < w {
                            let v = source.values[(y * w + x) * c + channel];
                            (count, sum, most) = (count + 1, sum + v, most.max(v));
                        }
                    }
                }
                let count = match pool.count_padding {
                    true => pool.kernel[0] * pool.kernel[1],
                    false => count,
                };
                out.values[k] = if pool.maximum { most } else { sum / count as f32 };
            }
            out
        }
        Core::Attention(a) => {
            let mut out = Values::new([h, w, a.heads * a.dim]);
            let kernel =
                kernels::Attention::new(Isa::Scalar, h * w, a.heads, a.dim, a.scale, a.norm)
                    .unwrap();
            let mut scratch = vec![0.0; kernel.scratch_len()];
            kernel.run(&source.values, &mut out.values, &mut scratch, 0..h * w);
            out
        }
        Core::GroupNorm { groups, epsilon } => {
            let mut out = Values::new(source.dims);
            let (ones, zeros) = (vec![1.0; c], vec![0.0; c]);
            let kernel = kernels::GroupNorm::new(
                Isa::Scalar,
                h * w,
                c,
                *groups,
                *epsilon,
                &ones,
                &zeros,
                kernels::Activation::None,
            )
            .unwrap();
            let mut scratch = vec![0.0; kernel.scratch_len()];
            kernel.run(&source.values, Some(&mut out.values), None, &mut scratch);
            out
        }
        // Its outputs are written by `finish`.
        Core::Moments { .. } => source,
        core => panic!("no reference for {core}"),
    }
}

/// Mean and deviation of each channel.
fn moments(map: &Values) -> [Vec<f32>; 2] {
    let c = map.dims[2];
    let n = (map.dims[0] * map.dims[1]) as f64;
    let channel = |k: usize| map.values.iter().skip(k).step_by(c).map(|&v| f64::from(v));
    let means: Vec<f64> = (0..c).map(|k| channel(k).sum::<f64>() / n).collect();
    let deviations =
        (0..c).map(|k| (channel(k).map(|v| (v - means[k]).powi(2)).sum::<f64>() / n).sqrt() as f32);
    [means.iter().map(|&m| m as f32).collect(), deviations.collect()]
}

fn finish(op: &FusedOp, steps: &[Step], mut v: Values, maps: &mut [Values]) {
    if let Core::Moments { mean, deviation } = op.core {
        let [means, deviations] = moments(&v);
        let wanted = [(mean, means), (deviation, deviations)].into_iter().filter(|(is, _)| *is);
        for (&id, (_, values)) in op.outputs.iter().zip(wanted) {
            maps[id] = Values { dims: [1, 1, values.len()], values };
        }
    }
    let read = |input: &Input, maps: &[Values]| maps[input.buffer].enlarged(input.upsample).values;
    for step in steps {
        let c = v.dims[2];
        match step {
            Step::Scale(f) => v.values.iter_mut().enumerate().for_each(|(k, v)| *v *= f.at(k % c)),
            Step::Offset(o) => v.values.iter_mut().enumerate().for_each(|(k, v)| *v += o.at(k % c)),
            Step::Add { input, scale } => {
                let other = read(input, maps);
                v.values.iter_mut().zip(other).for_each(|(v, o)| *v += scale * o);
            }
            Step::Multiply(input) => {
                let other = read(input, maps);
                v.values.iter_mut().zip(other).for_each(|(v, o)| *v *= o);
            }
            Step::Norm { epsilon } => {
                for pixel in v.values.chunks_exact_mut(c) {
                    let square = pixel.iter().map(|v| v * v).sum::<f32>() / c as f32;
                    pixel.iter_mut().for_each(|v| *v /= square.sqrt() + epsilon);
                }
            }
            Step::Activate(a) => v.values.iter_mut().for_each(|v| *v = a.apply(*v)),
            Step::Pool => v = Values { dims: [1, 1, c], values: moments(&v)[0].clone() },
            Step::Store(id) => maps[*id] = v.clone(),
            Step::Load(id) => v = maps[*id].clone(),
        }
    }
}
