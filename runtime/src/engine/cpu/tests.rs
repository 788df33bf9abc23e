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
