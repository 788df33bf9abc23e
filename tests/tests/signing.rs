//! `diffbulk model`: keys, signatures, and the store of a device, as an operator uses them. Where
//! `minisign` itself is installed it has to agree in both directions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

/// A running `diffbulk serve` and where it tells its health; killed when dropped.
struct Daemon(Child, String);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn start(at: &Path) -> Self {
        let mut child = program("diffbulk")
            .current_dir(at)
            .args(["serve", "--store", "store", "--key", "lab.pub", "--listen", "unix:camera"])
            .args(["--metrics", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("diffbulk starts");
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let address = said.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("no address in {said:?}")).to_owned();
        Self(child, address)
    }

    fn health(&self) -> String {
        let mut stream = TcpStream::connect(&self.1).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the health tells this.
    #[track_caller]
    fn tells(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.health().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {}", self.health());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The shipped model under another version of the same length.
fn release(at: &Path, version: &str) -> String {
    let mut bytes = std::fs::read(shipped_model()).unwrap();
    let key = b"diffbulk.version\x12\x07\"";
    let found = bytes.windows(key.len()).position(|window| window == key).expect("a version");
    let place = found + key.len()..found + key.len() + version.len();
    bytes[place].copy_from_slice(version.as_bytes());
    let name = format!("{version}.onnx");
    std::fs::write(at.join(&name), bytes).unwrap();
    model(at, &["sign", &name, "--key", "lab.key"]).ok();
    name
}

#[test]
fn a_daemon_takes_an_installed_model_when_told_and_keeps_the_old_one_where_it_is_altered() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    model(at, &["keygen", "lab", "--no-password"]).ok();
    let install = |name: &str| {
        model(at, &["install", name, "--store", "store", "--key", "lab.pub"]).ok();
    };
    install(&release(at, "1.0.1"));
    let mut daemon = Daemon::start(at);
    let text = daemon.health();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("1.0.1"), "{text}");
    install(&release(at, "1.0.2"));
    assert!(daemon.health().contains("1.0.1"), "taken without being told");
    daemon.signal("-HUP");
    daemon.tells("1.0.2");

    // Altered on the device's disk after it was installed: it is not taken, and that is told.
    install(&release(at, "1.0.3"));
    let store = std::fs::read_dir(at.join("store")).unwrap();
    let stored = store.map(|entry| entry.unwrap().path());
    let stored = stored.filter(|path| path.to_string_lossy().contains("1.0.3"));
    let stored: Vec<_> = stored.filter(|path| path.extension().unwrap() == "onnx").collect();
    let mut bytes = std::fs::read(&stored[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&stored[0], bytes).unwrap();
    daemon.signal("-HUP");
    daemon.tells("a newer one is not used");
    assert!(daemon.health().starts_with("HTTP/1.1 200"), "{}", daemon.health());
    assert!(daemon.health().contains("1.0.2"));
    daemon.signal("-TERM");
    assert!(daemon.0.wait().unwrap().success());
}
