//! How fast a link may send.

use std::time::{Duration, Instant};

/// Bytes that may be read, refilled as time goes by.
pub(super) struct Allowance {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(per_second: u64) -> Self {
        let per_second = per_second.max(1) as f64;
        Self { per_second, left: per_second, at: Instant::now() }
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        let now = Instant::now();
        let refill = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + refill).min(self.per_second) - bytes as f64;
        self.at = now;
    }

    /// How long until something may be read again.
    pub(super) fn wait(&self) -> Duration {
        let passed = self.at.elapsed().as_secs_f64() * self.per_second;
        Duration::from_secs_f64((-(self.left + passed) / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_a_second_is_free_and_more_has_to_wait() {
        let mut allowance = Allowance::new(1_000_000);
        allowance.spend(900_000);
        assert_eq!(allowance.wait(), Duration::ZERO);
        allowance.spend(1_100_000);
        let wait = allowance.wait().as_secs_f64();
        assert!((0.5..=1.0).contains(&wait), "{wait}");
    }
}
