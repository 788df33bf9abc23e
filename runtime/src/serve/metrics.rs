//! What the daemon counts, for Prometheus and for the report at the end of a scan.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets of a [`Latencies`] per doubling: a quantile is right to 2.2 percent.
const PER_OCTAVE: usize = 32;

/// Doublings from one microsecond: up to 19 hours.
const OCTAVES: usize = 36;

/// Latencies counted in buckets that grow by the same factor: fixed memory, any number of them.
#[derive(Debug)]
pub struct Latencies {
    buckets: Vec<AtomicU64>,
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: (0..PER_OCTAVE * OCTAVES).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }
}

impl Latencies {
    /// Counts one.
    pub fn push(&self, latency: Duration) {
        let us = latency.as_micros().max(1) as f64;
        let bucket = ((us.log2() * PER_OCTAVE as f64) as usize).min(self.buckets.len() - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us as u64, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The latency that the share `quantile` (0 to 1) stays within, in seconds; `None` without
    /// any.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * quantile).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (bucket, counted) in self.buckets.iter().enumerate() {
            seen += counted.load(Ordering::Relaxed);
            if seen >= rank {
                // The bucket's geometric middle.
                return Some(((bucket as f64 + 0.5) / PER_OCTAVE as f64).exp2() / 1e6);
            }
        }
        None
    }
}

/// One number that only grows, or goes up and down.
pub type Number = AtomicU64;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    /// Links open now.
    pub sessions: Number,
    /// Links that were refused: too many, or no token.
    pub refused: Number,
    /// Links that ended because of what the other end did.
    pub dropped: Number,
    /// Panics caught, of sessions and of tiles.
    pub panics: Number,
    /// Frames thrown away (noise, damage).
    pub bad_frames: Number,
    /// Frames sent again.
    pub resent_frames: Number,
    /// Tiles predicted.
    pub tiles: Number,
    /// Tiles whose prediction failed.
    pub failed: Number,
    /// Tiles put off because the queue was full.
    pub shed: Number,
    /// Exposures taken or being predicted now.
    pub queue: Number,
    /// The most there ever were.
    pub queue_most: Number,
    /// Scans ended.
    pub scans: Number,
    /// Times that the files of a scan could not be written; each is tried again.
    pub unwritten: Number,
    /// Models put into use after the first one.
    pub reloads: Number,
    /// Models that were not, because something is wrong with them.
    pub reload_failures: Number,
    /// From the last pixel byte to the vector.
    pub latency: Latencies,
    /// When the last minute's tiles were predicted, as counts a second.
    recent: Recent,
}

impl Default for Metrics {
    fn default() -> Self {
        let zero = || Number::new(0);
        Self {
            started: Instant::now(),
            sessions: zero(),
            refused: zero(),
            dropped: zero(),
            panics: zero(),
            bad_frames: zero(),
            resent_frames: zero(),
            tiles: zero(),
            failed: zero(),
            shed: zero(),
            queue: zero(),
            queue_most: zero(),
            scans: zero(),
            unwritten: zero(),
            reloads: zero(),
            reload_failures: zero(),
            latency: Latencies::default(),
            recent: Recent::default(),
        }
    }
}

/// Adds one.
pub fn count(number: &Number) {
    number.fetch_add(1, Ordering::Relaxed);
}

/// One of a kind that is there as long as this is.
#[derive(Debug)]
pub struct Counted<'a> {
    number: &'a Number,
    /// How many there were before.
    pub others: u64,
}

