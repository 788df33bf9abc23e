//! A tile from exposure to decision.

use crate::limits::{BEST, GENES, PIXEL_CHUNK};
use crate::units::{F16, Fraction, Um, UmPerPx};
use heapless::Vec;
use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::plan::PlanId;

/// A tile: its cell in the plan's grid, `row * columns + column`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Schema,
    MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TileId(pub u16);

/// One exposure of a tile. The first of a tile is attempt 0; every rescan and refocus adds one.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Schema,
    MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Shot {
    /// Which tile.
    pub tile: TileId,
    /// Which exposure of it.
    pub attempt: u8,
}

/// The stage has settled and the light has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TileEvent {
    /// Which exposure.
    pub shot: Shot,
    /// The tile's centre on the stage.
    pub x: Um,
    /// The tile's centre on the stage.
    pub y: Um,
    /// Focus.
    pub z: Um,
    /// Scale at which the tile is to be taken.
    pub scale: UmPerPx,
    /// Milliseconds since the board started.
    pub time_ms: u64,
}

/// How a tile's pixels are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Encoding {
    /// 8-bit RGB, interleaved, rows from the top.
    Rgb8,
    /// One JPEG file.
    Jpeg,
}

/// A tile's pixels follow: `bytes` of them in [`Chunk`]s, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Pixels {
    /// Which exposure.
    pub shot: Shot,
    /// How they are coded.
    pub encoding: Encoding,
    /// Left edge on the slide. A picture larger than the tile is welcome: what resampling at the tile's edge needs.
    pub x: Um,
    /// Top edge on the slide.
    pub y: Um,
    /// Pixels across.
    pub width: u16,
    /// Pixels down.
    pub height: u16,
    /// Scale they were taken at.
    pub scale: UmPerPx,
    /// Bytes to come; at most [`limits::PIXELS`](crate::limits::PIXELS).
    pub bytes: u32,
}

/// Bytes of a tile's pixels, from `offset` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Chunk<const N: usize = PIXEL_CHUNK> {
    /// Which exposure.
    pub shot: Shot,
    /// Where the bytes belong.
    pub offset: u32,
    /// The bytes.
    pub data: Vec<u8, N>,
}

/// The attempt that marks, in [`Pixels`] and [`Chunk`], an answer to a [`Survey`] instead of an exposure.
pub const SURVEY: u8 = u8::MAX;

/// Ask for rows of a picture of the whole slide, from which the host finds tissue before there is a plan. The answer
/// is [`Pixels`] whose shot is `(part, `[`SURVEY`]`)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Survey {
    /// Which part, for the answer.
    pub part: TileId,
    /// Pixels of the slide's finest scale that one pixel of the picture averages, across and down.
    pub downsample: f64,
    /// First row.
    pub row: u16,
    /// Rows.
    pub rows: u16,
}

/// Why a shot has no pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Why {
    /// It lies outside the slide.
    Outside,
    /// The camera failed.
    Failed,
}

/// The camera has no pixels for a shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoPixels {
    /// Which exposure.
    pub shot: Shot,
    /// Why.
    pub why: Why,
}

/// Expression of the panel's genes, in the order of [`Hello::panel`](super::Hello::panel), in the model's own scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Expression {
    /// One binary16 a gene: 11 bits of mantissa.
    Half(Vec<F16, GENES>),
    /// `value = offset + scale * code`.
    Scaled {
        /// Step between codes.
        scale: f32,
        /// Value of code 0.
        offset: f32,
        /// One a gene.
        codes: Vec<i8, GENES>,
    },
}

/// A prediction holds NaN or an infinity, or a value past f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[error(
    "gene {gene} of the panel is not a finite number: the result is refused, predict the tile again"
)]
pub struct NotFinite {
    /// Index in the panel.
    pub gene: usize,
}

impl Expression {
    /// Binary16 of `values`; genes beyond [`GENES`] are not taken, see the return of `None`.
    pub fn half(values: &[f32]) -> Option<Self> {
        let mut halves = Vec::new();
        for &value in values {
            halves.push(F16::new(value)).ok()?;
        }
        Some(Self::Half(halves))
    }

    /// The values, if every one is finite.
    pub fn values(&self) -> Result<Vec<f32, GENES>, NotFinite> {
        let value = |gene: usize| match self {
            Self::Half(halves) => halves.get(gene).map(|half| half.finite()),
            Self::Scaled { scale, offset, codes } => codes.get(gene).map(|&code| {
                let value = offset + scale * f32::from(code);
                value.is_finite().then_some(value)
            }),
        };
        (0..GENES).map_while(|gene| value(gene).map(|v| v.ok_or(NotFinite { gene }))).collect()
    }

    /// Genes it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Half(halves) => halves.len(),
            Self::Scaled { codes, .. } => codes.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the host predicts for a shot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TileResult {
    /// Which exposure.
    pub shot: Shot,
    /// Expression of the panel.
    pub expression: Expression,
    /// How close the tile's colours are to those the model was trained on.
    pub confidence: Fraction,
    /// Share of the tile that is tissue.
    pub tissue: Fraction,
    /// Microseconds from the last pixel byte to this vector.
    pub latency_us: u32,
}

/// Why there is no prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reason {
    /// The host has more tiles waiting than it takes; ask again later.
    Overload,
    /// Too little tissue to predict.
    NoTissue,
    /// The camera gave no pixels in time.
    NoPixels,
    /// The pixels could not be read.
    BadPixels,
    /// The model failed.
    Failed,
}

/// There will be no prediction for a shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoResult {
    /// Which exposure.
    pub shot: Shot,
    /// Why.
    pub reason: Reason,
}

/// Why the board ends a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum StopReason {
    /// All tiles are decided.
    Complete,
    /// As many hits as the objective asked for.
    Enough,
    /// The host said so.
    Commanded,
}

/// What follows from a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Action {
    /// Take it and go on.
    Keep,
    /// Take it again at a finer scale.
    Rescan(UmPerPx),
    /// Take it again with the focus moved by this much.
    Refocus(Um),
    /// Go on without it.
    Skip,
    /// Take it and end the scan.
    Stop(StopReason),
}

/// The board's decision on a shot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Decision {
    /// Which exposure.
    pub shot: Shot,
    /// What follows.
    pub action: Action,
    /// The objective's score, where there was a result to score. Finite.
    pub score: Option<f32>,
    /// Whether the tile lies in a hot spot, hysteresis applied.
    pub hot: bool,
}

/// A tile among the best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Best {
    /// Which.
    pub tile: TileId,
    /// Its score.
    pub score: f32,
}

/// Running statistics of one gene over the kept tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GeneStat {
    /// Mean.
    pub mean: f32,
    /// Variance (of the sample; 0 below two tiles).
    pub variance: f32,
}

/// What a scan came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Summary {
    /// Which plan.
    pub plan: PlanId,
    /// Why it ended.
    pub reason: StopReason,
    /// Tiles with a result that counts.
    pub kept: u16,
    /// Tiles without.
    pub skipped: u16,
    /// Exposures at a finer scale.
    pub rescans: u16,
    /// Exposures with the focus moved.
    pub refocuses: u16,
    /// The best tiles, best first.
    pub best: Vec<Best, BEST>,
    /// One a gene of the panel.
    pub genes: Vec<GeneStat, GENES>,
}
