//! A model through every precision and the benchmark, through the programs.

use std::path::Path;

use diffbulk_tests::{Run, data, program, python};

#[test]
fn every_precision_runs_here_and_in_onnxruntime() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let train = |words: &[&str]| Run::of(program("diffbulk-train").args(words)).ok();
    let source = data("her2st-crops");
    let source = source.to_str().unwrap();
    let shape =
        ["--mpp", "0.69", "--tile-px", "32", "--patient-from-prefix", "1", "--slides", "C2"];
    train(&[&["prepare", source, "--output", &at("data")], &shape[..]].concat());
    let random = ["export", "--random", "--preset", "tiny", "--genes", "4", "--name", "t"];
    train(&[&random[..], &["-o", &at("float.onnx")]].concat());

    let mut models = vec![at("float.onnx")];
    // The random model says nothing worth keeping, so what it may lose is not the point here.
    for (precision, form) in [
        ("int8", "qdq"),
        ("int8", "qlinear"),
        ("mixed", "qdq"),
        ("float16", "qdq"),
        ("w8", "qdq"),
        ("w4", "qdq"),
    ] {
        let name = if form == "qlinear" { form } else { precision };
        let output = at(&format!("{name}.onnx"));
        let mut words = vec!["quantize", &models[0], "--data"];
        let (data, calibration) =
            (at("data"), ["--calibration-tiles", "8", "--measured-tiles", "8"]);
        words.push(&data);
        words.extend(["--precision", precision, "--form", form, "-o", &output]);
        words.extend(calibration);
        // Mixed precision has to leave out what is noisy, the others may be as bad as they are.
        let least = if precision == "mixed" { "20" } else { "3" };
        words.extend(["--max-drop", "1", "--min-sqnr", least]);
        // The stem's channel of ones leaves the pixels few levels.
        words.extend(["--keep", "enc.16x16_conv"]);
        if precision == "w4" {
            // Four bits are too few for a network nobody trained.
            words.push("--force");
        }
        let told = train(&words);
        assert!(told.contains("dB"), "{told}");
        models.push(output);
    }
    // Already quantised, and worse than allowed: refused, and nothing is left.
    let refused = at("refused.onnx");
    let quantise = |model: &str, more: &[&str]| {
        let words =
            ["quantize", model, "--data", &at("data"), "--precision", "int8", "-o", &refused];
        Run::of(program("diffbulk-train").args([&words[..], more].concat()))
    };
    quantise(&models[1], &[]).fails_saying(&["int8.onnx", "already"]);
    quantise(&models[0], &["--min-sqnr", "190"]).fails_saying(&["190", "--force"]);
    assert!(!Path::new(&refused).exists());

    // The benchmark, with a file that is no model; run again, it has nothing left to do.
    std::fs::write(work.path().join("broken.onnx"), "not a model").unwrap();
    let broken = at("broken.onnx");
    let bench = || {
        let mut command = program("diffbulk");
        command.args(["bench", "quant"]).args(&models).arg(&broken);
        command.args(["--data", &at("data"), "--threads", "1", "--repetitions", "1"]);
        command.args(["--timed", "4", "--warm-up", "1", "--tiles", "6", "-o", &at("bench")]);
        Run::of(&mut command)
    };
    let first = bench();
    let table = first.ok();
    assert!(table.contains("broken.onnx") && table.contains("not an ONNX file"), "{table}");
    let results = |folder: &str| -> serde_json::Value {
        let text = std::fs::read(work.path().join(folder).join("quant.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    for row in results("bench")["rows"].as_array().unwrap() {
        assert_eq!(row["problem"].is_null(), row["model"] != "broken.onnx", "{row}");
    }
    let again = bench();
    again.ok();
    assert!(again.stderr().contains("kept from before"), "{}", again.stderr());
    assert!(!again.stderr().contains("tiles/s"), "{}", again.stderr());
    let page = std::fs::read_to_string(work.path().join("bench/quant.html")).unwrap();
    assert!(page.contains("Pareto") && page.contains("int8.onnx") && page.contains("dB"));

    let bench = work.path().join("bench");
    let arguments: Vec<&Path> =
        std::iter::once(bench.as_path()).chain(models.iter().map(Path::new)).collect();
    println!("{}", python("quantised_models.py", &arguments));

    // A model of somebody else: float pixels in, no metadata.
    python("any_model.py", &[Path::new(&at("any.onnx"))]);
    let (any, any_int8) = (at("any.onnx"), at("any-int8.onnx"));
    let words = ["quantize", &any, "--data", &at("data"), "--precision", "int8", "-o", &any_int8];
    train(&[&words[..], &["--calibration-tiles", "8", "--measured-tiles", "8"]].concat());
    let mut command = program("diffbulk");
    command.args(["bench", "quant", &any, &any_int8, "--data", &at("data"), "--threads", "1,2"]);
    command.args(["--repetitions", "2", "--timed", "2", "--tiles", "4", "-o", &at("any")]);
    Run::of(&mut command).ok();
    let results = results("any");
    let rows = results["rows"].as_array().unwrap();
    for row in rows {
        assert!(row["problem"].is_null() && row["p99_ms"].as_f64() > Some(0.0), "{row}");
        assert!(row["sqnr_db"].as_f64() > Some(20.0), "{row}");
        // What it predicts has no name, so nothing was measured of it.
        assert!(row["pearson"].is_null() && row["runs"] == 2, "{row}");
    }
    let engines = |model: &str| rows.iter().filter(|row| row["model"] == model).count();
    assert!(engines("any.onnx") >= 4 && engines("any.onnx") == engines("any-int8.onnx"));
    assert_eq!(results["outputs"].as_array().unwrap().len(), rows.len());
    let rules = results["rules"].to_string();
    assert!(rules.contains("any-int8.onnx was calibrated on 8 tiles of C2"), "{rules}");
    assert!(rules.contains("NOT HELD OUT: C2"), "{rules}");
}
