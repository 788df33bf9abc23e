//! What the end-to-end tests share: finding the programs, running them as a user would, and
//! asking Python's own readers about the files they left.

pub mod board;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").into()
}

/// A file under `tests/data`.
pub fn data(name: &str) -> PathBuf {
    repository().join("tests/data").join(name)
}

/// The shipped model.
pub fn shipped_model() -> PathBuf {
    repository().join("models/her2st-edge.onnx")
}

/// Path of a built program of the workspace (`diffbulk` or `diffbulk-train`), beside this test.
///
/// # Panics
/// When it has not been built: `cargo build --release --workspace` comes first.
pub fn program_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let directory = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --release --workspace`",
        path.display()
    );
    path
}

/// A command for a program of the workspace, run from the repository's root.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(program_path(name));
    command.current_dir(repository());
    command
}

/// The finished run of a command, for assertions with a readable failure.
pub struct Run {
    /// Exit status, standard output and standard error.
    pub output: Output,
    what: String,
}

impl Run {
    /// Runs `command` to its end.
    pub fn of(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
        Self { output, what }
    }

    /// Standard output as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Insists on success; returns standard output.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(
            self.output.status.success(),
            "{} failed with {}\n{}\n{}",
            self.what,
            self.output.status,
            self.stdout(),
            self.stderr()
        );
        self.stdout()
    }

    /// Insists on a clean failure (an exit code, no panic) whose message holds every one of
    /// `words`.
    #[track_caller]
    pub fn fails_saying(&self, words: &[&str]) {
        let message = self.stderr();
        assert!(
            self.output.status.code().is_some_and(|code| code != 0 && code != 101),
            "{} should fail cleanly, got {}\n{message}",
            self.what,
            self.output.status
        );
        assert!(!message.contains("panicked"), "{} panicked:\n{message}", self.what);
        for word in words {
            assert!(message.contains(word), "{}: no {word:?} in\n{message}", self.what);
        }
    }
}

/// Runs a script of `tests/python` with the interpreter that `tests/run` prepared
/// (`DIFFBULK_PYTHON`), and returns what it printed.
#[track_caller]
pub fn python(script: &str, arguments: &[&Path]) -> String {
    let interpreter = std::env::var_os("DIFFBULK_PYTHON").unwrap_or_else(|| {
        panic!("DIFFBULK_PYTHON is not set: run the tests through `tests/run`, which prepares it")
    });
    let script = repository().join("tests/python").join(script);
    Run::of(Command::new(interpreter).arg(script).args(arguments)).ok()
}

/// All files below `directory`, relative, sorted.
pub fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(current) = open.pop() {
        for entry in std::fs::read_dir(&current).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let relative = path.strip_prefix(directory).expect("below the directory");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
