//! Every constant of a machine.

use diffbulk_link::session::Timing;
use diffbulk_link::units::Um;
use thiserror::Error;

/// A step/direction axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisConfig {
    /// Travel of one step, in nanometres.
    pub nm_per_step: u32,
    /// From the low limit switch to the last position that may be gone to.
    pub travel: Um,
    /// Steps per second from standing still.
    pub start_speed: u32,
    /// Steps per second at most.
    pub top_speed: u32,
    /// Steps per second per second.
    pub acceleration: u32,
    /// Steps that move nothing after a reversal.
    pub backlash: u16,
    /// Steps per second while looking for the limit switch.
    pub home_speed: u32,
    /// Steps between the switch and where homing ends; more than the switch's own hysteresis.
    pub home_clear: u16,
}

/// Light and camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposureConfig {
    /// From the camera's trigger to the flash, in microseconds.
    pub lead_us: u32,
    /// Length of the flash, in microseconds.
    pub flash_us: u32,
    /// How long the camera may take to be ready, before and after, in milliseconds.
    pub ready_ms: u32,
}

/// A machine. Times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The long way, along a row.
    pub x: AxisConfig,
    /// From row to row.
    pub y: AxisConfig,
    /// Focus.
    pub z: AxisConfig,
    /// Light and camera.
    pub exposure: ExposureConfig,
    /// For the stage to stop shaking.
    pub settle_ms: u32,
    /// Longest homing of all axes.
    pub homing_ms: u32,
    /// Longest move from tile to tile.
    pub move_ms: u32,
    /// For a result, while the host is there.
    pub result_ms: u32,
    /// Before a shot the host had no time for is asked for again.
    pub overload_ms: u32,
    /// Times a shot is tried before the tile is skipped.
    pub tries: u8,
    /// Without the host, before a shot is given up until it is back.
    pub park_ms: u32,
    /// Between two telemetry messages.
    pub telemetry_ms: u32,
    /// After which the watchdog bites. Longer than settling, a flash and a step.
    pub watchdog_ms: u32,
    /// The session's times.
    pub link: Timing,
}

/// A constant that no machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ConfigError {
    /// Of an axis.
    #[error("axis {axis}: {what}; correct the machine's constants")]
    Axis {
        /// `x`, `y` or `z`.
        axis: char,
        /// Which rule is broken.
        what: &'static str,
    },
    /// Of a time.
    #[error("{0}; correct the machine's constants")]
    Time(&'static str),
}

impl AxisConfig {
    fn check(&self, axis: char) -> Result<(), ConfigError> {
        let bad = |what| Err(ConfigError::Axis { axis, what });
        // A million steps a second is one a microsecond, the clock's resolution.
        let fast = 1_000_000;
        if self.nm_per_step == 0
            || self.travel.0 <= 0
            || self.travel.0.unsigned_abs() < self.nm_per_step
        {
            bad("a step and the travel must be positive, and the travel longer than a step")
        } else if self.start_speed == 0
            || self.start_speed > self.top_speed
            || self.top_speed > fast
        {
            bad("speeds must satisfy 0 < start_speed <= top_speed <= 1,000,000 steps/s")
        } else if self.home_speed == 0 || self.home_speed > self.top_speed {
            bad("home_speed must be positive and not above top_speed")
        } else if self.acceleration == 0 {
            bad("acceleration must be positive")
        } else if self.home_clear == 0 {
            bad("home_clear must be positive, or homing ends on the switch")
        } else {
            Ok(())
        }
    }

    /// Steps over the whole travel.
    pub(crate) fn steps(&self) -> u32 {
        self.travel.0.unsigned_abs() / self.nm_per_step
    }
}

impl Config {
    /// Refuses constants that contradict each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.x.check('x')?;
        self.y.check('y')?;
        self.z.check('z')?;
        let slowest = [self.x, self.y, self.z]
            .iter()
            .map(|axis| 1000 / axis.start_speed.min(axis.home_speed))
            .max();
        let flash = (self.exposure.lead_us + self.exposure.flash_us) / 1000;
        if [self.homing_ms, self.move_ms, self.result_ms, self.exposure.ready_ms, self.park_ms]
            .contains(&0)
        {
            Err(ConfigError::Time("a time-out of 0 ms would always strike"))
        } else if self.tries == 0 {
            Err(ConfigError::Time("with 0 tries no tile would ever be taken"))
        } else if self.watchdog_ms
            <= self.settle_ms.max(flash + self.exposure.ready_ms).max(slowest.unwrap_or(0))
        {
            Err(ConfigError::Time(
                "the watchdog would bite while the stage settles, the light fires or a step is due",
            ))
        } else if self.link.lost_ms <= self.link.heartbeat_ms {
            Err(ConfigError::Time("the host would be lost between two of its heartbeats"))
        } else {
            Ok(())
        }
    }
}
