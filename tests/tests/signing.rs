//! `diffbulk model`: keys, signatures, and the store of a device, as an operator uses them. Where
//! `minisign` itself is installed it has to agree in both directions.

use std::path::Path;
use std::process::{Command, Stdio};

use diffbulk_tests::{Run, program, shipped_model};

fn model(directory: &Path, arguments: &[&str]) -> Run {
    Run::of(program("diffbulk").current_dir(directory).arg("model").args(arguments))
}

fn has_minisign() -> bool {
    let mut command = Command::new("minisign");
    let found = command.arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("minisign is not installed: only our own signatures are checked");
    }
    found
}

#[test]
fn a_signed_model_is_installed_and_an_altered_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::copy(shipped_model(), at.join("m.onnx")).unwrap();
    model(at, &["keygen", "lab"]).fails_saying(&["--password-file", "--no-password"]);
    model(at, &["keygen", "lab", "--no-password"]).ok();
    model(at, &["verify", "m.onnx", "--key", "lab.pub"]).fails_saying(&["not signed"]);
    model(at, &["sign", "m.onnx", "--key", "lab.key"]).ok();
    let text = model(at, &["verify", "m.onnx", "--key", "lab.pub"]).ok();
    assert!(text.contains("as when it was signed"), "{text}");
    let install = ["install", "m.onnx", "--store", "store", "--key", "lab.pub"];
    assert!(model(at, &install).ok().contains("is in use"));
    model(at, &install).ok();

    let mut bytes = std::fs::read(at.join("m.onnx")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(at.join("m.onnx"), bytes).unwrap();
    model(at, &["verify", "m.onnx", "--key", "lab.pub"]).fails_saying(&["m.onnx", "altered"]);
    model(at, &install).fails_saying(&["altered"]);
}

#[test]
fn minisign_agrees() {
    if !has_minisign() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::copy(shipped_model(), at.join("m.onnx")).unwrap();
    // It reads passwords from standard input where there is no terminal.
    let minisign = |arguments: &[&str]| {
        let input = at.join("passwords");
        std::fs::write(&input, "correct horse\ncorrect horse\n").unwrap();
        let input = std::fs::File::open(input).unwrap();
        Run::of(Command::new("minisign").current_dir(at).stdin(input).args(arguments)).ok()
    };
    model(at, &["keygen", "ours", "--no-password"]).ok();
    model(at, &["sign", "m.onnx", "--key", "ours.key"]).ok();
    minisign(&["-V", "-m", "m.onnx", "-p", "ours.pub"]);

    minisign(&["-G", "-p", "theirs.pub", "-s", "theirs.key"]);
    let comment = model(at, &["selftest", "m.onnx"]).ok();
    minisign(&["-S", "-m", "m.onnx", "-s", "theirs.key", "-t", comment.trim()]);
    let text = model(at, &["verify", "m.onnx", "--key", "theirs.pub"]).ok();
    assert!(text.contains("as when it was signed"), "{text}");
    // A key of theirs signs here too, one without a password as well.
    model(at, &["sign", "m.onnx", "--key", "theirs.key", "--password-file", "passwords"]).ok();
    minisign(&["-V", "-m", "m.onnx", "-p", "theirs.pub"]);
    minisign(&["-G", "-W", "-p", "open.pub", "-s", "open.key"]);
    model(at, &["sign", "m.onnx", "--key", "open.key"]).ok();
    minisign(&["-V", "-m", "m.onnx", "-p", "open.pub"]);
    model(at, &["verify", "m.onnx", "--key", "open.pub"]).ok();
}
