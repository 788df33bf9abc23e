//! What to scan, in which order, and what for.

use crate::frame::crc32;
use crate::limits::{GENES, PLAN_CELLS, PLAN_CHUNK, PLAN_TILES};
use crate::units::{Fraction, Um, UmPerPx};
use heapless::Vec;
use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::tile::TileId;

/// CRC-32 over the plan (with an id of 0) and its bit map: the plan's identity and its integrity check.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Schema, MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlanId(pub u32);

/// The order of the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Order {
    /// Rows from the top, every other one that has tiles backwards: short ways, and reversals only where rows end.
    Serpentine,
    /// Rows from the top, each from the left.
    Raster,
}

/// Cells of equal pitch. Cell `row * columns + column` has its centre at `origin + pitch * (column, row)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Grid {
    /// Cells across.
    pub columns: u16,
    /// Cells down.
    pub rows: u16,
    /// Centre of the first cell on the stage.
    pub x: Um,
    /// Centre of the first cell on the stage.
    pub y: Um,
    /// From cell to cell, both ways.
    pub pitch: Um,
}

impl Grid {
    /// Cells, scanned or not; `None` beyond [`PLAN_CELLS`] or if there are none.
    pub fn cells(&self) -> Option<usize> {
        let cells = usize::from(self.columns) * usize::from(self.rows);
        (1..=PLAN_CELLS).contains(&cells).then_some(cells)
    }

    /// Bytes of the bit map.
    pub fn bytes(&self) -> Option<usize> {
        self.cells().map(|cells| cells.div_ceil(8))
    }

    /// Column and row of a tile; `None` outside.
    pub fn place(&self, tile: TileId) -> Option<(u16, u16)> {
        let row = tile.0.checked_div(self.columns)?;
        (row < self.rows).then(|| (tile.0 % self.columns, row))
    }

    /// The tile at a column and row; `None` outside.
    pub fn tile(&self, column: u16, row: u16) -> Option<TileId> {
        if column >= self.columns || row >= self.rows {
            return None;
        }
        row.checked_mul(self.columns)?.checked_add(column).map(TileId)
    }

    /// A tile's centre on the stage; `None` outside the grid or beyond what [`Um`] holds.
    pub fn centre(&self, tile: TileId) -> Option<(Um, Um)> {
        let (column, row) = self.place(tile)?;
        let at = |origin: Um, index| origin.checked_add(self.pitch.checked_mul(index)?);
        Some((at(self.x, column)?, at(self.y, row)?))
    }
}

/// Take a hot tile again at a finer scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rescan {
    /// Scale of the second exposure.
    pub scale: UmPerPx,
    /// Rescans a scan may spend.
    pub most: u16,
}

/// Take a tile of low confidence again, with the focus moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Refocus {
    /// Confidence below which a tile is taken again.
    pub below: Fraction,
    /// First step; the next ones go the other way and further: +1, -1, +2, -2 steps from the plan's focus.
    pub step: Um,
    /// Exposures a tile may spend on it.
    pub most: u8,
}

/// End the scan early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stop {
    /// Hot tiles after which nothing more needs to be seen.
    pub hot: u16,
}

/// What is looked for: `score = sum(weight * expression)`, hot from `enter` up until it falls below `leave`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Objective {
    /// One a gene of the panel.
    pub weights: Vec<f32, GENES>,
    /// Score at which a hot spot begins.
    pub enter: f32,
    /// Score below which it ends; not above `enter`.
    pub leave: f32,
    /// Best tiles to remember; at most [`BEST`](crate::limits::BEST).
    pub best: u8,
    /// Tissue below which a tile is skipped.
    pub tissue: Fraction,
    /// Whether and how hot tiles are taken again.
    pub rescan: Option<Rescan>,
    /// Whether and how blurred tiles are taken again.
    pub refocus: Option<Refocus>,
    /// Whether to end early.
    pub stop: Option<Stop>,
}

/// A scan plan. Which cells are tiles is a bit map that follows in [`Cells`]: bit `i % 8` of byte `i / 8` for cell `i`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Plan {
    /// From [`Plan::identify`].
    pub id: PlanId,
    /// Where the cells are.
    pub grid: Grid,
    /// Bits set in the map; at most [`PLAN_TILES`].
    pub tiles: u16,
    /// In which order they are taken.
    pub order: Order,
    /// Scale of the first exposures.
    pub scale: UmPerPx,
    /// Focus to begin with.
    pub z: Um,
    /// What is looked for.
    pub objective: Objective,
}

impl Plan {
    /// The identity of this plan with this bit map.
    pub fn identify(&self, map: &[u8]) -> PlanId {
        let plain = Self { id: PlanId(0), ..self.clone() };
        let mut bytes = [0; Self::POSTCARD_MAX_SIZE];
        // The buffer holds the longest plan there is.
        let plain = postcard::to_slice(&plain, &mut bytes).map(|bytes| &*bytes).unwrap_or_default();
        PlanId(crc32(&[plain, map]))
    }

    /// Whether a board can carry it out with this bit map: the first thing that is wrong with it.
    pub fn check(&self, map: &[u8]) -> PlanReply {
        let o = &self.objective;
        let finite = o.weights.iter().chain([&o.enter, &o.leave]).all(|x| x.is_finite());
        let spare = self.grid.cells().map_or(0, |cells| map.len() * 8 - cells.min(map.len() * 8));
        let tail = map.last().is_some_and(|&last| spare > 0 && last.leading_zeros() < spare as u32);
        if self.grid.bytes() != Some(map.len()) || tail {
            PlanReply::BadGrid
        } else if usize::from(self.tiles) > PLAN_TILES
            || self.tiles == 0
            || map.iter().map(|byte| byte.count_ones()).sum::<u32>() != u32::from(self.tiles)
        {
            PlanReply::BadTiles
        } else if !finite || o.leave > o.enter || usize::from(o.best) > crate::limits::BEST {
            PlanReply::BadObjective
        } else if self.identify(map) != self.id {
            PlanReply::BadId
        } else {
            PlanReply::Accepted
        }
    }
}

/// A piece of a plan's bit map, in order from offset 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cells {
    /// Whose.
    pub plan: PlanId,
    /// Byte where the piece begins.
    pub offset: u16,
    /// The bytes.
    pub map: Vec<u8, PLAN_CHUNK>,
}

/// What a board says to a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PlanReply {
    /// It is kept in flash and can be started.
    Accepted,
    /// Grid or length of the bit map are not ones this board can have.
    BadGrid,
    /// Too many tiles, none, or not as many as bits.
    BadTiles,
    /// Not finite, `leave` above `enter`, or more best tiles than there is room for.
    BadObjective,
    /// Id and content differ: it was damaged or is another's.
    BadId,
    /// A piece of the bit map is missing or belongs to another plan; send all of it again.
    OutOfOrder,
    /// Tiles lie outside the stage's limits.
    Unreachable,
    /// A scan is under way, or a fault stands: stop it, or clear it, and send the plan again.
    Busy,
    /// It could not be written to flash.
    NotKept,
}

/// What became of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PlanStatus {
    /// Which.
    pub plan: PlanId,
    /// What.
    pub reply: PlanReply,
}
