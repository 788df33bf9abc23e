//! `diffbulk scan-sim`: a stored slide played as the camera of a scanner would deliver it.
//!
//! The host asks, the camera answers: coarse pictures of the whole slide first, then every tile
//! the board stops over, from the level of the pyramid that is fine enough, at a set rate. The
//! board may be a real one or an emulated one at the host already, one whose cable runs through
//! here ([`relay`]), or none but a [`walker`] that makes loads.

mod camera;
mod endpoint;
mod relay;
pub(crate) mod walker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use diffbulk_link::message::Summary;
use serde::Serialize;

pub use self::walker::Walk;
use crate::model::Metadata;
use crate::serve::{Address, Token};
use crate::slide::Slide;
use crate::{Error, Result};

/// Where the board is.
#[derive(Debug, Clone)]
pub enum Board {
    /// At the host.
    Elsewhere,
    /// At this address; its cable runs through here, and is cut after so many results.
    Here(Address, Vec<u64>),
    /// Nowhere: tiles come as fast as asked for.
    Walker(Walk),
}

/// What is played, and to whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host's address for the camera.
    pub host: Address,
    /// The host's address for the board.
    pub host_board: Address,
    /// Shown to a host on another machine.
    pub token: Option<Token>,
    /// Where the board is.
    pub board: Board,
    /// Most pictures a second.
    pub rate: Option<f64>,
    optics: camera::Optics,
}

impl Settings {
    /// Pictures that cover the tile of a model, as JPEG or raw.
    pub fn new(host: Address, host_board: Address, model: &Metadata, jpeg: bool) -> Self {
        let optics = camera::Optics {
            field_um: f64::from(model.tile_px) * model.um_per_px,
            model_um_per_px: model.um_per_px,
            jpeg,
        };
        Self { host, host_board, token: None, board: Board::Elsewhere, rate: None, optics }
    }
}

/// What the camera saw of the scan.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Pictures taken.
    pub pictures: u64,
    /// Exposures with a result.
    pub results: u64,
    /// Tiles the host put off for overload (or while it was not ready).
    pub put_off: u64,
    /// Exposures without a result for another reason.
    pub failed: u64,
    /// Rescans the board ordered.
    pub rescans: u64,
    /// Exposures it ordered with the focus moved.
    pub refocuses: u64,
    /// Tiles it went on without.
    pub skipped: u64,
    /// Connections to the host.
    pub connections: u64,
    /// From the last pixel byte to the vector, milliseconds.
    pub p50_ms: Option<f64>,
    /// From the last pixel byte to the vector, milliseconds.
    pub p99_ms: Option<f64>,
    /// From the first connection to the end.
    pub seconds: f64,
    /// The board's own account; `None` when the scan did not end.
    #[serde(skip)]
    pub summary: Option<Summary>,
}

/// Plays `slide`, whose finest scale is `um_per_px`, until the scan has ended or `stop` is set.
///
/// # Errors
/// When the slide cannot be read, or the host is of another version.
pub fn run(
    slide: &dyn Slide,
    um_per_px: f64,
    settings: &Settings,
    stop: &AtomicBool,
) -> Result<Report> {
    let camera = camera::Camera::new(slide, um_per_px, settings)?;
    let (results, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let board = match &settings.board {
            Board::Elsewhere => None,
            Board::Here(address, cuts) => Some(scope.spawn(|| {
                relay::run(address, &settings.host_board, cuts, &results, &done);
                Ok(())
            })),
            Board::Walker(walk) => Some(scope.spawn(|| walker::run(settings, *walk, &done))),
        };
        let report = camera.run(settings, stop, &results);
        done.store(true, Ordering::Relaxed);
        match board.map(|board| board.join()) {
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => Err(Error::Request("the board's side failed inside".into())),
            Some(Ok(Ok(()))) | None => report,
        }
    })
}

/// A number for this start of an end.
fn epoch() -> Result<u32> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Request(format!("there is no randomness: {error}")))?;
    Ok(u32::from_le_bytes(bytes))
}
