//! Moving the stage: one axis as the controller sees it, and the step/direction driver of it.

mod axis;
mod ramp;

pub use axis::StepAxis;
pub use ramp::Ramp;

use diffbulk_link::units::Um;
use thiserror::Error;

/// What an axis did since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// It stands where it was told to go.
    Still,
    /// It is on the way and the next step is not due.
    Between,
    /// It made a step.
    Stepped,
}

/// Why an axis stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum AxisFault {
    /// A limit switch closed on the way.
    #[error("a limit switch closed during a move: look for an obstacle, then clear the fault")]
    Limit,
    /// Homing went the whole travel without meeting the switch, or the switch never opened.
    #[error("homing did not see the low limit switch open and close: check switch and cable")]
    NoSwitch,
    /// The position is unknown until homing.
    #[error("the axis was told to move before it was homed")]
    NotHomed,
    /// Beyond the travel.
    #[error("the position lies beyond the axis's travel")]
    Beyond,
    /// A pin failed.
    #[error("a pin of the axis could not be read or set")]
    Pin,
}

/// One axis of the stage. Nothing here blocks: [`poll`](Axis::poll) is called often and does at most one step.
pub trait Axis {
    /// Begins to look for the low limit switch, whose place is position 0.
    fn home(&mut self, now_us: u64);
    /// Begins to go to a position.
    fn go(&mut self, to: Um, now_us: u64) -> Result<(), AxisFault>;
    /// Goes on with what was begun.
    fn poll(&mut self, now_us: u64) -> Result<Motion, AxisFault>;
    /// Stops at once. The position is unknown afterwards if the axis was moving.
    fn halt(&mut self);
    /// Where it is; `None` before homing.
    fn position(&self) -> Option<Um>;
    /// Whether it could go there.
    fn reaches(&self, to: Um) -> bool;
}
