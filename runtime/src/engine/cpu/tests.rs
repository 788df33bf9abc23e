//! The engine against tract: on the shipped model, on graphs with operators that tract keeps, with
//! any number of threads.

use std::path::Path;
use std::sync::Arc;

use diffbulk_kernels::Isa;
use tract_onnx::prelude::*;

use super::program::Program;
use super::session::CpuSession;
use crate::engine::{fused, tract};
use crate::model::{OnnxFile, typed::typed};

fn shipped() -> OnnxFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge.onnx");
    OnnxFile::open(&path).unwrap()
}

/// A picture with structure at several scales, from a seed.
fn picture(side: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2654435761) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let coarse: Vec<u32> = (0..64).map(|_| random() % 160).collect();
    (0..side * side * 3)
        .map(|k| {
            let (y, x, c) = (k / 3 / side, k / 3 % side, k % 3);
            let block = coarse[(y * 8 / side * 8 + x * 8 / side + c) % 64];
            (block + random() % 96).min(255) as u8
        })
        .collect()
}

/// Largest difference over the largest reference value.
fn difference(values: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(values.len(), reference.len());
    let largest = reference.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(values.iter().all(|v| v.is_finite()));
    worst / largest
}

fn prepared(model: TypedModel, isa: Isa) -> Arc<Program> {
    Arc::new(Program::new(fused::fuse(model).unwrap(), isa).unwrap())
}

fn run(session: &mut CpuSession, input: &[u8]) -> Vec<f32> {
    session.set_input(0, input).unwrap();
    session.run().unwrap();
    session.output(0).unwrap().to_vec()
}

#[test]
fn the_shipped_model_agrees_with_tract_for_every_instruction_set_and_number_of_threads() {
    let file = shipped();
    let shape = [1, 224, 224, 3];
    let mut oracle = tract::plan(file.proto(), &shape).unwrap().spawn().unwrap();
    let tiles: Vec<Vec<u8>> = (1..4).map(|seed| picture(224, seed)).collect();
    let expected: Vec<Vec<f32>> = tiles
        .iter()
        .map(|tile| {
            let tensor = Tensor::from_shape(&shape, tile).unwrap();
            tract::run(&mut oracle, tensor, 0).unwrap()
        })
        .collect();
    for isa in Isa::available() {
        let program = prepared(typed(file.proto(), &shape).unwrap(), isa);
        let mut first: Vec<Vec<f32>> = vec![];
        // The scalar reference is slow; one tile of it is enough.
        let count = if isa == Isa::Scalar { 1 } else { tiles.len() };
        for threads in [1, 2, 3] {
            if isa == Isa::Scalar && threads == 3 {
                continue;
            }
            let mut session = CpuSession::new(Arc::clone(&program), threads).unwrap();
            for (k, tile) in tiles.iter().take(count).enumerate() {
                let values = run(&mut session, tile);
                let worst = difference(&values, &expected[k]);
                assert!(worst < 1e-4, "{isa:?} {threads} threads, tile {k}: {worst:e}");
                match first.get(k) {
                    None => first.push(values),
                    Some(known) => assert_eq!(known, &values, "{isa:?} {threads} threads"),
                }
            }
        }
    }
}

