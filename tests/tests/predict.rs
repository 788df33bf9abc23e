//! `diffbulk predict` and `diffbulk info` with the shipped model on real slides, as a user runs
//! them, and every output read back by Python's own readers.

use std::path::Path;

use diffbulk_tests::{Run, data, files, program, python, shipped_model};
use serde_json::Value;

const SLIDE: &str = "cmu-1-small-region.svs";
const STEM: &str = "cmu-1-small-region";

fn predict(slide: &Path, output: &Path, arguments: &[&str]) -> Run {
    Run::of(program("diffbulk").arg("predict").arg(slide).arg("-o").arg(output).args(arguments))
}

fn read(output: &Path, stem: &str, slide: Option<&Path>) -> Value {
    let model = shipped_model();
    let mut arguments = vec![output, Path::new(stem), &*model];
    arguments.extend(slide);
    serde_json::from_str(&python("read_outputs.py", &arguments)).expect("one JSON line")
}

#[test]
fn a_slide_becomes_six_outputs_that_python_reads() {
    let output = tempfile::tempdir().unwrap();
    predict(&data(SLIDE), output.path(), &[]).ok();
    let found = read(output.path(), STEM, None);
    assert_eq!(found["complete"], true);
    assert!(found["tiles"].as_u64().unwrap() > 20, "{found}");
    assert!(!found["pictures"].as_array().unwrap().is_empty());
    let made = files(output.path());
    for extension in ["parquet", "csv", "h5ad", "geojson"] {
        assert!(made.contains(&format!("{STEM}.{extension}")), "{made:?}");
    }
    assert!(!made.iter().any(|file| file.contains("partial")), "{made:?}");
}

#[test]
fn two_runs_and_any_number_of_threads_give_the_same_bytes() {
    let tables: Vec<Vec<u8>> = ["1", "2", "2"]
        .into_iter()
        .map(|threads| {
            let output = tempfile::tempdir().unwrap();
            predict(&data(SLIDE), output.path(), &["--threads", threads, "--format", "csv"]).ok();
            std::fs::read(output.path().join(format!("{STEM}.csv"))).unwrap()
        })
        .collect();
    assert!(tables[0] == tables[1] && tables[1] == tables[2]);
}

#[test]
fn predictions_at_given_centres_keep_order_and_columns_and_agree_with_onnxruntime() {
    let output = tempfile::tempdir().unwrap();
    let centres = output.path().join("spots.tsv");
    let table = "spot\tx\ty\tzone\tcluster\nlast\t900\t1000\ttumour\t007\n\
                 first\t300\t400\t\t1\nodd, id\t700\t512\t\"a\"\t2\n";
    std::fs::write(&centres, table).unwrap();
    // PNG, so that onnxruntime is asked about the very same pixels.
    let slide = output.path().join("C2.png");
    python("to_png.py", &[&data("her2st-crops/images/C2.jpg"), &slide]);
    let arguments = ["--mpp", "0.69", "--at", centres.to_str().unwrap(), "--genes", "ERBB2,CD74"];
    let out = output.path().join("out");
    predict(&slide, &out, &arguments).ok();
    let found = read(&out, "C2", Some(&slide));
    assert_eq!(found["tiles"], 3);
    assert_eq!(found["genes"], 2);
    assert!(found["difference"].as_f64().unwrap() < 1e-4, "{found}");
    assert_eq!(found["x"], serde_json::json!([788.0, 188.0, 588.0]));
    assert_eq!(found["ids"], serde_json::json!(["last", "first", "odd, id"]));
    let given = serde_json::json!({
        "spot": ["last", "first", "odd, id"],
        "zone": ["tumour", "", "a"],
        "cluster": ["007", "1", "2"],
    });
    assert_eq!(found["given"], given);
}

#[test]
fn info_tells_about_the_model_and_the_slide() {
    let text = Run::of(program("diffbulk").arg("info").arg(shipped_model())).ok();
    for word in ["her2st-edge", "0.69 um/px", "MMAC per tile", "ERBB2", "CC BY 4.0", "sha256"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let text = Run::of(program("diffbulk").arg("info").arg(data(SLIDE))).ok();
    for word in ["2220", "2967", "0.499", "Aperio", "JPEG"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let json = Run::of(program("diffbulk").args(["info", "--json"]).arg(data(SLIDE))).ok();
    serde_json::from_str::<Value>(&json).expect("valid JSON");
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_nothing_that_looks_whole_and_resumes_to_the_same_result() {
    let whole = tempfile::tempdir().unwrap();
    let arguments = ["--overlap", "0.6", "--threads", "1", "--format", "csv"];
    predict(&data(SLIDE), whole.path(), &arguments).ok();

    let killed = tempfile::tempdir().unwrap();
    let mut child = program("diffbulk")
        .arg("predict")
        .arg(data(SLIDE))
        .arg("-o")
        .arg(killed.path())
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Kill it once some rows are on disk.
    let journal_grown = || {
        files(killed.path()).iter().any(|file| {
            std::fs::metadata(killed.path().join(file)).is_ok_and(|found| found.len() > 20_000)
        })
    };
    for _ in 0..600 {
        if journal_grown() || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path().join(format!("{STEM}.csv")).exists(), "{:?}", files(killed.path()));
    assert!(!killed.path().join("run.json").exists());

    let message = predict(&data(SLIDE), killed.path(), &arguments);
    message.ok();
    let table = |directory: &Path| std::fs::read(directory.join(format!("{STEM}.csv"))).unwrap();
    assert!(table(whole.path()) == table(killed.path()));
    let run: Value =
        serde_json::from_slice(&std::fs::read(killed.path().join("run.json")).unwrap()).unwrap();
    assert!(run["tiles"]["resumed"].as_u64().is_some_and(|resumed| resumed > 0), "{run}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_a_valid_part_and_resumes() {
    let output = tempfile::tempdir().unwrap();
    let arguments = ["--overlap", "0.6", "--threads", "1"];
    let child = program("diffbulk")
        .arg("predict")
        .arg(data(SLIDE))
        .arg("-o")
        .arg(output.path())
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut child = child;
    for _ in 0..600 {
        let grown = files(output.path()).iter().any(|file| {
            file.contains("rows")
                && std::fs::metadata(output.path().join(file)).is_ok_and(|f| f.len() > 20_000)
        });
        if grown || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let part = read(output.path(), STEM, None);
    assert_eq!(part["complete"], false);

    predict(&data(SLIDE), output.path(), &arguments).ok();
    let whole = read(output.path(), STEM, None);
    assert_eq!(whole["complete"], true);
    assert!(whole["tiles"].as_u64() > part["tiles"].as_u64());
}
