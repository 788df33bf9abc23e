//! One test a pattern: a graph of tract operators as its loader writes them, and the list it gives.

use std::path::Path;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::AxisOp;
use tract_onnx::tract_core::ops::array::{Pad, PadMode, Slice, TypedConcat};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{
    self, DataFormat, NearestUpsample, Reduce, Reducer, Softmax,
};

use crate::engine::fused::{Core, FusedGraph, fuse};
use crate::model::{OnnxFile, typed::typed};

/// A graph under construction.
struct Net(TypedModel, usize);

impl Net {
    fn new(dims: &[usize]) -> (Self, OutletId) {
        let mut model = TypedModel::default();
        let source = model.add_source("x", f32::fact(dims)).unwrap();
        (Self(model, 0), source)
    }

    fn wire(
        &mut self,
        op: impl Into<Box<dyn tract_onnx::tract_core::internal::TypedOp>>,
        inputs: &[OutletId],
    ) -> OutletId {
        self.1 += 1;
        self.0.wire_node(format!("n{}", self.1), op, inputs).unwrap()[0]
    }

    fn constant(&mut self, dims: &[usize], values: &[f32]) -> OutletId {
        self.1 += 1;
        let tensor = Tensor::from_shape(dims, values).unwrap();
        self.0.add_const(format!("c{}", self.1), tensor).unwrap()
    }

    fn scalar(&mut self, rank: usize, value: f32) -> OutletId {
        self.constant(&vec![1; rank], &[value])
    }

