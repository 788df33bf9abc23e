//! Progress for a person and metrics for a program.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::{Error, Result};

/// A progress bar and a file of JSON lines.
pub struct Log {
    file: Option<(PathBuf, File)>,
    bar: ProgressBar,
    shown: bool,
    prefix: String,
}

impl Log {
    /// Appends to `metrics`, or keeps nothing; shows a bar if `shown`.
    pub fn new(metrics: Option<&Path>, shown: bool, prefix: &str) -> Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.map(|f| (path.to_owned(), f)).map_err(Error::io(path))
        };
        Ok(Self {
            file: metrics.map(open).transpose()?,
            bar: ProgressBar::hidden(),
            shown,
            prefix: prefix.to_owned(),
        })
    }

    /// Starts a bar of `length` steps of which `done` are done.
    pub fn begin(&mut self, what: &str, length: usize, done: usize) {
        let target =
            if self.shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = "{prefix} {wide_bar} {pos}/{len} {msg} {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(length as u64), target).with_style(style);
        bar.set_prefix(format!("{}{what}", self.prefix));
        bar.set_position(done as u64);
        self.bar = bar;
    }

    /// One step without a line.
    pub fn tick(&mut self) {
        self.bar.inc(1);
    }

    /// One step with its line.
    pub fn epoch(&mut self, value: Value) -> Result<()> {
        if let Some(loss) = value.get("loss").and_then(Value::as_f64) {
            self.bar.set_message(format!("loss {loss:.4}"));
        }
        self.bar.inc(1);
        self.line(value)
    }

    /// One line.
    pub fn line(&mut self, value: Value) -> Result<()> {
        match &mut self.file {
            Some((path, file)) => writeln!(file, "{value}").map_err(Error::io(path)),
            None => Ok(()),
        }
    }

    /// Removes the bar.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}
