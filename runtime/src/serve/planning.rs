//! From a slide's survey to scan plans.
//!
//! The grid, the tissue mask and the choice of tiles are `predict`'s. A board holds a limited plan,
//! so a large slide becomes several plans, each of some whole rows of the grid.

use diffbulk_link::heapless;
use diffbulk_link::limits::{GENES, PLAN_CELLS, PLAN_CHUNK, PLAN_TILES};
use diffbulk_link::message::{Cells, Grid as StageGrid, Objective, Order, Plan, PlanId, TileId};
use diffbulk_link::units::{Um, UmPerPx};

use crate::predict::pipeline::Job;
use crate::tiling::Grid;
use crate::tissue::TissueMask;
use crate::{Error, Result};

/// Rows of a slide's grid as one plan for the board.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// What the board gets.
    pub(super) plan: Plan,
    /// Its bit map.
    pub(super) map: Vec<u8>,
    /// Index in the slide's grid of the part's first cell.
    first: u64,
    /// Cells of the part.
    cells: u64,
}

impl Part {
    /// The tile's index in the whole grid; `None` for one that is not in the plan.
    pub(super) fn index(&self, tile: TileId) -> Option<u64> {
        let cell = usize::from(tile.0);
        let set = self.map.get(cell / 8).is_some_and(|byte| byte & 1 << (cell % 8) != 0);
        (set && (cell as u64) < self.cells).then(|| self.first + cell as u64)
    }

    /// Indices in the whole grid of the part's cells.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.cells
    }

    /// The bit map in pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Cells> + '_ {
        self.map.chunks(PLAN_CHUNK).enumerate().map(|(number, piece)| Cells {
            plan: self.plan.id,
            offset: (number * PLAN_CHUNK) as u16,
            // A piece has exactly the room it needs.
            map: heapless::Vec::from_slice(piece).unwrap_or_default(),
        })
    }
}

/// The tiles of `grid` with at least `least` tissue, in the grid's order.
pub(super) fn wanted(grid: &Grid, mask: &TissueMask, least: f64) -> Vec<Job> {
    grid.tiles()
        .filter_map(|tile| {
            let tissue = mask.fraction(tile.x, tile.y, tile.side);
            (tissue >= least).then_some(Job { tile, tissue: tissue as f32 })
        })
        .collect()
}

/// Plans that together take all of `jobs`, whole rows at a time.
///
/// # Errors
/// When one row alone is more than a board holds, or the slide is larger than a stage.
pub(super) fn parts(
    grid: &Grid,
    jobs: &[Job],
    um_per_px: f64,
    scale: UmPerPx,
    objective: &Objective,
) -> Result<Vec<Part>> {
    let columns = grid.columns();
    if columns as usize > PLAN_CELLS || columns > u64::from(u16::MAX) {
        return Err(Error::Request(format!(
            "a row of {columns} tiles is more than a board's plan holds; check the slide's um/px"
        )));
    }
    let most_rows = PLAN_CELLS as u64 / columns;
    let mut parts = Vec::new();
    let mut from = 0;
    while from < jobs.len() {
        let first_row = jobs[from].tile.index / columns;
        let within = |job: &Job| job.tile.index / columns < first_row + most_rows;
        let mut to = jobs[from..].iter().take_while(|job| within(job)).count() + from;
        if to - from > PLAN_TILES {
            // Back to the end of a whole row.
            let cut = jobs[from + PLAN_TILES].tile.index / columns;
            to = jobs[..to]
                .iter()
                .rposition(|job| job.tile.index / columns < cut)
                .map_or(0, |at| at + 1);
            if to <= from {
                return Err(Error::Request(format!(
                    "a row of the slide has more than {PLAN_TILES} tiles with tissue, more than a \
                     board's plan holds"
                )));
            }
        }
        parts.push(part(grid, &jobs[from..to], um_per_px, scale, objective)?);
        from = to;
    }
    Ok(parts)
}

