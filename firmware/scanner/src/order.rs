//! From tile to tile.

use diffbulk_link::message::{Grid, Order, TileId};

/// The tile at hand and the way its row is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub tile: TileId,
    /// Whether the row is gone from left to right.
    pub forward: bool,
}

/// The first tile of a bit map; `None` if there is none.
pub fn first(grid: &Grid, map: &[u8]) -> Option<Place> {
    row_end(grid, map, 0, true)
}

/// The tile after `at`. Rows without tiles do not count as rows, so a serpentine turns at every row it stops in.
/// Looks at each cell once at most.
pub fn next(grid: &Grid, map: &[u8], order: Order, at: Place) -> Option<Place> {
    let (column, row) = grid.place(at.tile)?;
    let set = |column: &u16| is_set(grid, map, *column, row);
    let in_row =
        if at.forward { (column + 1..grid.columns).find(set) } else { (0..column).rev().find(set) };
    match in_row {
        Some(column) => Some(Place { tile: grid.tile(column, row)?, forward: at.forward }),
        None => row_end(grid, map, row + 1, order == Order::Raster || !at.forward),
    }
}

/// Where the first row with tiles from `row` on begins.
fn row_end(grid: &Grid, map: &[u8], row: u16, forward: bool) -> Option<Place> {
    (row..grid.rows).find_map(|row| {
        let set = |column: &u16| is_set(grid, map, *column, row);
        let column =
            if forward { (0..grid.columns).find(set) } else { (0..grid.columns).rev().find(set) };
        Some(Place { tile: grid.tile(column?, row)?, forward })
    })
}

fn is_set(grid: &Grid, map: &[u8], column: u16, row: u16) -> bool {
    grid.tile(column, row).is_some_and(|TileId(cell)| {
        map.get(usize::from(cell / 8)).is_some_and(|byte| byte & 1 << (cell % 8) != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffbulk_link::units::Um;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn walk(grid: &Grid, map: &[u8], order: Order) -> Vec<u16> {
        let mut at = first(grid, map);
        core::iter::from_fn(|| {
            let now = at?;
            at = next(grid, map, order, now);
            Some(now.tile.0)
        })
        .collect()
    }

    fn grid(columns: u16, rows: u16) -> Grid {
        Grid { columns, rows, x: Um(0), y: Um(0), pitch: Um(1) }
    }

    #[test]
    fn serpentine_turns_at_rows_with_tiles() {
        // 3 x 4, second row empty: 0 1 2 / - - - / 6 7 8 / 9 - 11.
        let map = [0b1100_0111, 0b1011];
        assert_eq!(walk(&grid(3, 4), &map, Order::Serpentine), [0, 1, 2, 8, 7, 6, 9, 11]);
        assert_eq!(walk(&grid(3, 4), &map, Order::Raster), [0, 1, 2, 6, 7, 8, 9, 11]);
    }

    proptest! {
        #[test]
        fn every_tile_is_visited_once(
            columns in 1..40u16,
            rows in 1..40u16,
            map in proptest::collection::vec(any::<u8>(), 200),
            serpentine in any::<bool>(),
        ) {
            let grid = grid(columns, rows);
            let order = if serpentine { Order::Serpentine } else { Order::Raster };
            let mut seen = walk(&grid, &map, order);
            seen.sort_unstable();
            let expected: Vec<u16> =
                (0..columns * rows).filter(|cell| map[usize::from(cell / 8)] & 1 << (cell % 8) != 0).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
