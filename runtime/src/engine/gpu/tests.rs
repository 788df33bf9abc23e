//! The engine against tract and the scalar kernels, and its shaders against naga.

mod random;

use std::path::Path;
use std::sync::Arc;

use tract_onnx::prelude::*;

use super::adapter::Device;
use super::program::Program;
use super::resident::Resident;
use super::shader::Abilities;
use super::testing::adapter_or_skip;
use crate::engine::{fused, tract};
use crate::model::{OnnxFile, typed::typed};

fn shipped() -> OnnxFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge.onnx");
    OnnxFile::open(&path).unwrap()
}

/// Every set of abilities a device may have.
fn all_abilities() -> Vec<Abilities> {
    let mut all = vec![];
    for half in [false, true] {
        for subgroups in [false, true] {
            for shared in [false, true] {
                all.push(Abilities { half, subgroups, shared });
            }
        }
    }
    all
}

/// What naga says to a shader for a device with `abilities`.
fn validate(source: &str, abilities: Abilities) -> Result<(), String> {
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
    let module =
        wgpu::naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    let mut capabilities = Capabilities::empty();
    capabilities.set(Capabilities::SHADER_FLOAT16, abilities.half);
    capabilities.set(Capabilities::SUBGROUP, abilities.subgroups);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.validate(&module).map_err(|error| error.emit_to_string(source))?;
    Ok(())
}

#[test]
fn every_shader_of_the_shipped_model_is_valid_for_every_set_of_features() {
    let graph = fused::fuse(typed(shipped().proto(), &[1, 224, 224, 3]).unwrap()).unwrap();
    for abilities in all_abilities() {
        let program = Program::new(graph.clone(), abilities).unwrap();
        for source in &program.sources {
            if let Err(problem) = validate(source, abilities) {
                panic!("{abilities:?}\n{problem}\n{source}");
            }
        }
    }
}

#[test]
fn the_shipped_model_agrees_with_tract() {
    if !adapter_or_skip() {
        return;
    }
    let shape = [1, 224, 224, 3];
    let file = shipped();
    let graph = fused::fuse(typed(file.proto(), &shape).unwrap()).unwrap();
    let device = Arc::new(Device::open(false).unwrap());
    let abilities = device.abilities(false);
    let program = Arc::new(Program::new(graph, abilities).unwrap());
    let resident = Resident::new(device, program, 2).unwrap();
    let tile: Vec<u8> =
        (0..224 * 224 * 3).map(|k| ((k / 7 * 31 + k % 7 * 5) % 256) as u8).collect();
    let deadline = std::time::Duration::from_secs(300);
    let start = std::time::Instant::now();
    let flight = resident.submit(0, &[&tile]).unwrap();
    let values = resident.wait(flight, deadline).unwrap().remove(0);
    eprintln!("one tile took {:?}", start.elapsed());
    let mut oracle = tract::plan(file.proto(), &shape).unwrap().spawn().unwrap();
    let expected = tract::run(&mut oracle, Tensor::from_shape(&shape, &tile).unwrap(), 0).unwrap();
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    eprintln!("difference {:e}", worst / largest);
    assert!(worst / largest < 1e-4, "{:e}", worst / largest);
}
