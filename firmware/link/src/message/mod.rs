//! What the two ends say to each other. One enum a direction; both ends compile this file.
//!
//! | direction | who | messages |
//! |---|---|---|
//! | [`ToHost`] | board | [`Tile`](ToHost::Tile), [`Decision`](ToHost::Decision), [`Plan`](ToHost::Plan), [`Summary`](ToHost::Summary), [`Telemetry`](ToHost::Telemetry), [`Fault`](ToHost::Fault), [`Log`](ToHost::Log) |
//! | [`ToHost`] | camera | [`Slide`](ToHost::Slide), [`Pixels`](ToHost::Pixels), [`Chunk`](ToHost::Chunk), [`NoPixels`](ToHost::NoPixels), [`Fault`](ToHost::Fault), [`Log`](ToHost::Log) |
//! | [`FromHost`] | to the board | [`Plan`](FromHost::Plan), [`Cells`](FromHost::Cells), [`Result`](FromHost::Result), [`NoResult`](FromHost::NoResult), [`Command`](FromHost::Command) |
//! | [`FromHost`] | to the camera | [`Survey`](FromHost::Survey), [`Capture`](FromHost::Capture), [`Result`](FromHost::Result), [`NoResult`](FromHost::NoResult), [`Decision`](FromHost::Decision), [`Summary`](FromHost::Summary) |
//!
//! # A scan
//!
//! 1. Board and camera each have a session with the host. The camera says what lies on the stage
//!    ([`Slide`](ToHost::Slide)); the board's [`Hello`] says whether it holds a plan already ([`Resume`]).
//! 2. The host sends a [`Plan`](FromHost::Plan), its bit map in [`Cells`](FromHost::Cells) from offset 0 up, and waits
//!    for [`Plan`](ToHost::Plan) with [`PlanReply::Accepted`], by when the plan is in the board's flash. Then
//!    [`Command::Start`]. A board that came back with the plan the host knows needs [`Command::Start`] alone, which
//!    does nothing if it was started already: it goes on where it was.
//! 3. For each shot the board sends [`Tile`](ToHost::Tile) once the stage has settled; the host tells the camera to
//!    [`Capture`](FromHost::Capture) it, gets [`Pixels`](ToHost::Pixels) and [`Chunk`](ToHost::Chunk)s, predicts,
//!    keeps the result, and only then sends it ([`Result`](FromHost::Result), or [`NoResult`](FromHost::NoResult)).
//! 4. The board answers with a [`Decision`](ToHost::Decision), which the host passes on to the camera. A rescan or
//!    refocus is the same tile under the next attempt: a new [`Tile`](ToHost::Tile).
//! 5. [`Summary`](ToHost::Summary) ends it.
//!
//! Whenever a session comes up during a scan, the board repeats the [`Tile`](ToHost::Tile) it waits on, and the last
//! [`Decision`](ToHost::Decision) before it. A host that has a result for that shot sends it again without predicting.
//! Since a result is kept before it is sent, a host's record is never behind the board's.
//!
//! A tile is asked for, answered and decided under the same [`Shot`]; saying any of these twice changes nothing, so
//! either end may repeat what it is not sure the other has kept.

mod control;
mod plan;
mod tile;

pub use control::{Command, Fault, FaultCode, Level, Log, State, Telemetry};
pub use plan::{
    Cells, Grid, Objective, Order, Plan, PlanId, PlanReply, PlanStatus, Refocus, Rescan, Stop,
};
pub use tile::{
    Action, Best, Chunk, Decision, Encoding, Expression, GeneStat, NoPixels, NoResult, Pixels,
    Reason, SURVEY, Shot, StopReason, Summary, Survey, TileEvent, TileId, TileResult, Why,
};

use crate::limits::{GENE_NAME, GENES, MODEL_NAME, PIXEL_CHUNK, VERSION};
use crate::units::{Um, UmPerPx};
use core::fmt::{self, Display, Write};
use heapless::{String, Vec};
use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Role {
    /// Moves the stage and decides.
    Board,
    /// Predicts.
    Host,
    /// Sends pixels to the host.
    Camera,
}

/// The model a host predicts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Model {
    /// Its name.
    pub name: String<MODEL_NAME>,
    /// SHA-256 of the ONNX file.
    pub sha256: [u8; 32],
}

/// Where a board goes on after the link or itself was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Resume {
    /// The plan it holds, complete and checked.
    pub plan: PlanId,
    /// Tiles decided so far.
    pub decided: u16,
    /// The shot it will take, or wants a result for, next; `None` once the plan is done.
    pub next: Option<Shot>,
}

/// The handshake's body. Protocol version and schema key stand before it in the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Hello {
    /// Who speaks.
    pub role: Role,
    /// Version of the firmware or program.
    pub version: String<VERSION>,
    /// Host: the model in use.
    pub model: Option<Model>,
    /// Host: the genes of every result, in order; a subset of the model's panel.
    pub panel: Vec<String<GENE_NAME>, GENES>,
    /// Board: where it goes on.
    pub resume: Option<Resume>,
}

/// As much of a text as there is room for, for versions, names, faults and log lines.
pub fn text<const N: usize>(what: &(impl Display + ?Sized)) -> String<N> {
    struct Cut<const N: usize>(String<N>);
    impl<const N: usize> Write for Cut<N> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            // An error ends the writing, which is how a text is cut.
            part.chars().try_for_each(|c| self.0.push(c).map_err(|_| fmt::Error))
        }
    }
    let mut cut = Cut(String::new());
    let _ = write!(cut, "{what}");
    cut.0
}

/// The slide under a camera, for the host to plan from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Slide {
    /// Its name.
    pub name: String<MODEL_NAME>,
    /// Extent in x.
    pub width: Um,
    /// Extent in y.
    pub height: Um,
    /// The finest scale the camera delivers.
    pub scale: UmPerPx,
}

/// From board or camera to the host. `PIXELS` is the room for pixel bytes: a board, which sends none, sets it to 0
/// ([`BoardToHost`]); on the wire both are the same.
// The large variant is what there is no allocator to box.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ToHost<const PIXELS: usize = PIXEL_CHUNK> {
    /// Board: the stage has settled over a tile and the light has fired.
    Tile(TileEvent),
    /// Board: what it makes of a result.
    Decision(Decision),
    /// Board: what became of a plan.
    Plan(PlanStatus),
    /// Board: the plan is done or was stopped.
    Summary(Summary),
    /// Board: how it fares, now and then.
    Telemetry(Telemetry),
    /// Something went wrong.
    Fault(Fault),
    /// A line for the host's log.
    Log(Log),
    /// Camera: what lies on the stage.
    Slide(Slide),
    /// Camera: a tile's pixels follow.
    Pixels(Pixels),
    /// Camera: a piece of them.
    Chunk(Chunk<PIXELS>),
    /// Camera: there are none.
    NoPixels(NoPixels),
}

/// What a board sends.
pub type BoardToHost = ToHost<0>;

/// From the host to board or camera.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FromHost {
    /// To the board: a plan; its bit map follows in [`Cells`].
    Plan(Plan),
    /// To the board: a piece of the plan's bit map.
    Cells(Cells),
    /// A tile's prediction.
    Result(TileResult),
    /// There will be no prediction for this shot.
    NoResult(NoResult),
    /// To the board: start, stop and the like.
    Command(Command),
    /// To the camera: the board stands over this tile, send its pixels.
    Capture(TileEvent),
    /// To the camera: the board's decision, passed on.
    Decision(Decision),
    /// To the camera: the board is done.
    Summary(Summary),
    /// To the camera: send a picture of the whole slide.
    Survey(Survey),
}
