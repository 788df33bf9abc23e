//! Encoders: the one this project writes itself against a second implementation, and those that
//! other exporters write.

use std::path::{Path, PathBuf};

use diffbulk_tests::{Run, data, program, python, repository};
use serde_json::Value;

fn train(arguments: &[&str]) -> String {
    Run::of(program("diffbulk-train").args(arguments)).ok()
}

/// Writes the ONNX file of `weights` and compares it with NumPy's computation of the same.
fn compare(weights: &Path, features: &str, px: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let onnx = folder.path().join("encoder.onnx");
    let (weights_name, onnx_name) = (weights.to_str().unwrap(), onnx.to_str().unwrap());
    train(&[
        "encoder",
        "--weights",
        weights_name,
        "--output",
        onnx_name,
        "--features",
        features,
        "--input-px",
        px,
    ]);
    let printed = python("efficientnet.py", &[Path::new("compare"), weights, &onnx]);
    println!("{printed}");
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn the_published_weights_give_what_a_second_implementation_gives() {
    let path = python("efficientnet.py", &[Path::new("published")]);
    let weights = PathBuf::from(path.trim());
    // The shipped model's features and, behind them, the network's usual last ones.
    let script = std::fs::read_to_string(repository().join("models/train-her2st-edge")).unwrap();
    let maps = "stem 0 2 4 7 10";
    assert!(script.contains(&format!("for map in {maps};")), "the features of the script changed");
    let own = |pool: &str| maps.split(' ').map(|map| format!("{pool}:{map},")).collect::<String>();
    let features = format!("{}{}mean:head", own("mean"), own("std"));
    let found = compare(&weights, &features, "224");
    assert_eq!(found["features"], 608 + 1280);
}

#[test]
fn weights_in_a_zip_container_and_odd_sizes_agree_too() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("random.pth");
    python("efficientnet.py", &[Path::new("write"), &weights]);
    let found = compare(&weights, "mean:stem,std:0,std:3,mean:10,mean:head", "75");
    assert_eq!(found["features"], 32 + 16 + 40 + 112 + 1280);

    // A file that ends early names itself.
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    let onnx = folder.path().join("encoder.onnx");
    Run::of(program("diffbulk-train").args([
        "encoder",
        "--weights",
        weights.to_str().unwrap(),
        "--output",
        onnx.to_str().unwrap(),
    ]))
    .fails_saying(&["random.pth"]);
    assert!(!onnx.exists());
}

#[test]
fn encoders_of_newer_operator_sets_go_all_the_way() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let (source, dataset) = (data("her2st-crops"), at("data"));
    train(&[
        "prepare",
        source.to_str().unwrap(),
        "--output",
        &dataset,
        "--mpp",
        "0.69",
        "--slides",
        "C2",
    ]);
    for opset in ["18", "20"] {
        let (encoder, head) = (at(&format!("encoder{opset}.onnx")), at(&format!("head{opset}")));
        let model = at(&format!("model{opset}.onnx"));
        python("modern_encoder.py", &[Path::new(opset), Path::new(&encoder)]);
        train(&[
            "finetune",
            "--data",
            &dataset,
            "--encoder",
            &encoder,
            "--no-diffusion",
            "--output",
            &head,
            "--genes",
            "12",
            "--members",
            "2",
            "--views",
            "2",
            "--epochs",
            "2",
        ]);
        train(&[
            "export",
            "--encoder",
            &encoder,
            "--head",
            &head,
            "--name",
            "modern",
            "--output",
            &model,
        ]);
        let check = ["check-export", &model, "--encoder", &encoder, "--head", &head];
        println!("{}", train(&[&check[..], &["--data", &dataset]].concat()));
        // The runtime's pixels through the runtime and through onnxruntime.
        let (image, out) = (data("her2st-crops/images/B4.jpg"), at(&format!("out{opset}")));
        let spots = work.path().join("spots.csv");
        std::fs::write(&spots, "spot,x,y\na,300,300\nb,420,380\n").unwrap();
        Run::of(program("diffbulk").args([
            "predict",
            image.to_str().unwrap(),
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
        let (out, model) = (Path::new(&out), Path::new(&model));
        python("read_outputs.py", &[out, Path::new("B4"), model, &image]);
    }
}
