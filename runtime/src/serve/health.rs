//! Whether the daemon can do its work now, for `/healthz`: readiness, not mere existence.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The hub looks at the time ten times a second; after this it counts as stuck.
const HUB_STUCK: Duration = Duration::from_secs(5);

/// Tiles wait and none is done: a tile takes tens of milliseconds, a large model's some seconds.
const QUEUE_STUCK: Duration = Duration::from_secs(30);

/// Tiles that the engine failed on one after another, after which it counts as broken.
const FAILURES: u64 = 3;

/// What the daemon's threads tell, and `/healthz` is answered from.
#[derive(Debug)]
pub(super) struct Health {
    started: Instant,
    /// Milliseconds since the start of the hub's last turn.
    turned: AtomicU64,
    /// Tiles handed to the workers and not come back.
    waiting: AtomicU64,
    /// When one came back, or the first of those waiting was handed over.
    moved: AtomicU64,
    failures: AtomicU64,
    words: Mutex<Words>,
}

#[derive(Debug, Default)]
struct Words {
    model: String,
    /// Why a newer model is not in use.
    reload: Option<String>,
    /// What the disk does not take.
    storage: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            started: Instant::now(),
            turned: zero(),
            waiting: zero(),
            moved: zero(),
            failures: zero(),
            words: Mutex::default(),
        }
    }
}

impl Health {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Words> {
        // What is in there is whole whatever happened to who wrote it.
        self.words.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The hub has looked at its inputs.
    pub(super) fn turn(&self) {
        self.turned.store(self.now(), Ordering::Relaxed);
    }

    /// A tile was handed to the workers.
    pub(super) fn handed(&self) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.moved.store(self.now(), Ordering::Relaxed);
        }
    }

    /// One came back; `failed` when the engine had no values for it.
    pub(super) fn back(&self, failed: bool) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.moved.store(self.now(), Ordering::Relaxed);
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// This model is in use, loaded and tried.
    pub(super) fn model(&self, name: String) {
        self.failures.store(0, Ordering::Relaxed);
        let mut words = self.words();
        (words.model, words.reload) = (name, None);
    }

    /// A newer model could not be used.
    pub(super) fn not_reloaded(&self, why: String) {
        self.words().reload = Some(why);
    }

    /// Results or files cannot be written; `None` once they can.
    pub(super) fn storage(&self, trouble: Option<String>) {
        self.words().storage = trouble;
    }

    /// Whether all is well, and one line a part.
    pub(super) fn report(&self) -> (bool, String) {
        self.report_at(self.now())
    }

    fn report_at(&self, now: u64) -> (bool, String) {
        let since =
            |at: &AtomicU64| Duration::from_millis(now.saturating_sub(at.load(Ordering::Relaxed)));
        let words = self.words();
        let waiting = self.waiting.load(Ordering::Relaxed);
        let failures = self.failures.load(Ordering::Relaxed);
        let (turned, moved) = (since(&self.turned), since(&self.moved));
        let lines = [
            (
                "model",
                !words.model.is_empty(),
                match &words.reload {
                    None => words.model.clone(),
                    Some(why) => format!("{}; a newer one is not used: {why}", words.model),
                },
            ),
            ("hub", turned < HUB_STUCK, format!("last turn {:.1} s ago", turned.as_secs_f64())),
            (
                "queue",
                waiting == 0 || moved < QUEUE_STUCK,
                match waiting {
                    0 => "empty".into(),
                    _ => format!("{waiting} tiles, last one done {:.1} s ago", moved.as_secs_f64()),
                },
            ),
            (
                "engine",
                failures < FAILURES,
                match failures {
                    0 => "predicts".into(),
                    _ => format!("failed on the last {failures} tiles"),
                },
            ),
            (
                "disk",
                words.storage.is_none(),
                match &words.storage {
                    None => "takes what is written".into(),
                    Some(why) => why.clone(),
                },
            ),
        ];
        let well = lines.iter().all(|(_, well, _)| *well);
        let mut text = String::from(if well { "ready\n" } else { "not ready\n" });
        for (part, well, words) in lines {
            text.push_str(&format!("{} {part}: {words}\n", if well { "ok" } else { "BAD" }));
        }
        (well, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_only_while_every_part_is() {
        let health = Health::default();
        assert!(!health.report_at(0).0, "no model yet");
        health.model("m 1".into());
        assert!(health.report_at(0).0);
        assert!(!health.report_at(6_000).0, "the hub hangs");
        health.handed();
        health.handed();
        health.back(false);
        health.turned.store(60_000, Ordering::Relaxed);
        let (ready, text) = health.report_at(60_000);
        assert!(!ready && text.contains("BAD queue: 1 tiles"), "{text}");
        health.back(true);
        assert!(health.report_at(60_000).0);
        for _ in 0..2 {
            health.handed();
            health.back(true);
        }
        assert!(health.report_at(60_000).1.contains("BAD engine: failed on the last 3 tiles"));
        health.handed();
        health.back(false);
        health.storage(Some("no space".into()));
        assert!(health.report_at(60_000).1.contains("BAD disk: no space"));
        health.storage(None);
        // The old model predicts on: that a newer one cannot be used is told and is no failure.
        health.not_reloaded("not signed".into());
        let (ready, text) = health.report_at(60_000);
        assert!(ready && text.contains("m 1; a newer one is not used: not signed"), "{text}");
    }
}
