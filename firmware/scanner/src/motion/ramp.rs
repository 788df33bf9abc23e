//! Acceleration ramps.

use crate::config::AxisConfig;

/// Trapezoidal speed over a move, in integers: `v^2 = start^2 + 2 a s`, where `s` is the distance to the nearer end.
/// The interval depends on the place alone, so a ramp is symmetric, holds no state and cannot drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    start: u32,
    top: u32,
    acceleration: u32,
}

impl Ramp {
    /// Of an axis's moves.
    pub fn new(config: &AxisConfig) -> Self {
        Self { start: config.start_speed, top: config.top_speed, acceleration: config.acceleration }
    }

    /// Of an axis's homing, no faster than `top` steps per second.
    pub fn limited(config: &AxisConfig, top: u32) -> Self {
        Self { start: config.start_speed.min(top), top, acceleration: config.acceleration }
    }

    /// Microseconds from the step after `done` steps to the next, with `left` steps to go after it.
    pub fn interval_us(&self, done: u32, left: u32) -> u32 {
        let start = u64::from(self.start);
        let squared = start * start + 2 * u64::from(self.acceleration) * u64::from(done.min(left));
        // The root is below 2^32, and `top` bounds it further.
        let speed = (squared.isqrt() as u32).clamp(1, self.top);
        1_000_000 / speed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn speed_stays_between_start_and_top_and_the_ramp_is_symmetric(
            start in 1..5000u32,
            more in 0..100_000u32,
            acceleration in 1..2_000_000u32,
            total in 1..20_000u32,
            at in 0..20_000u32,
        ) {
            let ramp = Ramp { start, top: start + more, acceleration };
            let done = at % total;
            let interval = ramp.interval_us(done, total - 1 - done);
            prop_assert!(interval <= 1_000_000 / start);
            prop_assert!(interval >= 1_000_000 / (start + more));
            prop_assert_eq!(interval, ramp.interval_us(total - 1 - done, done));
        }

        #[test]
        fn speed_changes_no_faster_than_the_acceleration(
            acceleration in 1000..1_000_000u32,
            done in 0..5000u32,
        ) {
            let ramp = Ramp { start: 200, top: 1_000_000, acceleration };
            let speed = |done| (40_000.0 + 2.0 * f64::from(acceleration) * f64::from(done)).sqrt();
            let interval = f64::from(ramp.interval_us(done, u32::MAX));
            // One microsecond and one step per second of rounding.
            prop_assert!(interval >= 1e6 / speed(done) - 1.0 && interval <= 1e6 / (speed(done) - 1.0) + 1.0);
        }
    }

    #[test]
    fn no_numbers_overflow() {
        let ramp = Ramp { start: 1_000_000, top: 1_000_000, acceleration: u32::MAX };
        assert_eq!(ramp.interval_us(u32::MAX, u32::MAX), 1);
    }
}
