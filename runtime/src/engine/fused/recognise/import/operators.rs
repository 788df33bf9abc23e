//! What tract's operators compute, as operations of [`Graph`].

use std::sync::Arc;

use tract_onnx::prelude::tract_itertools::Itertools;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{DimLike, TypedOp};
use tract_onnx::tract_core::ops::array::{Pad, PadMode, Slice, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::{self, KernelFormat, MaxPool, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{self, DataFormat, Reduce, Reducer, Softmax};

use super::constants::channels;
use crate::engine::fused::list::*;
use crate::engine::fused::recognise::graph::{Graph, Id, Op};

/// The operation that a tract operator is, `None` for what is not looked for here.
pub(super) fn operation(
    graph: &Graph,
    op: &dyn TypedOp,
    inputs: &[Id],
    live: &[Id],
    output: Id,
) -> TractResult<Option<Op>> {
    let float = |id: &Id| graph.values[*id].element == f32::datum_type();
    if let (Some(cast), [input]) = (op.downcast_ref::<Cast>(), inputs) {
        let pixels = graph.values[*input].element == u8::datum_type();
        return Ok((cast.to == f32::datum_type() && pixels).then_some(Op::Pixels));
    }
    if !inputs.iter().all(|id| float(id) || graph.constant(*id).is_some()) || !float(&output) {
        return Ok(None);
    }
    if let Some(op) = op.downcast_ref::<ElementWiseOp>() {
        return Ok(element_wise(op).map(Op::Activate));
    }
    if let Some(op) = op.downcast_ref::<TypedBinOp>() {
        return Ok(binary(op, graph, inputs, output));
    }
    if let Some(pool) = op.downcast_ref::<SumPool>() {
        let mean = pool.normalize;
        let found = geometry(graph, &pool.pool_spec, inputs[0]);
        return Ok(found.filter(|_| mean).map(|geometry| {
            Op::Pool(Pool {
                maximum: false,
                kernel: geometry.kernel,
                stride: geometry.stride,
                padding: geometry.padding,
                count_padding: pool.count_include_pad,
            })
        }));
    }
    if let Some(pool) = op.downcast_ref::<MaxPool>() {
        let found = geometry(graph, &pool.pool_spec, inputs[0]);
        return Ok(found.filter(|geometry| geometry.dilation == [1, 1]).map(|geometry| {
            Op::Pool(Pool {
                maximum: true,
                kernel: geometry.kernel,
                stride: geometry.stride,
                padding: geometry.padding,
                count_padding: false,
            })
        }));
    }
    if let Some(op) = op.downcast_ref::<EinSum>() {
        return einsum(op, graph, inputs);
    }
    if let Some(op) = op.downcast_ref::<Reduce>() {
        return Ok(match op.reducer {
            Reducer::Sum => Some(Op::Sum(op.axes.to_vec())),
            Reducer::MeanOfSquares => Some(Op::MeanOfSquares(op.axes.to_vec())),
            _ => None,
        });
    }
    if let Some(op) = op.downcast_ref::<Softmax>() {
        return Ok(Some(Op::Softmax(op.axes.to_vec())));
    }
    if let Some(op) = op.downcast_ref::<Slice>() {
        return Ok(Some(Op::Slice {
            axis: op.axis,
            start: op.start.to_usize()?,
            end: op.end.to_usize()?,
        }));
    }
    if let Some(op) = op.downcast_ref::<TypedConcat>() {
        let maps = inputs.iter().chain([&output]).all(|&id| {
            matches!(graph.values[id].layout, Layout::Map { .. })
                && graph.dims(id).first() == Some(&1)
                && graph.dims(id).get(1) == Some(&graph.channels(id))
        });
        let found = op.axis == 1 && maps && live.len() == inputs.len();
        return Ok(found.then_some(Op::Concat));
    }
    if let Some(op) = op.downcast_ref::<Pad>() {
        let one = match &op.mode {
            PadMode::Constant(value) => value.cast_to_scalar::<f32>()? == 1.0,
            _ => false,
        };
        let channel = op.pads == [(0, 0), (0, 1), (0, 0), (0, 0)];
        return Ok((one && channel && graph.dims(output)[0] == 1).then_some(Op::Ones));
    }
    Ok(upsampling(graph, op, inputs, output).map(Op::Upsample))
}

/// A convolution with constant weights over one image, and its bias.
pub(super) fn conv(
    graph: &Graph,
    conv: &cnn::Conv,
    inputs: &[Id],
    output: Id,
) -> TractResult<Option<(Conv, Option<Channels>)>> {
    let &[input, kernel, bias] = inputs else { return Ok(None) };
    let float = graph.values[input].element == f32::datum_type();
    let (Some(kernel), Some(bias)) = (graph.constant(kernel), graph.constant(bias)) else {
        return Ok(None);
    };
    let geometry = geometry(graph, &conv.pool_spec, input);
    let (Some(geometry), KernelFormat::OIHW, None, true) =
        (geometry, conv.kernel_fmt, conv.q_params, float)
    else {
        return Ok(None);
    };
    let plain = conv.group == 1;
    let depthwise = conv.group == conv.input_channels() && conv.group == conv.output_channels();
    if kernel.datum_type() != f32::datum_type()
        || bias.datum_type() != f32::datum_type()
        || !(plain || depthwise)
        || graph.values[output].layout.is_empty()
    {
        return Ok(None);
    }
    let view = bias.try_as_plain_ram()?;
    let bias = match view.as_slice::<f32>()? {
        [value] => Channels::One(*value),
        values if values.len() == graph.channels(output) => Channels::Each(values.into()),
        _ => return Ok(None),
    };
    let conv = Conv {
        weights: Weights::new(Arc::clone(kernel))?,
        channels: conv.input_channels(),
        outputs: conv.output_channels(),
        kernel: geometry.kernel,
        stride: geometry.stride,
        dilation: geometry.dilation,
        padding: geometry.padding,
        groups: conv.group,
    };
    Ok(Some((conv, Some(bias).filter(|bias| *bias != Channels::One(0.0)))))
}

/// The factor, where a resize operator repeats every pixel that often along both axes: seen from
/// what it does to a map of distinct values, as its many options are tract's to interpret.
fn upsampling(graph: &Graph, op: &dyn TypedOp, inputs: &[Id], output: Id) -> Option<usize> {
    if !matches!(&*op.name(), "Resize" | "NearestUpsample") {
        return None;
    }
    let (&input, rest) = inputs.split_first()?;
    let (&[1, c, h, w], &[1, oc, oh, ow]) = (graph.dims(input), graph.dims(output)) else {
        return None;
    };
    let factor = oh / h.max(1);
    let whole = factor > 1 && oc == c && oh == h * factor && ow == w * factor;
    if !whole {
        return None;
    }
    let constants: TVec<&Arc<Tensor>> =
        rest.iter().map(|&id| graph.constant(id)).collect::<Option<_>>()?;
    // One channel tells of all, unless the operator's constants say how many there are.
    let one = repeats(op, &constants, [1, h, w], factor);
    let every = || repeats(op, &constants, [c, h, w], factor);
    one.or_else(every).unwrap_or(false).then_some(factor)
}

/// Whether `op` repeats every pixel of a `[channels, height, width]` map `factor` times along both axes; none where it
/// does not take such a map.
fn repeats(
    op: &dyn TypedOp,
    constants: &[&Arc<Tensor>],
    [c, h, w]: [usize; 3],
    factor: usize,
) -> Option<bool> {
    let (oh, ow) = (h * factor, w * factor);
    if c * h * w > 1 << 22 {
        return None;
    }
    let probe: Vec<f32> = (0..c * h * w).map(|k| k as f32).collect();
    let mut arguments: TVec<TValue> =
        tvec![Tensor::from_shape(&[1, c, h, w], &probe).ok()?.into_tvalue()];
    arguments.extend(constants.iter().map(|&constant| Arc::clone(constant).into_tvalue()));
    let result = op.eval_out_of_plan(arguments).ok()??;
    let result = result.first().filter(|result| result.shape() == [1, c, oh, ow])?;
    let result = result.try_as_plain_ram().ok()?;
    let mut rows = result.as_slice::<f32>().ok()?.chunks_exact(ow).enumerate();
    Some(rows.all(|(row, values)| {
        let from = &probe[(row / oh * h + row % oh / factor) * w..][..w];
        values.iter().enumerate().all(|(x, value)| *value == from[x / factor])
    }))
}

struct Geometry {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    padding: Padding,
}

/// Of a two-dimensional window over a map of one image.
fn geometry(graph: &Graph, spec: &cnn::PoolSpec, input: Id) -> Option<Geometry> {
    let &[1, _, height, width] = graph.dims(input) else { return None };
    let &[kh, kw] = spec.kernel_shape.as_slice() else { return None };
    if spec.data_format != DataFormat::NCHW {
        return None;
    }
    let computed = spec.computed_padding(&[height, width]);
    let [rows, columns] = computed.as_slice() else { return None };
    Some(Geometry {
        kernel: [kh, kw],
        stride: [spec.stride(0), spec.stride(1)],
        dilation: [spec.dilation(0), spec.dilation(1)],
        padding: Padding {
            top: rows.pad_before,
            bottom: rows.pad_after,
            left: columns.pad_before,
            right: columns.pad_after,
        },
    })
}

fn element_wise(op: &ElementWiseOp) -> Option<Activation> {
    let op = &op.0;
    if op.is::<nn::Sigmoid>() {
        Some(Activation::Sigmoid)
    } else if op.is::<nn::Silu>() {
        Some(Activation::Silu)
    } else if op.is::<math::Sqrt>() {
        Some(Activation::Sqrt)
    } else if op.is::<math::Recip>() {
        Some(Activation::Reciprocal)
    } else if op.is::<math::Rsqrt>() {
        Some(Activation::ReciprocalSqrt)
    } else if op.is::<math::Square>() {
        Some(Activation::Square)
    } else if op.is::<math::Neg>() {
        Some(Activation::Negate)
    } else if op.is::<math::Abs>() {
        Some(Activation::Abs)
    } else if op.is::<math::Exp>() {
        Some(Activation::Exp)
    } else if op.is::<math::Tanh>() {
        Some(Activation::Tanh)
    } else {
        None
    }
}

fn binary(op: &TypedBinOp, graph: &Graph, inputs: &[Id], output: Id) -> Option<Op> {
    let &[a, b] = inputs else { return None };
    let kind = &op.0;
    if let (None, None) = (graph.constant(a), graph.constant(b)) {
        return if kind.is::<math::Add>() {
            Some(Op::Add)
        } else if kind.is::<math::Sub>() {
            Some(Op::Subtract)
        } else if kind.is::<math::Mul>() {
            Some(Op::Multiply)
        } else {
            None
        };
    }
    // A constant that makes the value larger is not one a channel.
    let live = if graph.constant(a).is_none() { a } else { b };
    if graph.dims(live) != graph.dims(output) {
        return None;
    }
    let left = graph.constant(a).map(|tensor| channels(tensor, graph, output));
    let right = graph.constant(b).map(|tensor| channels(tensor, graph, output));
    let map = |channels: &Channels, f: fn(f32) -> f32| match channels {
        Channels::One(value) => Channels::One(f(*value)),
        Channels::Each(values) => Channels::Each(values.iter().map(|v| f(*v)).collect()),
    };
    let any = left.clone().or(right.clone())??;
    if kind.is::<math::Add>() {
        Some(Op::Offset(any))
    } else if kind.is::<math::Mul>() {
        Some(Op::Scale(any))
    } else if kind.is::<math::Sub>() {
        right.map(|_| Op::Offset(map(&any, |v| -v)))
    } else if kind.is::<math::Div>() {
        right.map(|_| Op::Scale(map(&any, |v| 1.0 / v)))
    } else if let (true, Channels::One(low)) = (kind.is::<math::Max>(), &any) {
        Some(Op::Activate(Activation::Clip { low: *low, high: f32::INFINITY }))
    } else if let (true, Channels::One(high)) = (kind.is::<math::Min>(), &any) {
        Some(Op::Activate(Activation::Clip { low: f32::NEG_INFINITY, high: *high }))
    } else {
        None
    }
}

fn einsum(op: &EinSum, graph: &Graph, inputs: &[Id]) -> TractResult<Option<Op>> {
    let &[a, b] = inputs else { return Ok(None) };
    if op.q_params.is_some() || op.operating_dt != f32::datum_type() {
        return Ok(None);
    }
    let (axes, outputs) = op.axes.to_strs();
    let (Some((left, right)), Some(output)) =
        (axes.iter().map(String::as_str).collect_tuple(), outputs.first().map(String::as_str))
    else {
        return Ok(None);
    };
    let Some(weights) = graph.constant(b) else {
        let letters = [left.into(), right.into(), output.into()];
        return Ok(graph.constant(a).is_none().then_some(Op::EinSum(letters)));
    };
    // A vector times a matrix, whichever way it lies.
    let (&[1, k], &[rows, columns]) = (graph.dims(a), weights.shape()) else { return Ok(None) };
    let letters = |text: &str| text.chars().collect_tuple::<(char, char)>();
    let (Some((m, k1)), Some((w0, w1)), Some((o0, o1))) =
        (letters(left), letters(right), letters(output))
    else {
        return Ok(None);
    };
    if weights.datum_type() != f32::datum_type() || o0 != m || k1 == m {
        return Ok(None);
    }
    let weights = if (w0, w1) == (o1, k1) && columns == k {
        Arc::clone(weights)
    } else if (w0, w1) == (k1, o1) && rows == k {
        Tensor::clone(weights).permute_axes(&[1, 0])?.into_arc_tensor()
    } else {
        return Ok(None);
    };
    let outputs = weights.shape()[0];
    Ok(Some(Op::Dense(Dense { weights: Weights::new(weights)?, channels: k, outputs })))
}
