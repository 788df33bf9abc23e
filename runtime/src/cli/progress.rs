//! Progress on the terminal: a bar with tiles/s and time left, or a plain line now and then where
//! standard error is a file or a pipe.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::predict::Progress;

/// Time between plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// The progress display that suits standard error.
pub(super) fn for_terminal() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bar { bar: ProgressBar::new_spinner() })
    } else {
        Box::new(Plain { state: Mutex::new(None) })
    }
}

struct Bar {
    bar: ProgressBar,
}

impl Progress for Bar {
    fn stage(&self, what: &str) {
        // A wrong template only loses the decoration.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    fn tiles(&self, total: u64, done: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        // Tiles taken over from an earlier run say nothing about this one's speed.
        self.bar.reset_eta();
        self.bar.set_message("");
        let template = "{wide_bar} {pos}/{len} tiles  {per_sec:>12}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let style = style.with_key(
                "per_sec",
                |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                    // Writing to the bar's buffer cannot fail.
                    let _ = write!(out, "{:.1} tiles/s", state.per_sec());
                },
            );
            self.bar.set_style(style);
        }
    }

    fn predicted(&self, done: u64) {
        self.bar.set_position(done);
    }

    fn stopping(&self) {
        self.bar.set_message("stopping (Ctrl-C again to abort)");
    }

    fn done(&self) {
        self.bar.finish_and_clear();
    }
}

struct Plain {
    state: Mutex<Option<Counter>>,
}

struct Counter {
    total: u64,
    resumed: u64,
    start: Instant,
    last: Instant,
    stopping: bool,
}

impl Plain {
    fn with(&self, act: impl FnOnce(&mut Option<Counter>)) {
        act(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Plain {
    fn stage(&self, what: &str) {
        eprintln!("{what}");
    }

    fn tiles(&self, total: u64, done: u64) {
        if done > 0 {
            eprintln!("predicting {total} tiles, {done} of them done by an earlier run");
        } else {
            eprintln!("predicting {total} tiles");
        }
        let now = Instant::now();
        self.with(|state| {
            *state = Some(Counter { total, resumed: done, start: now, last: now, stopping: false });
        });
    }

    fn predicted(&self, done: u64) {
        self.with(|state| {
            let Some(counter) = state else { return };
            if counter.last.elapsed() < PLAIN_INTERVAL {
                return;
            }
            counter.last = Instant::now();
            let speed =
                (done - counter.resumed) as f64 / counter.start.elapsed().as_secs_f64().max(1e-9);
            let left = counter.total.saturating_sub(done) as f64 / speed.max(1e-9);
            eprintln!(
                "{done}/{} tiles, {speed:.1} tiles/s, {} left",
                counter.total,
                super::predict::duration(left)
            );
        });
    }

    fn stopping(&self) {
        self.with(|state| {
            if let Some(counter) = state.as_mut().filter(|counter| !counter.stopping) {
                counter.stopping = true;
                eprintln!("stopping; a second Ctrl-C aborts");
            }
        });
    }

    fn done(&self) {}
}