/// Graphs that have little to do with the product: with operators that stay tract's, that have no
/// kernel, or whose pieces do not fit one.
fn odd_graphs() -> Vec<(&'static str, TypedModel)> {
    use tract_onnx::tract_core::ops::array::TypedConcat;
    use tract_onnx::tract_core::ops::cnn::{
        Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool,
    };
    use tract_onnx::tract_core::ops::math;
    use tract_onnx::tract_core::ops::nn::{self, DataFormat, NearestUpsample};

    let spec = |kernel: usize, stride: usize, pad: [usize; 2], from: usize, to: usize| PoolSpec {
        data_format: DataFormat::NCHW,
        kernel_shape: tvec![kernel, kernel],
        padding: PaddingSpec::Explicit(tvec![pad[0]; 2], tvec![pad[1]; 2]),
        dilations: None,
        strides: Some(tvec![stride, stride]),
        input_channels: from,
        output_channels: to,
    };
    let conv = |model: &mut TypedModel, name: &str, x: OutletId, spec: PoolSpec, group: usize| {
        let [k, from, to] = [spec.kernel_shape[0], spec.input_channels, spec.output_channels];
        let dims = [to, from / group, k, k];
        let len: usize = dims.iter().product();
        let values: Vec<f32> = (0..len).map(|i| ((i * 37 % 19) as f32 - 9.0) / 20.0).collect();
        let weights = Tensor::from_shape(&dims, &values).unwrap();
        let weights = model.add_const(format!("{name}.w"), weights).unwrap();
        let bias: Vec<f32> = (0..to).map(|i| i as f32 / 10.0).collect();
        let bias = model.add_const(format!("{name}.b"), tensor1(&bias)).unwrap();
        let op = Conv { pool_spec: spec, kernel_fmt: KernelFormat::OIHW, group, q_params: None };
        model.wire_node(name, op, &[x, weights, bias]).unwrap()[0]
    };
    let mut graphs = vec![];
    let mut graph = |name, build: &mut dyn FnMut(&mut TypedModel, OutletId) -> OutletId| {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, 6, 9, 11])).unwrap();
        let y = build(&mut model, x);
        model.select_output_outlets(&[y]).unwrap();
        graphs.push((name, model));
    };
    graph("max pool, then an operator of tract's", &mut |m, x| {
        let op = MaxPool { pool_spec: spec(3, 2, [1, 1], 6, 6), with_index_outputs: None };
        let y = m.wire_node("pool", op, &[x]).unwrap();
        m.wire_node("erf", math::erf(), &y).unwrap()[0]
    });
    graph("mean pool with and without padding", &mut |m, x| {
        let op = |count_include_pad| SumPool {
            pool_spec: spec(3, 1, [1, 1], 6, 6),
            count_include_pad,
            normalize: true,
        };
        let a = m.wire_node("with", op(true), &[x]).unwrap()[0];
        let b = m.wire_node("without", op(false), &[x]).unwrap()[0];
        m.wire_node("difference", math::sub(), &[a, b]).unwrap()[0]
    });
    graph("2x2 pool of an odd map", &mut |m, x| {
        let op = SumPool {
            pool_spec: spec(2, 2, [0, 0], 6, 6),
            count_include_pad: false,
            normalize: true,
        };
        m.wire_node("pool", op, &[x]).unwrap()[0]
    });
    graph("convolution of three maps, one enlarged", &mut |m, x| {
        let small = conv(m, "small", x, spec(3, 2, [0, 0], 6, 4), 1);
        let a = conv(m, "a", small, spec(1, 1, [0, 0], 4, 3), 1);
        let b = conv(m, "b", small, spec(3, 1, [1, 1], 4, 2), 1);
        let a = m.wire_node("silu", nn::silu::silu(), &[a]).unwrap()[0];
        let up = |m: &mut TypedModel, name: &str, x| {
            m.wire_node(name, NearestUpsample { scales: tvec![1, 1, 2, 2] }, &[x]).unwrap()[0]
        };
        let (a, b, c) = (up(m, "up a", a), up(m, "up b", b), up(m, "up c", small));
        let all = m.wire_node("concat", TypedConcat { axis: 1 }, &[a, b, c]).unwrap()[0];
        let y = conv(m, "y", all, spec(3, 1, [1, 1], 9, 5), 1);
        let y = m.wire_node("tanh", math::tanh(), &[y]).unwrap()[0];
        let z = conv(m, "z", y, spec(5, 1, [2, 2], 5, 5), 5);
        m.wire_node("sum", math::add(), &[y, z]).unwrap()[0]
    });
    graph("grouped convolution and a product of two maps", &mut |m, x| {
        let a = conv(m, "a", x, spec(3, 1, [1, 1], 6, 4), 2);
        let b = conv(m, "b", x, spec(3, 1, [1, 1], 6, 4), 1);
        let a = m.wire_node("sigmoid", nn::sigmoid(), &[a]).unwrap()[0];
        m.wire_node("product", math::mul(), &[a, b]).unwrap()[0]
    });
    graphs
}

#[test]
fn other_graphs_agree_with_tract_too() {
    let input: Vec<f32> = (0..6 * 9 * 11).map(|k| ((k * 31 % 97) as f32 - 48.0) / 30.0).collect();
    let input = Tensor::from_shape(&[1, 6, 9, 11], &input).unwrap();
    let runtime =
        tract_onnx::tract_core::runtime::runtime_for_name("diffbulk-cpu").unwrap().unwrap();
    for (name, model) in odd_graphs() {
        let mut oracle =
            model.clone().into_optimized().unwrap().into_runnable().unwrap().spawn().unwrap();
        let expected = tract::run(&mut oracle, input.clone(), 0).unwrap();
        for isa in Isa::available() {
            let program = prepared(model.clone(), isa);
            for threads in [1, 2] {
                let mut session = CpuSession::new(Arc::clone(&program), threads).unwrap();
                let values = run(&mut session, input.try_as_plain_ram().unwrap().as_bytes());
                let worst = difference(&values, &expected);
                assert!(worst < 1e-5, "{name}: {isa:?} {threads} threads: {worst:e}");
            }
        }
        // The same through tract's own interface, from the graph as its passes leave it.
        let runnable = runtime.prepare(model.into_decluttered().unwrap()).unwrap();
        let outputs = runnable.run(tvec![input.clone().into_tvalue()]).unwrap();
        let view = outputs[0].try_as_plain_ram().unwrap();
        assert!(difference(view.as_slice().unwrap(), &expected) < 1e-5, "{name}");
    }
}
