//! What bounds every message: both ends reserve exactly this much, and the [schema key](crate::schema::KEY) covers it.

/// Panel genes a result can carry.
pub const GENES: usize = 16;
/// Bytes of a gene's name (UTF-8).
pub const GENE_NAME: usize = 16;
/// Bytes of a model's name.
pub const MODEL_NAME: usize = 48;
/// Bytes of a program's or firmware's version.
pub const VERSION: usize = 32;
/// Bytes of a log line or of the text of a fault.
pub const TEXT: usize = 96;
/// Tiles the board remembers as the best.
pub const BEST: usize = 8;
/// Tiles a plan may scan.
pub const PLAN_TILES: usize = 4096;
/// Cells of a plan's grid, scanned or not.
pub const PLAN_CELLS: usize = 32_768;
/// Bytes of the plan's bit map in one message.
pub const PLAN_CHUNK: usize = 128;
/// Bytes of a tile's pixels in one message.
pub const PIXEL_CHUNK: usize = 1024;
/// Encoded bytes of one tile's pixels: 1024 x 1024 RGB.
pub const PIXELS: u32 = 3 << 20;

/// All of them, in the order the schema key folds them in.
pub(crate) const ALL: [usize; 11] = [
    GENES,
    GENE_NAME,
    MODEL_NAME,
    VERSION,
    TEXT,
    BEST,
    PLAN_TILES,
    PLAN_CELLS,
    PLAN_CHUNK,
    PIXEL_CHUNK,
    PIXELS as usize,
];
