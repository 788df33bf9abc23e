//! The `wgpu` engine through the program. Any adapter will do, one in software too; without one these
//! tests are left out, or fail where `DIFFBULK_REQUIRE_GPU` is set, as the project's check does.

use std::path::Path;

use diffbulk_tests::{Run, data, program};
use serde_json::Value;

const SLIDE: &str = "cmu-1-small-region.svs";

fn adapters() -> Vec<Value> {
    let json = Run::of(program("diffbulk").args(["info", "--adapters", "--json"])).ok();
    let told: Value = serde_json::from_str(&json).expect("valid JSON");
    told["adapters"].as_array().expect("a list").clone()
}

fn adapter_or_skip() -> bool {
    if !adapters().is_empty() {
        return true;
    }
    let required = std::env::var_os("DIFFBULK_REQUIRE_GPU").is_some();
    assert!(!required, "DIFFBULK_REQUIRE_GPU is set, and there is no graphics adapter");
    eprintln!(
        "LEFT OUT: there is no graphics adapter (Debian: apt-get install mesa-vulkan-drivers)"
    );
    false
}

/// Predicts two tiles; the report and all numbers of the table.
fn predict(directory: &Path, engine: &str, adapter: &str) -> (Value, Vec<f32>) {
    predict_with(directory, engine, adapter, &[])
}

/// The same with further arguments.
fn predict_with(directory: &Path, engine: &str, adapter: &str, more: &[&str]) -> (Value, Vec<f32>) {
    let centres = directory.join("spots.csv");
    std::fs::write(&centres, "x,y\n900,1000\n700,512\n").unwrap();
    let out = directory.join(format!("{engine}-{adapter}{}", more.concat().replace('/', "-")));
    Run::of(
        program("diffbulk")
            .env("DIFFBULK_GPU", adapter)
            .args(["predict", "--format", "csv", "--engine", engine, "--at"])
            .arg(&centres)
            .arg(data(SLIDE))
            .arg("-o")
            .arg(&out)
            .args(more),
    )
    .ok();
    let report = std::fs::read(out.join("run.json")).unwrap();
    let table = std::fs::read_to_string(out.join("cmu-1-small-region.csv")).unwrap();
    let cells = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    let numbers = cells.flat_map(|line| line.split(',').filter_map(|cell| cell.parse().ok()));
    (serde_json::from_slice(&report).unwrap(), numbers.collect())
}

#[test]
fn the_adapter_predicts_what_the_processor_predicts() {
    if !adapter_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (report, found) = predict(directory.path(), "wgpu", "");
    assert_eq!(report["engines"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["engines"][0]["engine"], "wgpu");
    assert_eq!(report["engines"][0]["tiles"], 2);
    let (_, expected) = predict(directory.path(), "cpu", "");
    assert_eq!(found.len(), expected.len());
    assert!(found.len() > 500);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn cooperative_matrices_are_used_where_the_adapter_has_them() {
    if !adapter_or_skip() {
        return;
    }
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let model = models.join("her2st-edge-f16.onnx");
    let model = ["--model", model.to_str().unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let (report, expected) = predict_with(directory.path(), "wgpu", "", &model);
    assert!(report["settings"]["cooperative_matrices"].is_null(), "{report}");
    let asked = [&model[..], &["--cooperative-matrices"]].concat();
    let (report, found) = predict_with(directory.path(), "wgpu", "", &asked);
    let half = |adapter: &Value| {
        adapter["half"] == true
            && adapter["cooperative_matrices"].as_array().unwrap().iter().any(|m| m["half"] == true)
    };
    let told = &report["settings"]["cooperative_matrices"];
    if !half(&adapters()[0]) {
        // It does without.
        assert!(told.is_null(), "{report}");
        return assert_eq!(found, expected);
    }
    assert_eq!(told, "used");
    assert_ne!(found, expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-2 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn tile_shapes_are_measured_once_and_change_no_number() {
    if !adapter_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let run = |more: &[&str]| {
        Run::of(
            program("diffbulk")
                .env("XDG_CACHE_HOME", &cache)
                .args(["bench", "engine", "--engine", "wgpu", "--only", "latency"])
                .args(["--seconds", "0.1", "--tiles"])
                .arg(directory.path().join("tile"))
                .arg("--values")
                .arg(directory.path().join("values"))
                .args(more)
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge-int8.onnx")),
        )
        .ok();
        std::fs::read(directory.path().join("values")).unwrap()
    };
    let tile: Vec<u8> = (0..224 * 224 * 3).map(|k| (k * 31 % 251) as u8).collect();
    std::fs::write(directory.path().join("tile"), tile).unwrap();
    let expected = run(&["--no-tune"]);
    assert!(!cache.join("diffbulk").exists());
    assert_eq!(run(&["--tune"]), expected);
    let kept = || -> Vec<_> {
        let files = std::fs::read_dir(cache.join("diffbulk")).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    };
    let first = kept();
    let told: Value = serde_json::from_str(&first[0]).unwrap();
    assert!(first.len() == 1 && told["choices"].as_object().unwrap().len() > 30, "{told}");
    assert_eq!(run(&["--tune"]), expected);
    assert_eq!(kept(), first, "measured again");
}

#[test]
fn auto_takes_software_only_where_it_is_named() {
    let hardware = adapters().iter().any(|adapter| adapter["kind"] != "software");
    let directory = tempfile::tempdir().unwrap();
    let (report, _) = predict(directory.path(), "auto", "");
    let expected = if hardware { "wgpu" } else { "cpu" };
    assert_eq!(report["engines"][0]["engine"], expected, "{report}");
    assert_eq!(report["settings"]["engine"], "auto");
    if adapter_or_skip() {
        // Who names it, wants it.
        let (report, _) = predict(directory.path(), "auto", "0");
        assert_eq!(report["engines"][0]["engine"], "wgpu", "{report}");
    }
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    Run::of(
        program("diffbulk")
            .env("DIFFBULK_GPU", "abacus")
            .args(["predict", "--engine", "wgpu"])
            .arg(data(SLIDE))
            .arg("-o")
            .arg(tempfile::tempdir().unwrap().path()),
    )
    .fails_saying(&["abacus", "--adapters"]);
}
