//! Commands, faults, and how the board fares.

use crate::limits::TEXT;
use crate::units::Um;
use heapless::String;
use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::tile::Shot;

/// From the host to the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// Carry out the plan from where it stands; does nothing if it is under way or has ended.
    Start,
    /// Finish the tile under way, then wait.
    Pause,
    /// End the scan; a summary follows.
    Stop,
    /// After a fault whose cause is gone: home and go on.
    ClearFault,
}

/// The controller's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// Nothing to do.
    Idle,
    /// Looking for the limit switches.
    Homing,
    /// On the way to a tile.
    Moving,
    /// Waiting for the stage to stop shaking.
    Settling,
    /// Light and camera.
    Exposing,
    /// For the host's result.
    Waiting,
    /// What follows from it.
    Deciding,
    /// The plan is done.
    Done,
    /// Stopped until told otherwise.
    Fault,
}

/// How the board fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Telemetry {
    /// What it does.
    pub state: State,
    /// Milliseconds since it started.
    pub time_ms: u64,
    /// Stage.
    pub x: Um,
    /// Stage.
    pub y: Um,
    /// Focus.
    pub z: Um,
    /// Tiles decided.
    pub decided: u16,
    /// Frames thrown away.
    pub bad_frames: u32,
    /// Frames sent again.
    pub resent_frames: u32,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FaultCode {
    /// The emergency stop is pressed.
    EmergencyStop,
    /// A limit switch closed where there is none to be met.
    LimitSwitch,
    /// Homing did not find a switch.
    HomingTimeout,
    /// A move took longer than it can.
    MoveTimeout,
    /// Light or camera did not answer in time.
    ExposureTimeout,
    /// No result within the time allowed; the tile is tried again, then skipped.
    ResultTimeout,
    /// A result was refused: not finite, or another panel.
    BadResult,
    /// A pin or driver failed.
    Driver,
    /// Flash failed.
    Storage,
    /// The watchdog bit; the board has restarted.
    Watchdog,
    /// The other end failed.
    Peer,
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fault {
    /// What.
    pub code: FaultCode,
    /// At which exposure.
    pub shot: Option<Shot>,
    /// Whether work has stopped until [`Command::ClearFault`].
    pub stopped: bool,
    /// For a person.
    pub text: String<TEXT>,
}

/// How much a log line matters.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema, MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Level {
    /// For developers.
    Debug,
    /// For the record.
    Info,
    /// Look at it some time.
    Warn,
    /// Look at it now.
    Error,
}

/// A line for the host's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Log {
    /// How much it matters.
    pub level: Level,
    /// The line.
    pub text: String<TEXT>,
}
