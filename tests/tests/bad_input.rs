//! Whatever a user hands over by mistake gets an error that names the thing and what to do.

use std::path::Path;

use diffbulk_tests::{Run, data, files, program};

fn predict(slide: &Path, arguments: &[&str]) -> (Run, Vec<String>) {
    let output = tempfile::tempdir().unwrap();
    let directory = output.path().join("out");
    let run = Run::of(
        program("diffbulk").arg("predict").arg(slide).arg("-o").arg(&directory).args(arguments),
    );
    let left = if directory.exists() { files(&directory) } else { Vec::new() };
    (run, left)
}

fn nothing_whole(left: &[String]) {
    let whole = [".parquet", ".csv", ".h5ad", ".geojson", ".png", "run.json"];
    assert!(!left.iter().any(|file| whole.iter().any(|end| file.ends_with(end))), "{left:?}");
}

#[test]
fn a_truncated_slide() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.svs");
    let bytes = std::fs::read(data("cmu-1-small-region.svs")).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 5000, 9] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (run, left) = predict(&path, &[]);
        run.fails_saying(&["cut.svs"]);
        nothing_whole(&left);
    }
}

#[test]
fn a_damaged_place_in_the_middle_of_a_slide() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scratched.svs");
    let mut bytes = std::fs::read(data("cmu-1-small-region.svs")).unwrap();
    // The JPEG tiles of level 0 come first; one of them, with tissue, loses its Huffman codes.
    let starts: Vec<usize> =
        (0..1_200_000).filter(|&at| bytes[at..at + 3] == [0xFF, 0xD8, 0xFF]).collect();
    assert!(starts.len() > 100);
    let at = starts[64];
    bytes[at + 40..at + 400].fill(0xFF);
    std::fs::write(&path, &bytes).unwrap();
    let output = directory.path().join("out");
    let run = Run::of(
        program("diffbulk")
            .arg("predict")
            .arg(&path)
            .arg("-o")
            .arg(&output)
            .args(["--genes", "CD74"]),
    );
    let printed = run.ok();
    assert!(printed.contains("the slide is damaged there"), "{printed}");
    let report = std::fs::read(output.join("run.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["complete"], true);
    let tiles = &report["tiles"];
    let count = |name: &str| tiles[name].as_u64().unwrap();
    assert!((1..=9).contains(&count("damaged")), "{tiles}");
    assert!(count("predicted") > 20, "{tiles}");
    assert_eq!(count("damaged") + count("predicted") + count("skipped"), count("total"));
    let named = report["damaged"].as_array().unwrap();
    assert_eq!(named.len() as u64, count("damaged"));
    assert!(named[0]["problem"].as_str().unwrap().contains("of level 0"), "{named:?}");
    let csv = std::fs::read_to_string(output.join("scratched.csv")).unwrap();
    assert!(!csv.contains(&format!("{},", named[0]["id"].as_str().unwrap())), "{csv}");
}

#[test]
fn a_renamed_text_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.svs");
    std::fs::write(&path, "not a slide at all\n".repeat(50)).unwrap();
    let (run, left) = predict(&path, &[]);
    run.fails_saying(&["notes.svs", "TIFF"]);
    nothing_whole(&left);
}

#[test]
fn a_slide_that_does_not_exist() {
    let (run, _) = predict(Path::new("no-such-slide.svs"), &[]);
    run.fails_saying(&["no-such-slide.svs"]);
}

#[test]
fn an_image_without_its_scale() {
    let (run, left) = predict(&data("her2st-crops/images/C2.jpg"), &[]);
    run.fails_saying(&["C2.jpg", "--mpp"]);
    nothing_whole(&left);
}

#[test]
fn a_panel_gene_that_does_not_exist() {
    let (run, left) = predict(&data("cmu-1-small-region.svs"), &["--genes", "ERBB2,ERBB22"]);
    run.fails_saying(&["ERBB22", "ERBB2"]);
    nothing_whole(&left);
}

#[test]
fn models_that_are_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text.onnx");
    std::fs::write(&text, "hello").unwrap();
    let slide = data("cmu-1-small-region.svs");
    predict(&slide, &["--model", text.to_str().unwrap()]).0.fails_saying(&["text.onnx"]);
    predict(&slide, &["--model", "no-such.onnx"]).0.fails_saying(&["no-such.onnx"]);

    diffbulk_tests::python(
        "foreign_models.py",
        &[directory.path(), &diffbulk_tests::shipped_model()],
    );
    for (name, word) in [("no_metadata.onnx", "metadata"), ("other_input.onnx", "image")] {
        let path = directory.path().join(name);
        let (run, left) = predict(&slide, &["--model", path.to_str().unwrap()]);
        run.fails_saying(&[name, word]);
        nothing_whole(&left);
    }
}

#[test]
fn an_unwritable_output_directory() {
    // A file where the directory should be: refused for every user, root too.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("taken");
    std::fs::write(&file, "here first").unwrap();
    let slide = data("cmu-1-small-region.svs");
    let run = Run::of(program("diffbulk").arg("predict").arg(&slide).arg("-o").arg(&file));
    run.fails_saying(&["taken"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"here first");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    // The shell's file size limit makes every write beyond it fail, as a full disk does.
    let output = tempfile::tempdir().unwrap();
    let directory = output.path().join("out");
    let program = diffbulk_tests::program_path("diffbulk");
    let command = format!(
        "trap '' XFSZ; ulimit -f 16; exec {} predict {} -o {}",
        program.display(),
        data("cmu-1-small-region.svs").display(),
        directory.display()
    );
    let run = Run::of(
        std::process::Command::new("bash")
            .args(["-c", &command])
            .current_dir(diffbulk_tests::repository()),
    );
    run.fails_saying(&["out"]);
    nothing_whole(&files(&directory));
}
