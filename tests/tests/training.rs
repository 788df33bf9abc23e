//! From crops of real sections to predictions with a model trained here, through the programs:
//! prepare, encoder, pretrain, finetune, evaluate, export, predict. Everything is tiny; what
//! counts is that the parts fit and that Python's readers agree.

use std::path::Path;

use diffbulk_tests::{Run, data, files, program, python};
use serde_json::Value;

fn train(arguments: &[&str]) -> String {
    Run::of(program("diffbulk-train").args(arguments)).ok()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_whole_way_from_sections_to_predictions() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let source = data("her2st-crops");
    let source = source.to_str().unwrap();

    // Pairs.
    let printed = train(&[
        "prepare",
        source,
        "--output",
        &at("data"),
        "--mpp",
        "0.69",
        "--patient-from-prefix",
        "1",
        "--unlabelled",
        "--name",
        "HER2ST crops",
        "--license",
        "CC BY 4.0",
    ]);
    assert!(printed.contains("75"), "{printed}");
    python("read_dataset.py", &[Path::new(&at("data")), Path::new(source)]);

    // A tiny encoder and a tiny stage 1, stopped half-way and resumed.
    train(&["encoder", "--network", "tiny", "--output", &at("encoder.onnx")]);
    let pretrain = |images: &str, slides: &str, out: &str| {
        train(&[
            "pretrain",
            "--data",
            &at("data"),
            "--out",
            out,
            "--preset",
            "tiny",
            "--slides",
            slides,
            "--genes",
            "20",
            "--images",
            images,
            "--unlabelled",
            "--threads",
            "2",
        ]);
    };
    pretrain("32", "C2,C3", &at("unet"));
    pretrain("64", "C2,C3", &at("unet"));
    let metrics = std::fs::read_to_string(work.path().join("unet/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["images"], 64);
    assert!(last["loss"].as_f64().unwrap().is_finite());
    assert!(files(work.path()).iter().any(|f| f.starts_with("unet/") && f.ends_with(".png")));

    // Held-out figures: B4 with stage 1 on C2 and C3.
    train(&[
        "evaluate",
        "--data",
        &at("data"),
        "--encoder",
        &at("encoder.onnx"),
        "--output",
        &at("evaluation"),
        "--folds",
        "B4",
        "--unet",
        &format!("B4={}", at("unet")),
        "--genes",
        "30",
        "--joint-epochs",
        "1",
        "--epochs",
        "2",
        "--members",
        "2",
        "--views",
        "2",
    ]);
    let table = std::fs::read_to_string(work.path().join("evaluation/evaluation.md")).unwrap();
    for row in ["mean expression", "ridge", "kernel ridge", "fused"] {
        assert!(table.to_lowercase().contains(row), "no {row} in\n{table}");
    }
    json(&work.path().join("evaluation/evaluation.json"));
    assert!(work.path().join("evaluation/evaluation.png").exists());

    // A U-Net that has seen the test section is refused.
    Run::of(program("diffbulk-train").args([
        "evaluate",
        "--data",
        &at("data"),
        "--encoder",
        &at("encoder.onnx"),
        "--output",
        &at("leak"),
        "--folds",
        "C2",
        "--unet",
        &format!("C2={}", at("unet")),
    ]))
    .fails_saying(&["C2"]);

    // One ONNX file on which the trainer, tract and onnxruntime agree.
    let recipe = ["--joint-epochs", "1", "--epochs", "2", "--members", "2", "--views", "2"];
    let (unet, encoder, head) = (at("unet"), at("encoder.onnx"), at("head"));
    let parts = ["--unet", &*unet, "--encoder", &*encoder];
    let (dataset, model) = (at("data"), at("tiny.onnx"));
    let mut finetune = vec!["finetune", "--data", &*dataset, "--output", &*head, "--genes", "30"];
    finetune.extend(parts);
    finetune.extend(recipe);
    train(&finetune);
    let mut export = vec!["export", "--head", &*head, "--output", &*model, "--name", "tiny"];
    export.extend(parts);
    train(&export);
    let mut check = vec!["check-export", &*model, "--head", &*head, "--data", &*dataset];
    check.extend(parts);
    let printed = train(&check);
    println!("{printed}");

    // The runtime predicts at the spots; onnxruntime agrees on the same pixels.
    let slide = work.path().join("B4.png");
    python("to_png.py", &[&data("her2st-crops/images/B4.jpg"), &slide]);
    // On whole pixels, so that tiles are the image's own bytes.
    let table = std::fs::read_to_string(data("her2st-crops/spots/B4_selection.tsv")).unwrap();
    let mut centres = "spot,x,y\n".to_owned();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let round = |field: &str| field.parse::<f64>().unwrap().round();
        let (x, y) = (round(fields[4]), round(fields[5]));
        centres += &format!("{}x{},{x},{y}\n", fields[0], fields[1]);
    }
    let spots = work.path().join("spots.csv");
    std::fs::write(&spots, centres).unwrap();
    let out = at("out");
    Run::of(program("diffbulk").args([
        "predict",
        slide.to_str().unwrap(),
        "-o",
        &out,
        "--model",
        &model,
        "--mpp",
        "0.69",
        "--at",
        spots.to_str().unwrap(),
    ]))
    .ok();
    let found =
        python("read_outputs.py", &[Path::new(&out), Path::new("B4"), Path::new(&model), &slide]);
    assert!(found.contains("\"tiles\": 25"), "{found}");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert!(found["difference"].as_f64().unwrap() < 1e-4, "{found}");
}

#[test]
fn the_reference_tensors_are_reproduced() {
    for directory in ["edm2_small", "fusion_gated"] {
        let path = data(directory);
        let printed = train(&["verify", path.to_str().unwrap()]);
        println!("{printed}");
    }
}
