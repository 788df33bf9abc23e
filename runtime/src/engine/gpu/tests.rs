//! The engine against tract and the scalar kernels, and its shaders against naga.

mod build;
mod integers;
mod random;

use std::path::Path;
use std::sync::Arc;

use tract_onnx::prelude::*;

use super::adapter::Device;
use super::program::Program;
use super::resident::Resident;
use super::shader::{Abilities, Matrices};
use super::testing::adapter_or_skip;
use super::tiling::Choice;
use super::tune;
use super::worker::Desk;
use crate::engine::fused;
use crate::model::widen::{Rounding, widen};
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
                all.push(Abilities { half, subgroups, shared, matrices: None });
            }
        }
    }
    for half in [false, true] {
        for side in [8, 16] {
            let matrices = Some(Matrices { side, subgroup: 32 });
            all.push(Abilities { half, subgroups: true, shared: true, matrices });
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
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, abilities.matrices.is_some());
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.validate(&module).map_err(|error| error.emit_to_string(source))?;
    Ok(())
}

/// All shipped models.
fn models() -> Vec<std::path::PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let paths = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "onnx")).collect()
}

/// With `DIFFBULK_SHADERS` they are left in that directory, for `translate-shaders`.
#[test]
fn every_shader_of_the_shipped_models_is_valid_for_every_set_of_features() {
    let directory = std::env::var_os("DIFFBULK_SHADERS").map(std::path::PathBuf::from);
    let mut seen = std::collections::HashSet::new();
    for path in models() {
        let file = OnnxFile::open(&path).unwrap();
        let proto = widen(file.proto(), Rounding::Left);
        let graph = fused::fuse(typed(&proto, &[1, 224, 224, 3]).unwrap()).unwrap();
        for abilities in all_abilities() {
            let program = Program::new(graph.clone(), abilities, &Default::default()).unwrap();
            for source in program.sources {
                if !seen.insert(source.clone()) {
                    continue;
                }
                if let Err(problem) = validate(&source, abilities) {
                    panic!("{} {abilities:?}\n{problem}\n{source}", path.display());
                }
                if let Some(directory) = &directory {
                    // By what it needs: not every language has cooperative matrices.
                    let side = abilities.matrices.filter(|_| source.contains("coop_mat"));
                    let kind = side.map_or("plain".into(), |of| format!("matrices{}", of.side));
                    let path = directory.join(format!("{}-{kind}.wgsl", seen.len()));
                    std::fs::write(path, source).unwrap();
                }
            }
        }
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

/// Largest difference over the largest expected value.
fn difference(values: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(values.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(values.iter().all(|v| v.is_finite()));
    worst / largest
}

#[test]
fn tilings_are_measured_once_kept_and_change_no_number() {
    if !adapter_or_skip() {
        return;
    }
    let device = Arc::new(Device::open(false).unwrap());
    if !device.about.timestamps {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (graph, image) = build::small();
    let abilities = Abilities { shared: true, ..device.abilities(false) };
    let tuned = |path| {
        let kept = tune::kept(&device, abilities, Some(path));
        let program = Program::new(graph.clone(), abilities, &kept).unwrap();
        let measured = tune::measured(&device, &graph, &program, 1, kept.clone(), Some(path));
        measured.unwrap().unwrap_or(kept)
    };
    let first = tuned(directory.path());
    assert_eq!(first.len(), 2, "{first:?}");
    let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(files.len(), 1);
    let path = files[0].as_ref().unwrap().path();
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept.contains("llvmpipe") || kept.contains(&device.about.name), "{kept}");
    assert_eq!(tuned(directory.path()), first);
    // What is no candidate is measured anew, and so is a damaged file.
    std::fs::write(&path, kept.replace("\"pixels\": ", "\"pixels\": 9")).unwrap();
    assert_eq!(tuned(directory.path()).len(), 2);
    std::fs::write(&path, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(tuned(directory.path()).len(), 2);

    let predict = |choices: &tune::Choices| {
        let program = Arc::new(Program::new(graph.clone(), abilities, choices).unwrap());
        let resident = Resident::new(Arc::clone(&device), program, 1).unwrap();
        let flight = resident.submit(0, &[&image]).unwrap();
        resident.wait(flight, std::time::Duration::from_secs(60)).unwrap().remove(0)
    };
    let expected = predict(&Default::default());
    let program = Program::new(graph.clone(), abilities, &Default::default()).unwrap();
    let all: Vec<_> = program.ops.iter().filter_map(|op| op.choice.clone()).collect();
    let most = all.iter().map(|choice| choice.tilings.len()).max().unwrap();
    assert!(most > 5, "{all:?}");
    for trial in 0..most {
        let tried = |choice: &Choice| {
            choice.tilings.get(trial).map(|tiling| (choice.shape.clone(), *tiling))
        };
        let choices = all.iter().filter_map(tried).collect();
        assert_eq!(predict(&choices), expected, "{choices:?}");
    }
}

#[test]
fn a_device_that_is_lost_says_so_and_stays_lost() {
    if !adapter_or_skip() {
        return;
    }
    let device = Arc::new(Device::open(false).unwrap());
    let (graph, image) = build::small();
    let abilities = device.abilities(false);
    let program = Arc::new(Program::new(graph, abilities, &Default::default()).unwrap());
    let resident = Arc::new(Resident::new(Arc::clone(&device), program, 2).unwrap());
    let desk = Desk::open(resident).unwrap();
    desk.predict(&image).unwrap();
    device.device.destroy();
    for _ in 0..2 {
        let problem = desk.predict(&image).unwrap_err();
        assert!(problem.contains(&device.about.name), "{problem}");
    }
}

#[test]
fn a_driver_that_does_not_finish_in_time_is_said_to_hang() {
    if !adapter_or_skip() {
        return;
    }
    let device = Arc::new(Device::open(false).unwrap());
    let (graph, image) = build::small();
    let program = Program::new(graph, device.abilities(false), &Default::default()).unwrap();
    let resident = Resident::new(device, Arc::new(program), 8).unwrap();
    let tiles = vec![&image[..]; resident.batch];
    // A device may be done before anybody waits, but not every time.
    let hung = (0..50).find_map(|_| {
        let flight = resident.submit(0, &tiles).unwrap();
        resident.wait(flight, std::time::Duration::ZERO).err()
    });
    assert!(hung.is_some_and(|problem| problem.contains("hangs")));
}

#[test]
fn what_contradicts_itself_is_refused_when_it_is_lowered() {
    use crate::engine::fused::{BufferSpec, Core, Layout, Step};
    let (graph, _) = build::small();
    let abilities = Abilities::default();
    let lower = |graph| Program::new(graph, abilities, &Default::default()).map(|_| ());
    lower(graph.clone()).unwrap();
    let refused = |change: &dyn Fn(&mut fused::FusedGraph), words: &str| {
        let mut graph = graph.clone();
        change(&mut graph);
        let why = lower(graph).unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    // A store to a smaller map, a larger window, a map beyond reach, weights that are too few.
    let shrink = |graph: &mut fused::FusedGraph| {
        let stored = graph.ops[1].steps.iter().find_map(|step| match step {
            Step::Store(id) => Some(*id),
            _ => None,
        });
        graph.buffers[stored.unwrap()].layout = Layout::vector(4);
    };
    refused(&shrink, "stored as one of");
    let conv = |graph: &mut fused::FusedGraph, change: &dyn Fn(&mut fused::Conv)| {
        let Core::Conv(conv) = &mut graph.ops[1].core else { panic!("a convolution") };
        change(conv);
    };
    refused(&|graph| conv(graph, &|conv| conv.kernel = [99, 99]), "weights");
    refused(&|graph| conv(graph, &|conv| conv.dilation = [99, 99]), "window");
    refused(&|graph| conv(graph, &|conv| conv.stride = [0, 1]), "window");
    refused(&|graph| conv(graph, &|conv| conv.channels = 1), "weights");
    let huge = |graph: &mut fused::FusedGraph| {
        let layout = Layout::Map { height: 1 << 40, width: 1 << 40, channels: 1 };
        let name = "huge".into();
        graph.buffers.push(BufferSpec { name, element: f32::datum_type(), layout, offset: 0 });
    };
    refused(&huge, "too large");
}

#[test]
fn an_unknown_operator_is_refused_by_its_name() {
    let file = shipped();
    let model = typed(file.proto(), &[1, 224, 224, 3]).unwrap();
    let plan = model.into_runnable().unwrap();
    let (mut graph, _) = build::small();
    let op = &mut graph.ops[1];
    op.core = fused::Core::Tract(fused::TractOp {
        about: "Einsum".into(),
        plan,
        input_shapes: vec![],
        output_shapes: vec![],
    });
    let name = op.name.clone();
    let why =
        Program::new(graph, Abilities::default(), &Default::default()).map(|_| ()).unwrap_err();
    assert!(why.contains("`Einsum`") && why.contains(&name), "{why}");
}

/// How alike two sets of values are.
fn pearson(a: &[f32], b: &[f32]) -> f64 {
    let mean = |v: &[f32]| v.iter().map(|&v| f64::from(v)).sum::<f64>() / v.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a) - ma, f64::from(b) - mb);
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    ab / (aa * bb).sqrt()
}

/// Real tiles of the test sections.
fn tiles(side: usize) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/her2st-crops/images");
    ["C2.jpg", "C3.jpg"]
        .map(|name| {
            let picture = image::open(root.join(name)).unwrap().to_rgb8();
            let side = side as u32;
            image::imageops::crop_imm(&picture, 300, 260, side, side).to_image().into_raw()
        })
        .to_vec()
}

#[test]
fn every_shipped_model_agrees_with_the_processor_on_real_tiles() {
    if !adapter_or_skip() {
        return;
    }
    let mut seen = 0;
    for path in models() {
        let model = crate::model::Model::open(&path).unwrap();
        let precision = model.metadata().precision.clone();
        let oracle = if precision == "int8" { "cpu" } else { "tract" };
        let mut expected = crate::engine::open(oracle, &model).unwrap().session().unwrap();
        let mut found = crate::engine::open(super::NAME, &model).unwrap().session().unwrap();
        for tile in tiles(model.metadata().tile_px as usize) {
            let (found, expected) =
                (found.predict(&tile).unwrap(), expected.predict(&tile).unwrap());
            let worst = difference(&found, &expected);
            let alike = pearson(&found, &expected);
            eprintln!("{} ({precision}): {worst:.1e}, Pearson {alike:.6}", path.display());
            // All integers are equal (see [`integers`]); what is left are the sums of the head.
            let (bound, least) = match precision.as_str() {
                "float32" => (1e-4, 0.999_999),
                "float16" => (1e-2, 0.999),
                _ => (2e-6, 0.999_999),
            };
            assert!(worst < bound && alike > least, "{}: {worst:e} {alike}", path.display());
        }
        seen += 1;
    }
    assert!(seen > 0);
}
