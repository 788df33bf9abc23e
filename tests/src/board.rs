//! The scanner's firmware under QEMU, on its real emulated UART.

use crate::repository;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The board's image, built if need be.
///
/// # Panics
/// When no toolchain can build it; the message is the build script's and says what to install.
pub fn image() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    let built = IMAGE.get_or_init(|| {
        let mut build = Command::new(repository().join("firmware/board/build"));
        // Those of the cargo that runs this test are for another toolchain.
        build.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTFLAGS").env_remove("CARGO");
        run_build(&mut build, "board").join("thumbv7em-none-eabihf/release/diffbulk-board")
    });
    built.clone()
}

/// The decoder of the board's log, built if need be.
fn decoder() -> PathBuf {
    static DECODER: OnceLock<PathBuf> = OnceLock::new();
    let built = DECODER.get_or_init(|| {
        let mut build = Command::new("cargo");
        build.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
        build.arg(repository().join("firmware/board/log/Cargo.toml"));
        run_build(&mut build, "board-log").join("release/diffbulk-board-log")
    });
    built.clone()
}

/// Runs a build into a directory `name` beside the workspace's own builds; that directory.
fn run_build(build: &mut Command, name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let target = test.ancestors().nth(3).expect("target/<profile>/deps/<test>").join(name);
    let output = build.env("CARGO_TARGET_DIR", &target).output();
    let output = output.unwrap_or_else(|error| panic!("{build:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{build:?} failed:\n{said}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    target
}

/// A board under QEMU. It calls the host again every second while the host is away; it ends when this is dropped.
pub struct Board {
    qemu: Child,
    bench: TcpStream,
    log: PathBuf,
    // Holds the log.
    _directory: tempfile::TempDir,
}

impl Board {
    /// Starts one that calls `host`.
    ///
    /// # Panics
    /// When the image cannot be built or QEMU is missing; the message says what to install.
    pub fn start(host: SocketAddr) -> Self {
        let image = image();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("defmt.bin");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let bench = listener.local_addr().expect("a bound listener has an address");
        let socket = |id: &str, to: SocketAddr| {
            format!("socket,id={id},host={},port={},nodelay=on,reconnect=1", to.ip(), to.port())
        };
        let qemu = Command::new("qemu-system-arm")
            .args(["-machine", "mps2-an386", "-display", "none", "-monitor", "none"])
            .args(["-chardev", &socket("link", host), "-serial", "chardev:link"])
            .args(["-chardev", &socket("bench", bench), "-serial", "chardev:bench"])
            .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
            .arg(&image)
            .stdin(Stdio::null())
            .stdout(File::create(&log).expect("a file for the board's log"))
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "qemu-system-arm: {error}; install it (Debian: apt-get install qemu-system-arm)"
                )
            });
        let board = Self { qemu, bench: accept(&listener), log, _directory: directory };
        board.bench.set_nodelay(true).expect("a socket without delay");
        board
    }

    /// Does at the bench what a person would: `s` presses the emergency stop, `r` releases it, `h` hangs the program.
    pub fn bench(&mut self, command: u8) {
        self.bench.write_all(&[command]).expect("the board's bench is open");
    }

    /// What it has logged so far, decoded: one line a message.
    ///
    /// # Panics
    /// When the decoder cannot be built, or finds something that is no log of this image.
    pub fn log(&self) -> String {
        let log = File::open(&self.log).expect("the board's log");
        let output = Command::new(decoder()).arg(image()).stdin(log).output().expect("it is built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "the log does not decode: {said}");
        String::from_utf8(output.stdout).expect("decoded text is text")
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // QEMU outlives whoever started it.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The next connection, within a minute.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a listener that does not block");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a stream that blocks");
                return stream;
            }
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("the board did not call within a minute: {error}"),
        }
    }
}
