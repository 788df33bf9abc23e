//! The whole scanner: the firmware's image on an emulated board, its UART as the link, `diffbulk
//! serve` with the shipped model, `diffbulk scan-sim` as the camera. The board's cable is cut and
//! plugged in again, the host is killed and started again, and the files are still those of
//! `diffbulk predict` on the stored slide.
#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diffbulk_tests::{Run, board, data, files, program, shipped_model};
use serde_json::Value;

const SLIDE: &str = "cmu-1-small-region.svs";
const STEM: &str = "cmu-1-small-region";

/// A process that does not outlive the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The emulated board, its UART listening at `port`.
fn emulate(image: &Path, port: u16) -> Held {
    let link = format!("socket,id=link,host=127.0.0.1,port={port},server=on,wait=off,nodelay=on");
    let child = Command::new("qemu-system-arm")
        .args(["-machine", "mps2-an386", "-display", "none", "-monitor", "none"])
        .args(["-chardev", &link, "-serial", "chardev:link", "-serial", "null"])
        .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Held(child.expect("qemu-system-arm starts"))
}

struct Host<'a> {
    directory: &'a Path,
    port: u16,
    socket: String,
}

impl Host<'_> {
    fn start(&self) -> Held {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.directory.join("serve.log"))
            .unwrap();
        let child = program("diffbulk")
            .arg("serve")
            .arg("--model")
            .arg(self.directory.join("m.onnx"))
            .arg("--key")
            .arg(self.directory.join("lab.pub"))
            .args(["--listen", &self.socket])
            .args(["--listen", &format!("tcp:127.0.0.1:{}", self.port)])
            .args(["--board-genes", "ERBB2,CD74,EPCAM", "--score", "ERBB2=1,EPCAM=0.5"])
            .args(["--hot", "0.5", "--rescans", "3", "--scans", "1", "--output"])
            .arg(self.directory.join("out"))
            .env("RUST_LOG", "debug")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Held(child.expect("diffbulk starts"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("serve.log")).unwrap_or_default()
    }

    /// Bytes of results on disk.
    fn kept(&self) -> u64 {
        let journal = self.directory.join(format!("out/{STEM}-diffbulk/.{STEM}.scan.partial"));
        std::fs::metadata(journal).map_or(0, |found| found.len())
    }
}

/// Waits for `what`, at most four minutes: the emulated board may share its cores.
fn wait_for(what: &str, log: impl Fn() -> String, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(240), "{what} takes too long\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_board_a_camera_and_a_host_scan_a_slide_through_a_cut_and_a_kill() {
    let image = board::image();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::copy(shipped_model(), at.join("m.onnx")).unwrap();
    let model = |arguments: &[&str]| {
        Run::of(program("diffbulk").current_dir(at).arg("model").args(arguments)).ok()
    };
    model(&["keygen", "lab", "--no-password"]);
    model(&["sign", "m.onnx", "--key", "lab.key"]);

    let uart = free_port();
    let _board = emulate(&image, uart);
    let socket = format!("unix:{}", at.join("camera").display());
    let host = Host { directory: at, port: free_port(), socket };
    let first = host.start();
    let camera = program("diffbulk")
        .arg("scan-sim")
        .arg(data(SLIDE))
        .args(["--host", &host.socket, "--rate", "10", "--json"])
        .args(["--board", &format!("tcp:127.0.0.1:{uart}")])
        .args(["--board-host", &format!("tcp:127.0.0.1:{}", host.port)])
        .args(["--cut-board-after", "8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("diffbulk starts");
    let mut camera = Held(camera);
    // Some 20 of 36 tiles, after the cut.
    wait_for("the first half", || host.log(), || host.kept() > 22_000);
    drop(first);
    let mut second = host.start();
    wait_for(
        "the second half",
        || host.log(),
        || camera.0.try_wait().unwrap().is_some() && second.0.try_wait().unwrap().is_some(),
    );
    let mut said = String::new();
    use std::io::Read;
    camera.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let said: Value =
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}\n{}", host.log()));
    assert!(said["rescans"].as_u64().unwrap() >= 1, "{said}\n{}", host.log());
    assert!(said["connections"].as_u64().unwrap() >= 2, "{said}");
    assert!(said["p99_ms"].as_f64().unwrap() > 0.0, "{said}");

    let scanned = at.join(format!("out/{STEM}-diffbulk"));
    let report: Value =
        serde_json::from_slice(&std::fs::read(scanned.join("run.json")).unwrap()).unwrap();
    assert_eq!(report["complete"], true, "{report}");
    assert!(report["tiles"]["resumed"].as_u64().unwrap() > 10, "{report}");
    assert!(report["scan"]["rescans"].as_u64().unwrap() >= 1, "{report}");
    assert!(files(&scanned).contains(&format!("{STEM}-rescans.csv")), "{:?}", files(&scanned));
    assert!(host.log().matches("role=Board").count() >= 3, "{}", host.log());

    let predicted = at.join("predicted");
    Run::of(program("diffbulk").arg("predict").arg(data(SLIDE)).arg("-o").arg(&predicted)).ok();
    let mut compared = 0;
    for name in files(&predicted).iter().filter(|name| *name != "run.json") {
        let read = |directory: &Path| std::fs::read(directory.join(name)).unwrap();
        assert!(read(&predicted) == read(&scanned), "{name} differs");
        compared += 1;
    }
    assert!(compared >= 5, "{compared} files compared");
}
