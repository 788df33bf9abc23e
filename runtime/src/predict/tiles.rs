//! Which tiles are looked at: a grid over the slide, or the centres a user gives.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::model::hex;
use crate::output::Given;
use crate::slide::SlideInfo;
use crate::tiling::centres::Centres;
use crate::tiling::{Grid, Tile};
use crate::{Error, Result};

/// Where the tiles come from.
#[derive(Debug, Clone, PartialEq)]
pub enum TileSource {
    /// A grid over the whole slide, of which tiles with too little tissue are left out.
    Grid {
        /// Overlap of neighbours as a fraction of the tile's side, from 0 up to, not including, 1.
        overlap: f64,
    },
    /// The centres listed in a file (CSV, TSV or HEST patches), all of them, in its order.
    At(PathBuf),
}

/// The tiles of one slide.
pub(super) enum Tiles {
    /// Made as they are asked for.
    Grid(Grid),
    /// A user's list, with what else its file says of every tile.
    List(Vec<Tile>, Arc<Given>),
}

impl Tiles {
    /// Tiles of `side` level-0 px on a slide.
    pub(super) fn new(source: &TileSource, slide: &SlideInfo, side: f64) -> Result<Self> {
        match source {
            TileSource::Grid { overlap } => {
                let (width, height) =
                    slide.levels.first().map_or((1, 1), |level| (level.width, level.height));
                Ok(Self::Grid(Grid::new(width, height, side, *overlap)?))
            }
            TileSource::At(path) => {
                let centres = Centres::read(path)?;
                let tiles: Vec<Tile> = centres.tiles(side).collect();
                if tiles.is_empty() {
                    return Err(Error::Request(format!(
                        "{} lists no tile centres",
                        path.display()
                    )));
                }
                let rows = centres.centres.into_iter().map(|centre| centre.values).collect();
                Ok(Self::List(tiles, Arc::new(Given { columns: centres.columns, rows })))
            }
        }
    }

    /// How many there are, tissue or not.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Grid(grid) => grid.len(),
            Self::List(tiles, _) => tiles.len() as u64,
        }
    }

    /// All tiles in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Tile> + Clone + Send + '_ {
        (0..self.len()).filter_map(|index| match self {
            Self::Grid(grid) => grid.tile(index),
            Self::List(tiles, _) => tiles.get(usize::try_from(index).ok()?).cloned(),
        })
    }

    /// What a user's list says of its tiles beside their places; nothing on a grid.
    pub(super) fn given(&self) -> Arc<Given> {
        match self {
            Self::Grid(_) => Arc::default(),
            Self::List(_, given) => given.clone(),
        }
    }

    /// False for a user's list, which is predicted whole.
    pub(super) fn min_tissue_applies(&self) -> bool {
        matches!(self, Self::Grid(_))
    }

    /// In words that are equal only for equal tiles.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Grid(grid) => format!(
                "grid of {} x {}, side {} px, every {} px",
                grid.columns(),
                grid.rows(),
                grid.side(),
                grid.stride()
            ),
            Self::List(tiles, given) => {
                let mut digest = Sha256::new();
                for text in given.columns.iter().chain(given.rows.iter().flatten()) {
                    digest.update((text.len() as u64).to_le_bytes());
                    digest.update(text.as_bytes());
                }
                for tile in tiles {
                    digest.update(tile.x.to_le_bytes());
                    digest.update(tile.y.to_le_bytes());
                    digest.update(tile.side.to_le_bytes());
                    digest.update((tile.id.len() as u64).to_le_bytes());
                    digest.update(tile.id.as_bytes());
                }
                format!("{} given centres, {}", tiles.len(), hex(&digest.finalize()))
            }
        }
    }
}
