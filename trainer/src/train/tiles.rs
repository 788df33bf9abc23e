//! Where training tiles come from and in which order.

use super::random::Stream;
use crate::Result;

/// One tile of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// A tile with expression.
    Labelled(usize),
    /// A tissue tile without.
    Unlabelled(usize),
}

/// Tiles of one dataset with one panel.
pub trait TileSource: Sync {
    /// Side of a tile in pixels.
    fn tile_px(&self) -> usize;
    /// Number of tiles with expression.
    fn labelled(&self) -> usize;
    /// Number of tiles without.
    fn unlabelled(&self) -> usize;
    /// RGB bytes, row-major.
    fn image(&self, tile: Tile) -> Result<Vec<u8>>;
    /// log1p expression in the order of [`TileSource::rows`]; none for unlabelled tiles.
    fn expression(&self, tile: Tile) -> Option<Vec<f32>>;
    /// Rows of the gene table, one for each value of an expression.
    fn gene_rows(&self) -> &[usize];
}

/// The endless order of tiles: every pool is walked in a fresh permutation each time through.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    labelled: usize,
    unlabelled: usize,
    /// Share of labelled tiles.
    share: f64,
}

impl Order {
    /// An order over a source; `share` is the part of labelled tiles where both kinds exist.
    pub fn new(source: &dyn TileSource, share: f64, seed: u64) -> Self {
        let (labelled, unlabelled) = (source.labelled(), source.unlabelled());
        let share = match (labelled, unlabelled) {
            (0, _) => 0.0,
            (_, 0) => 1.0,
            _ => share.clamp(0.0, 1.0),
        };
        Self { seed, labelled, unlabelled, share }
    }

    /// Tiles number `first .. first + count` of the order.
    pub fn tiles(&self, first: u64, count: usize) -> Vec<Tile> {
        let mut permutations = Permutations::default();
        (first..first + count as u64)
            .map(|i| {
                // Labelled tiles are spread evenly: tile i is one where the running total steps.
                let before = (i as f64 * self.share).floor() as u64;
                let after = ((i + 1) as f64 * self.share).floor() as u64;
                if after > before {
                    Tile::Labelled(permutations.at(self.seed, 0, self.labelled, before))
                } else {
                    Tile::Unlabelled(permutations.at(self.seed, 1, self.unlabelled, i - before))
                }
            })
            .collect()
    }
}

/// The permutation last used in each pool.
#[derive(Default)]
struct Permutations {
    held: [Option<(u64, Vec<usize>)>; 2],
}

impl Permutations {
    /// Element `i` of the endless walk over a pool of `size`.
    fn at(&mut self, seed: u64, pool: usize, size: usize, i: u64) -> usize {
        let size = size.max(1);
        let (epoch, place) = (i / size as u64, (i % size as u64) as usize);
        let held = &mut self.held[pool];
        if held.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut stream = Stream::keyed(seed, &[0x0e9c, pool as u64, epoch]);
            *held = Some((epoch, stream.permutation(size)));
        }
        held.as_ref().map_or(0, |(_, order)| order[place])
    }
}

/// Tiles made up in memory, for tests and timing.
#[cfg(test)]
pub mod made_up {
    use super::*;

    /// Coloured tiles whose expression is their colour.
    pub struct MadeUp {
        size: usize,
        images: Vec<Vec<u8>>,
        expression: Vec<Vec<f32>>,
        rows: Vec<usize>,
        unlabelled: usize,
    }

    impl MadeUp {
        /// `count` labelled tiles of `size` px and as many unlabelled ones, with `genes` genes.
        pub fn new(size: usize, count: usize, genes: usize) -> Self {
            let mut stream = Stream::new(99, 0);
            let mut images = Vec::new();
            let mut expression = Vec::new();
            for _ in 0..2 * count {
                let (tone, place) = (stream.uniform(), stream.below(size));
                let image = (0..size * size * 3).map(|i| {
                    let x = (i / 3) % size;
                    let edge = if x < place { 60.0 } else { 0.0 };
                    (150.0 * tone + edge + 20.0 * (i % 3) as f64) as u8
                });
                images.push(image.collect());
                expression.push((0..genes).map(|g| (tone * (g % 5) as f64) as f32).collect());
            }
            Self { size, images, expression, rows: (0..genes).collect(), unlabelled: count }
        }
    }

    impl TileSource for MadeUp {
        fn tile_px(&self) -> usize {
            self.size
        }
        fn labelled(&self) -> usize {
            self.images.len() - self.unlabelled
        }
        fn unlabelled(&self) -> usize {
            self.unlabelled
        }
        fn image(&self, tile: Tile) -> Result<Vec<u8>> {
            Ok(match tile {
                Tile::Labelled(i) => self.images[i].clone(),
                Tile::Unlabelled(i) => self.images[self.labelled() + i].clone(),
            })
        }
        fn expression(&self, tile: Tile) -> Option<Vec<f32>> {
            match tile {
                Tile::Labelled(i) => Some(self.expression[i].clone()),
                Tile::Unlabelled(_) => None,
            }
        }
        fn gene_rows(&self) -> &[usize] {
            &self.rows
        }
    }
}

#[cfg(test)]
mod tests {
    use super::made_up::MadeUp;
    use super::*;

    #[test]
    fn every_tile_is_seen_once_a_round() {
        let order = Order::new(&MadeUp::new(4, 10, 2), 0.5, 3);
        let mut seen = order.tiles(0, 20);
        seen.sort_by_key(|t| match t {
            Tile::Labelled(i) => *i,
            Tile::Unlabelled(i) => 100 + i,
        });
        let expected: Vec<Tile> =
            (0..10).map(Tile::Labelled).chain((0..10).map(Tile::Unlabelled)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_order_can_be_entered_anywhere() {
        let order = Order::new(&MadeUp::new(4, 7, 2), 0.3, 3);
        let all = order.tiles(0, 60);
        assert_eq!(order.tiles(23, 11), all[23..34]);
        let labelled = all.iter().filter(|t| matches!(t, Tile::Labelled(_))).count();
        assert_eq!(labelled, 18);
    }
}