fn part(
    grid: &Grid,
    jobs: &[Job],
    um_per_px: f64,
    scale: UmPerPx,
    objective: &Objective,
) -> Result<Part> {
    let columns = grid.columns();
    let row_of = |job: Option<&Job>| job.map_or(0, |job| job.tile.index / columns);
    let (first_row, last_row) = (row_of(jobs.first()), row_of(jobs.last()));
    let rows = last_row - first_row + 1;
    let first = first_row * columns;
    let cells = columns * rows;
    let um = |pixels: f64| {
        Um::new(pixels * um_per_px).ok_or_else(|| {
            Error::Request("the slide is larger than any stage; check its um/px".into())
        })
    };
    let half = grid.side() / 2.0;
    let mut map = vec![0u8; (cells as usize).div_ceil(8)];
    for job in jobs {
        let cell = (job.tile.index - first) as usize;
        map[cell / 8] |= 1 << (cell % 8);
    }
    let mut plan = Plan {
        id: PlanId(0),
        grid: StageGrid {
            columns: columns as u16,
            rows: rows as u16,
            x: um(half)?,
            y: um(first_row as f64 * grid.stride() + half)?,
            pitch: um(grid.stride())?,
        },
        tiles: jobs.len() as u16,
        order: Order::Serpentine,
        scale,
        z: Um(0),
        objective: objective.clone(),
    };
    plan.id = plan.identify(&map);
    Ok(Part { plan, map, first, cells })
}

/// Genes that the board gets, as columns of what is written, at most [`GENES`]: the named ones, or
/// else those that the model predicts best.
///
/// # Errors
/// When one is not written, or there are too many.
pub(super) fn panel(
    named: Option<&[String]>,
    written: &[String],
    pearson: &std::collections::BTreeMap<String, f64>,
) -> Result<Vec<usize>> {
    if let Some(named) = named {
        if named.len() > GENES {
            return Err(Error::Request(format!(
                "{} genes for the board are too many; it takes {GENES}",
                named.len()
            )));
        }
        return crate::predict::genes::columns(written, named);
    }
    let mut best: Vec<usize> = (0..written.len()).collect();
    let of = |column: &usize| pearson.get(&written[*column]).copied().unwrap_or(f64::MIN);
    best.sort_by(|a, b| of(b).total_cmp(&of(a)));
    best.truncate(GENES);
    Ok(best)
}

#[cfg(test)]
mod tests {
    use diffbulk_link::message::PlanReply;
    use proptest::prelude::*;

    use super::*;

    fn objective() -> Objective {
        Objective {
            weights: heapless::Vec::from_slice(&[1.0]).unwrap(),
            enter: 1.0,
            leave: 0.5,
            best: 4,
            tissue: Default::default(),
            rescan: None,
            refocus: None,
            stop: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_tile_is_in_exactly_one_plan_that_a_board_accepts(
            width in 1u32..120_000, height in 1u32..60_000, share in 1u64..20,
        ) {
            let grid = Grid::new(width, height, 309.7, 0.0).unwrap();
            let mask = TissueMask { width: 1, height: 1, downsample: 1e6, mask: vec![true] };
            let mut jobs = wanted(&grid, &mask, 0.25);
            prop_assert_eq!(jobs.len() as u64, grid.len());
            jobs.retain(|job| job.tile.index * 7919 % 20 < share);
            let scale = UmPerPx::new(0.69).unwrap();
            let parts = parts(&grid, &jobs, 0.499, scale, &objective()).unwrap();
            let mut found = vec![];
            for part in &parts {
                prop_assert_eq!(part.plan.check(&part.map), PlanReply::Accepted);
                let joined: Vec<u8> = part.pieces().flat_map(|cells| cells.map).collect();
                prop_assert_eq!(&joined, &part.map);
                let cells = part.plan.grid.cells().unwrap() as u16;
                for tile in (0..cells).map(TileId) {
                    if let Some(index) = part.index(tile) {
                        found.push(index);
                        let (x, y) = part.plan.grid.centre(tile).unwrap();
                        let (cx, cy) = grid.tile(index).unwrap().centre();
                        // The stage's own rounding of the pitch adds up over a row.
                        prop_assert!((x.get() - cx * 0.499).abs() < 0.3);
                        prop_assert!((y.get() - cy * 0.499).abs() < 0.3);
                    }
                }
                prop_assert_eq!(part.index(TileId(u16::MAX)), None);
            }
            let wanted: Vec<u64> = jobs.iter().map(|job| job.tile.index).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn the_board_gets_the_best_predicted_genes_unless_told() {
        let written: Vec<String> = (0..30).map(|gene| format!("G{gene}")).collect();
        let pearson = [("G7".to_owned(), 0.9), ("G3".to_owned(), 0.5)].into();
        let chosen = panel(None, &written, &pearson).unwrap();
        assert_eq!((chosen.len(), chosen[0], chosen[1]), (GENES, 7, 3));
        let named = ["G5".to_owned()];
        assert_eq!(panel(Some(&named), &written, &pearson).unwrap(), [5]);
        assert!(panel(Some(&written), &written, &pearson).is_err());
        assert!(panel(Some(&["X".to_owned()]), &written, &pearson).is_err());
    }
}