    fn conv(&mut self, x: OutletId, channels: [usize; 2], side: usize) -> OutletId {
        let [from, to] = channels;
        let weights: Vec<f32> = (0..to * from * side * side).map(|k| k as f32).collect();
        let kernel = self.constant(&[to, from, side, side], &weights);
        let bias = self.constant(&[], &[0.0]);
        let pad: TVec<usize> = tvec![side / 2; 2];
        let spec = PoolSpec::new(
            DataFormat::NCHW,
            tvec![side, side],
            PaddingSpec::Explicit(pad.clone(), pad),
            None,
            None,
            from,
            to,
        );
        let conv =
            Conv { pool_spec: spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
        self.wire(conv, &[x, kernel, bias])
    }

    fn mean(&mut self, x: OutletId, axes: &[usize]) -> OutletId {
        let fact = self.0.outlet_fact(x).unwrap();
        let rank = fact.rank();
        let terms: usize =
            axes.iter().map(|&axis| fact.shape.as_concrete().unwrap()[axis]).product();
        let sum = self.wire(Reduce::new(axes.into(), Reducer::Sum), &[x]);
        let terms = self.scalar(rank, terms as f32);
        self.wire(math::div(), &[sum, terms])
    }

    fn norm(&mut self, x: OutletId, axis: usize) -> OutletId {
        let square = self.wire(math::mul(), &[x, x]);
        let mean = self.mean(square, &[axis]);
        let root = self.wire(math::sqrt(), &[mean]);
        let epsilon = self.scalar(4, 1e-4);
        let guarded = self.wire(math::add(), &[root, epsilon]);
        let inverse = self.wire(math::recip(), &[guarded]);
        self.wire(math::mul(), &[x, inverse])
    }

    fn silu(&mut self, x: OutletId) -> OutletId {
        let sigmoid = self.wire(nn::sigmoid(), &[x]);
        self.wire(math::mul(), &[x, sigmoid])
    }

    fn fuse(mut self, outputs: &[OutletId]) -> FusedGraph {
        self.0.select_output_outlets(outputs).unwrap();
        fuse(self.0).unwrap()
    }
}

/// The list without names and the line of sums.
fn lines(graph: &FusedGraph) -> Vec<String> {
    graph
        .ops
        .iter()
        .map(|op| graph.describe(op).split("   (").next().unwrap().to_owned())
        .filter(|line| !line.contains("| layout"))
        .collect()
}

#[test]
fn silu_norm_residual_and_clip_join_the_convolution() {
    let (mut net, x) = Net::new(&[1, 4, 6, 6]);
    let a = net.conv(x, [4, 8], 1);
    let a = net.norm(a, 1);
    let b = net.silu(a);
    let b = net.conv(b, [8, 8], 3);
    let b = net.silu(b);
    let b = net.conv(b, [8, 8], 3);
    let sum = net.wire(math::add(), &[a, b]);
    let low = net.scalar(4, -2.0);
    let high = net.scalar(4, 2.0);
    let low = net.wire(math::max(), &[sum, low]);
    let clip = net.wire(math::min(), &[low, high]);
    let graph = net.fuse(&[clip]);
    assert_eq!(
        lines(&graph),
        [
            "b1 6x6x4 | conv 1x1 4>8 | pixel norm 0.0001 | -> b2 6x6x8 | silu | -> b3 6x6x8",
            "b3 6x6x8 | conv 3x3 8>8 | silu | -> b4 6x6x8",
            "b4 6x6x8 | conv 3x3 8>8 | + b2 | clip -2..2 | -> b5 6x6x8",
        ]
    );
    assert_eq!(graph.macs(), 36 * (4 * 8 + 2 * 9 * 64));
}

#[test]
fn concatenation_is_read_in_place_and_its_factors_move_away() {
    let (mut net, x) = Net::new(&[1, 4, 6, 6]);
    let a = net.conv(x, [4, 2], 1);
    let b = net.conv(x, [4, 3], 1);
    let both = net.wire(TypedConcat { axis: 1 }, &[a, b]);
    let factors = net.constant(&[1, 5, 1, 1], &[0.5, 0.5, 2.0, 2.0, 2.0]);
    let scaled = net.wire(math::mul(), &[both, factors]);
    let silu = net.silu(scaled);
    let skip = net.conv(scaled, [5, 2], 1);
    let main = net.conv(silu, [5, 2], 3);
    let sum = net.wire(math::add(), &[skip, main]);
    let graph = net.fuse(&[sum]);
    assert_eq!(
        lines(&graph),
        [
            "b1 6x6x4 | conv 1x1 4>2 | -> b2 6x6x2 | * 0.5 | silu | -> b3 6x6x2",
            "b1 6x6x4 | conv 1x1 4>3 | -> b4 6x6x3 | * 2 | silu | -> b5 6x6x3",
            "b2 6x6x2 + b4 6x6x3 | conv 1x1 5>2 | -> b6 6x6x2",
            "b3 6x6x2 + b5 6x6x3 | conv 3x3 5>2 | + b6 | -> b7 6x6x2",
        ]
    );
    let Core::Conv(skip) = &graph.ops[3].core else { panic!("{graph}") };
    assert_eq!(skip.weights.values()[..5], [0.0, 0.5, 4.0, 6.0, 8.0]);
}

#[test]
fn activations_are_done_before_upsampling() {
    let (mut net, x) = Net::new(&[1, 4, 3, 3]);
    let a = net.conv(x, [4, 4], 1);
    let up = net.wire(NearestUpsample { scales: tvec![1, 1, 2, 2] }, &[a]);
    let silu = net.silu(up);
    let b = net.conv(silu, [4, 4], 3);
    let sum = net.wire(math::add(), &[up, b]);
    let graph = net.fuse(&[sum]);
    assert_eq!(
        lines(&graph),
        [
            "b1 3x3x4 | conv 1x1 4>4 | -> b2 3x3x4 | silu | -> b3 3x3x4",
            "b3 3x3x4 x2 | conv 3x3 4>4 | + b2 x2 | -> b4 6x6x4",
        ]
    );
}

#[test]
fn mean_and_deviation_are_one_operator() {
    let (mut net, x) = Net::new(&[1, 4, 6, 6]);
    let x = net.conv(x, [4, 4], 1);
    let mean = net.mean(x, &[2, 3]);
    let centre = net.mean(x, &[2, 3]);
    let distance = net.wire(math::sub(), &[x, centre]);
    let square = net.wire(math::mul(), &[distance, distance]);
    let variance = net.mean(square, &[2, 3]);
    let flat = net.wire(AxisOp::Rm(3), &[variance]);
    let flat = net.wire(AxisOp::Rm(2), &[flat]);
    let deviation = net.wire(math::sqrt(), &[flat]);
    let mean = net.wire(AxisOp::Rm(3), &[mean]);
    let mean = net.wire(AxisOp::Rm(2), &[mean]);
    let both = net.wire(TypedConcat { axis: 1 }, &[mean, deviation]);
    let graph = net.fuse(&[both]);
    let lines = lines(&graph);
    assert!(lines[1].contains("| mean and deviation | -> b3 4 | -> b4 4"), "{graph}");
    assert!(lines[2].starts_with("b3 4 + b4 4 | map | -> "), "{graph}");
    assert_eq!(graph.unrecognised().count(), 0, "{graph}");
}

#[test]
fn group_norm_with_activation_and_mean() {
    let (mut net, x) = Net::new(&[1, 4, 6, 6]);
    let x = net.conv(x, [4, 4], 1);
    let grouped = net.wire(
        AxisOp::Reshape(1, tvec![4.into(), 6.into(), 6.into()], tvec![2.into(), 72.into()]),
        &[x],
    );
    let centre = net.mean(grouped, &[2]);
    let distance = net.wire(math::sub(), &[grouped, centre]);
    let square = net.wire(math::square(), &[distance]);
    let variance = net.mean(square, &[2]);
    let epsilon = net.scalar(3, 1e-5);
    let guarded = net.wire(math::add(), &[variance, epsilon]);
    let inverse = net.wire(math::rsqrt(), &[guarded]);
    let normal = net.wire(math::mul(), &[distance, inverse]);
    let ones = net.constant(&[1, 2, 1], &[1.0, 1.0]);
    let normal = net.wire(math::mul(), &[normal, ones]);
    let zeros = net.constant(&[1, 2, 1], &[0.0, 0.0]);
    let normal = net.wire(math::add(), &[normal, zeros]);
    let map = net.wire(
        AxisOp::Reshape(1, tvec![2.into(), 72.into()], tvec![4.into(), 6.into(), 6.into()]),
        &[normal],
    );
    let gamma = net.constant(&[1, 4, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
    let scaled = net.wire(math::mul(), &[map, gamma]);
    let silu = net.silu(scaled);
    let mean = net.mean(silu, &[2, 3]);
    let graph = net.fuse(&[mean]);
    assert_eq!(
        lines(&graph)[1],
        "b2 6x6x4 | group norm 2 0.00001 | * channels | silu | mean over pixels | -> b3 4"
    );
    assert_eq!(graph.unrecognised().count(), 0, "{graph}");
}

fn attention(normalised: bool, crossed: bool) -> FusedGraph {
    let (mut net, x) = Net::new(&[1, 4, 3, 3]);
    let qkv = net.conv(x, [4, 24], 1);
    let heads = net.wire(AxisOp::Reshape(1, tvec![24.into()], tvec![6.into(), 4.into()]), &[qkv]);
    let heads = net.wire(AxisOp::Reshape(3, tvec![3.into(), 3.into()], tvec![9.into()]), &[heads]);
    let heads = if normalised { net.norm(heads, 2) } else { heads };
    let part = |net: &mut Net, k: usize| net.wire(Slice::new(1, 2 * k, 2 * k + 2), &[heads]);
    let q = part(&mut net, 0);
    let k = part(&mut net, if crossed { 2 } else { 1 });
    let v = part(&mut net, if crossed { 1 } else { 2 });
    let q = net.wire(AxisOp::Move(2, 3), &[q]);
    let v = net.wire(AxisOp::Move(2, 3), &[v]);
    let matmul = || EinSum::new("abmk,abkn->abmn".parse().unwrap(), f32::datum_type());
    let scores = net.wire(matmul(), &[q, k]);
    let scale = net.scalar(4, 0.5);
    let scores = net.wire(math::mul(), &[scores, scale]);
    let weights = net.wire(Softmax { axes: tvec![3], ..Softmax::default() }, &[scores]);
    let mixed = net.wire(matmul(), &[weights, v]);
    let mixed = net.wire(AxisOp::Move(2, 3), &[mixed]);
    let mixed = net.wire(AxisOp::Reshape(1, tvec![2.into(), 4.into()], tvec![8.into()]), &[mixed]);
    let map = net.wire(AxisOp::Reshape(2, tvec![9.into()], tvec![3.into(), 3.into()]), &[mixed]);
    net.fuse(&[map])
}

#[test]
fn attention_is_one_operator() {
    for normalised in [true, false] {
        let graph = attention(normalised, false);
        assert_eq!(lines(&graph)[1], "b2 3x3x24 | attention 2 heads of 4 | -> b3 3x3x8", "{graph}");
        assert_eq!(graph.unrecognised().count(), 0, "{graph}");
        let Core::Attention(found) = &graph.ops[2].core else { panic!("{graph}") };
        assert_eq!((found.scale, found.norm), (0.5, normalised.then_some(1e-4)));
    }
}

#[test]
fn another_order_of_queries_keys_and_values_is_left_to_tract() {
    let graph = attention(false, true);
    assert!(graph.unrecognised().count() > 3, "{graph}");
}

#[test]
fn the_image_is_one_operator() {
    let mut model = TypedModel::default();
    let image = model.add_source("image", u8::fact([1, 8, 8, 3])).unwrap();
    let mut net = Net(model, 0);
    let planes = net.wire(AxisOp::Move(3, 1), &[image]);
    let pixels = net.wire(cast(f32::datum_type()), &[planes]);
    let slope = net.scalar(4, 0.25);
    let scaled = net.wire(math::mul(), &[pixels, slope]);
    let offset = net.constant(&[1, 3, 1, 1], &[1.0, 2.0, 3.0]);
    let normal = net.wire(math::add(), &[scaled, offset]);
    let a = net.conv(normal, [3, 4], 1);
    let blocks = net.wire(
        AxisOp::Reshape(
            2,
            tvec![8.into(), 8.into()],
            tvec![4.into(), 2.into(), 4.into(), 2.into()],
        ),
        &[pixels],
    );
    let blocks = net.wire(AxisOp::Move(3, 1), &[blocks]);
    let blocks = net.wire(AxisOp::Move(5, 2), &[blocks]);
    let deep = net
        .wire(AxisOp::Reshape(1, tvec![2.into(), 2.into(), 3.into()], tvec![12.into()]), &[blocks]);
    let ones = Pad {
        pads: vec![(0, 0), (0, 1), (0, 0), (0, 0)],
        mode: PadMode::Constant(tensor0(1f32).into_arc_tensor()),
    };
    let deep = net.wire(ones, &[deep]);
    let b = net.conv(deep, [13, 4], 3);
    let graph = net.fuse(&[a, b]);
    let lines = lines(&graph);
    assert_eq!(lines[0], "b0 [1, 8, 8, 3] | image affine | -> b1 8x8x3", "{graph}");
    assert!(lines[2].contains("| image blocks 2 ones | -> "), "{graph}");
    assert_eq!(graph.unrecognised().count(), 0, "{graph}");
}

#[test]
fn what_is_not_known_stays_tract_s() {
    let (mut net, x) = Net::new(&[1, 4, 6, 6]);
    let x = net.conv(x, [4, 4], 1);
    let y = net.wire(math::erf(), &[x]);
    // Broadcast along columns: no operator here does that.
    let wide = net.constant(&[1, 1, 1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = net.wire(math::mul(), &[y, wide]);
    let y = net.silu(y);
    let graph = net.fuse(&[y]);
    let about: Vec<&str> = graph
        .ops
        .iter()
        .filter_map(|op| match &op.core {
            Core::Tract(op) => Some(op.about.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(about, ["Erf", "Mul"]);
    assert!(graph.to_string().contains("map | silu"), "{graph}");
}

#[test]
fn a_graph_with_values_of_other_types_is_one_operator() {
    let (mut net, x) = Net::new(&[2, 3]);
    let y = net.wire(cast(f64::datum_type()), &[x]);
    let y = net.wire(math::exp(), &[y]);
    let y = net.wire(cast(f32::datum_type()), &[y]);
    let graph = net.fuse(&[y]);
    assert_eq!(graph.ops.len(), 1, "{graph}");
    assert!(matches!(graph.ops[0].core, Core::Tract(_)));
}

/// The shipped model, which the engine exists for.
fn shipped() -> FusedGraph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge.onnx");
    let file = OnnxFile::open(&path).unwrap();
    fuse(typed(file.proto(), &[1, 224, 224, 3]).unwrap()).unwrap()
}

#[test]
fn nothing_in_the_shipped_model_is_left_to_tract() {
    let graph = shipped();
    assert_eq!(graph.unrecognised().count(), 0, "{graph}");
    let metadata_macs = 707_200_000;
    assert!(graph.macs().abs_diff(metadata_macs) < metadata_macs / 1000, "{}", graph.macs());
    assert!(graph.ops.len() <= 150, "{graph}");
}

#[test]
fn buffers_that_live_at_the_same_time_do_not_overlap() {
    let graph = shipped();
    let alive = |at: usize, id: usize| {
        let touches = |k: &usize| {
            graph.ops[*k].reads().chain(graph.ops[*k].writes()).any(|buffer| buffer == id)
        };
        let first = (0..graph.ops.len()).find(touches);
        let last = (0..graph.ops.len()).rev().find(touches);
        let until = if graph.outputs.contains(&id) { Some(usize::MAX) } else { last };
        let from = if graph.inputs.contains(&id) { Some(0) } else { first };
        from.is_some_and(|from| from <= at) && until.is_some_and(|until| at <= until)
    };
    for at in 0..graph.ops.len() {
        let mut places: Vec<(usize, usize)> = (0..graph.buffers.len())
            .filter(|&id| alive(at, id))
            .map(|id| (graph.buffers[id].offset, graph.buffers[id].bytes()))
            .collect();
        places.sort_unstable();
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "operator {at}");
        }
        assert!(places.iter().all(|(offset, bytes)| offset + bytes <= graph.arena_bytes));
    }
}