impl<'a> Counted<'a> {
    /// Adds one to `number` until it is dropped.
    pub fn new(number: &'a Number) -> Self {
        Self { number, others: number.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.number.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// A tile was predicted.
    pub fn tile(&self, latency: Duration) {
        count(&self.tiles);
        self.latency.push(latency);
        self.recent.push(self.started.elapsed().as_secs());
    }

    /// Tiles under way now.
    pub fn set_queue(&self, tiles: usize) {
        self.queue.store(tiles as u64, Ordering::Relaxed);
        self.queue_most.fetch_max(tiles as u64, Ordering::Relaxed);
    }

    /// Everything in Prometheus' text format.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let get = |number: &Number| number.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            ("sessions", "gauge", "Links open now.", get(&self.sessions)),
            ("sessions_refused_total", "counter", "Links refused.", get(&self.refused)),
            ("sessions_dropped_total", "counter", "Links ended as faulty.", get(&self.dropped)),
            ("panics_total", "counter", "Panics caught.", get(&self.panics)),
            ("bad_frames_total", "counter", "Frames thrown away.", get(&self.bad_frames)),
            ("resent_frames_total", "counter", "Frames sent again.", get(&self.resent_frames)),
            ("tiles_total", "counter", "Tiles predicted.", get(&self.tiles)),
            ("tiles_failed_total", "counter", "Tiles that failed.", get(&self.failed)),
            ("tiles_shed_total", "counter", "Tiles put off, queue full.", get(&self.shed)),
            ("queue_tiles", "gauge", "Tiles under way now.", get(&self.queue)),
            ("queue_tiles_most", "gauge", "Most tiles ever under way.", get(&self.queue_most)),
            ("scans_total", "counter", "Scans ended.", get(&self.scans)),
            ("unwritten_total", "counter", "Scans not written yet.", get(&self.unwritten)),
            ("reloads_total", "counter", "Models replaced.", get(&self.reloads)),
            ("reload_failures_total", "counter", "Models refused.", get(&self.reload_failures)),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "# HELP diffbulk_{name} {help}\n# TYPE diffbulk_{name} {kind}\ndiffbulk_{name} {value}"
            );
        }
        let rate = self.recent.per_second(self.started.elapsed().as_secs());
        let _ = writeln!(
            text,
            "# HELP diffbulk_tiles_per_second Tiles predicted a second, last ten seconds.\n\
             # TYPE diffbulk_tiles_per_second gauge\ndiffbulk_tiles_per_second {rate}\n\
             # HELP diffbulk_latency_seconds Last pixel byte to vector.\n\
             # TYPE diffbulk_latency_seconds summary"
        );
        for quantile in [0.5, 0.9, 0.99] {
            if let Some(value) = self.latency.quantile(quantile) {
                let _ = writeln!(
                    text,
                    "diffbulk_latency_seconds{{quantile=\"{quantile}\"}} {value:.6}"
                );
            }
        }
        let sum = self.latency.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "diffbulk_latency_seconds_sum {sum:.6}\ndiffbulk_latency_seconds_count {}",
            self.latency.count()
        );
        text
    }
}

/// Counts of the last seconds.
#[derive(Debug, Default)]
struct Recent {
    /// Second and count, by second modulo the length.
    seconds: [(AtomicU64, AtomicU64); 16],
}

impl Recent {
    const SPAN: u64 = 10;

    fn push(&self, second: u64) {
        let (at, count) = &self.seconds[second as usize % self.seconds.len()];
        if at.swap(second, Ordering::Relaxed) != second {
            count.store(0, Ordering::Relaxed);
        }
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn per_second(&self, now: u64) -> f64 {
        let first = now.saturating_sub(Self::SPAN);
        let whole = (now - first).max(1);
        let counted: u64 = self
            .seconds
            .iter()
            .filter(|(at, _)| (first..now).contains(&at.load(Ordering::Relaxed)))
            .map(|(_, count)| count.load(Ordering::Relaxed))
            .sum();
        counted as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_few_percent() {
        let latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for ms in 1..=1000 {
            latencies.push(Duration::from_millis(ms));
        }
        for (quantile, wanted) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0), (0.0, 0.001)] {
            let value = latencies.quantile(quantile).unwrap();
            assert!((value / wanted - 1.0).abs() < 0.025, "{quantile}: {value}");
        }
        latencies.push(Duration::ZERO);
        latencies.push(Duration::from_secs(1 << 40));
        assert_eq!(latencies.count(), 1002);
    }

    #[test]
    fn prometheus_reads_it() {
        let metrics = Metrics::default();
        metrics.tile(Duration::from_millis(20));
        metrics.set_queue(3);
        metrics.set_queue(1);
        drop(Counted::new(&metrics.sessions));
        let text = metrics.prometheus();
        for line in [
            "diffbulk_tiles_total 1",
            "diffbulk_queue_tiles 1",
            "diffbulk_queue_tiles_most 3",
            "diffbulk_sessions 0",
            "diffbulk_latency_seconds_count 1",
            "# TYPE diffbulk_latency_seconds summary",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
        }
    }

    #[test]
    fn recent_tiles_are_forgotten() {
        let recent = Recent::default();
        for second in 0..100 {
            recent.push(second);
            recent.push(second);
        }
        assert_eq!(recent.per_second(100), 2.0);
        assert_eq!(recent.per_second(105), 1.0);
        assert_eq!(recent.per_second(200), 0.0);
    }
}
