//! The engine on a predictor of another shape than the shipped one: a preset with random weights.

use std::path::Path;

use diffbulk_tests::{Run, program};

/// Predictions that `bench engine` writes for one tile.
fn values(model: &Path, engine: &str, threads: &str, to: &Path) -> Vec<f32> {
    let (name, out) = (model.to_str().unwrap(), to.to_str().unwrap());
    let arguments = [
        "bench",
        "engine",
        name,
        "--engine",
        engine,
        "--threads",
        threads,
        "--only",
        "latency",
        "--seconds",
        "0.01",
        "--values",
        out,
    ];
    Run::of(program("diffbulk").args(arguments)).ok();
    let bytes = std::fs::read(to).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn a_large_preset_gives_tracts_numbers_and_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("random.onnx");
    let arguments = [
        "export",
        "--random",
        "--preset",
        "edge-6g",
        "--name",
        "random",
        "--output",
        model.to_str().unwrap(),
    ];
    Run::of(program("diffbulk-train").args(arguments)).ok();
    let out = folder.path().join("values");
    let expected = values(&model, "tract", "1", &out);
    let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let one = values(&model, "cpu", "1", &out);
    let worst = one.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert_eq!(one.len(), expected.len());
    assert!(largest > 0.0 && worst < 1e-4 * largest, "{worst} of {largest}");
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for threads in ["2", "3"] {
        let more = values(&model, "cpu", threads, &out);
        assert_eq!(bits(&more), bits(&one), "{threads} threads");
    }
    let list = ["bench", "engine", model.to_str().unwrap(), "--engine", "cpu", "--list"];
    let list = Run::of(program("diffbulk").args(list)).ok();
    assert!(list.contains("| conv 3x3") && list.contains(" 0 left to tract"), "{list}");
}
