//! What a scan's journal knows, in memory that is taken once, when the plan is known: a daemon
//! that predicts for hours needs no more at the end of a scan than at its beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{ShotKey, Stored};

/// No entry: no frame begins at the end of the address range.
const NONE: Stored = Stored { offset: u64::MAX, scale_pm: 0, confidence: 0.0 };

/// Results and decisions by tile and attempt.
///
/// First exposures, of which every tile has one, lie in arrays as long as the plan; what is taken
/// again is bounded by the plan's own limits and lies in maps.
#[derive(Debug)]
pub(super) struct Index {
    /// Indices in the slide's grid of the plan's tiles, ascending.
    tiles: Vec<u64>,
    first: Vec<Stored>,
    again: BTreeMap<ShotKey, Stored>,
    /// Whether the board decided on the first exposure, and on any.
    decided: Vec<[bool; 2]>,
    decided_again: BTreeSet<ShotKey>,
    len: u64,
}

impl Index {
    /// Of a plan of `tiles` (indices in the slide's grid, ascending), with nothing known.
    pub(super) fn new(tiles: Vec<u64>) -> Self {
        let (first, decided) = (vec![NONE; tiles.len()], vec![[false; 2]; tiles.len()]);
        Self {
            tiles,
            first,
            again: BTreeMap::new(),
            decided,
            decided_again: BTreeSet::new(),
            len: 0,
        }
    }

    /// With nothing known any more.
    pub(super) fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.tiles));
    }

    fn place(&self, tile: u64) -> Option<usize> {
        self.tiles.binary_search(&tile).ok()
    }

    /// The entry of an exposure.
    pub(super) fn get(&self, key: ShotKey) -> Option<Stored> {
        match key.1 {
            0 => Some(self.first[self.place(key.0)?]).filter(|stored| *stored != NONE),
            _ => self.again.get(&key).copied(),
        }
    }

    /// Remembers an entry; false when the tile is not in the plan or the exposure is known.
    pub(super) fn insert(&mut self, key: ShotKey, stored: Stored) -> bool {
        let Some(place) = self.place(key.0) else { return false };
        let new = match key.1 {
            0 => {
                let free = self.first[place] == NONE;
                if free {
                    self.first[place] = stored;
                }
                free
            }
            _ => {
                let free = !self.again.contains_key(&key);
                if free {
                    self.again.insert(key, stored);
                }
                free
            }
        };
        self.len += u64::from(new);
        new
    }

    /// Remembers a decision; false when the tile is not in the plan or the decision is known.
    pub(super) fn decide(&mut self, key: ShotKey) -> bool {
        let Some(place) = self.place(key.0) else { return false };
        let [first, any] = &mut self.decided[place];
        *any = true;
        match key.1 {
            0 => !std::mem::replace(first, true),
            _ => self.decided_again.insert(key),
        }
    }

    /// Entries.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All entries, by tile and attempt.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ShotKey, Stored)> + '_ {
        self.tiles.iter().zip(&self.first).flat_map(|(&tile, &first)| {
            let first = Some(((tile, 0), first)).filter(|(_, stored)| *stored != NONE);
            let again = self.again.range((tile, 1)..=(tile, u8::MAX));
            first.into_iter().chain(again.map(|(key, stored)| (*key, *stored)))
        })
    }

    /// Tiles within `part` of the grid on which the board decided at least once.
    pub(super) fn tiles_decided(&self, part: Range<u64>) -> usize {
        let from = self.tiles.partition_point(|&tile| tile < part.start);
        let to = self.tiles.partition_point(|&tile| tile < part.end);
        self.decided[from..to.max(from)].iter().filter(|[_, any]| *any).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(offset: u64) -> Stored {
        Stored { offset, scale_pm: 1, confidence: 0.5 }
    }

    #[test]
    fn exposures_and_decisions_are_known_once_and_in_order() {
        let mut index = Index::new(vec![2, 5, 9]);
        for (key, new) in
            [((5, 1), true), ((5, 0), true), ((2, 0), true), ((5, 0), false), ((3, 0), false)]
        {
            assert_eq!(index.insert(key, stored(key.0 * 10 + u64::from(key.1))), new, "{key:?}");
        }
        let all: Vec<(ShotKey, u64)> = index.iter().map(|(key, s)| (key, s.offset)).collect();
        assert_eq!(all, [((2, 0), 20), ((5, 0), 50), ((5, 1), 51)]);
        assert_eq!((index.len(), index.get((5, 1))), (3, Some(stored(51))));
        assert_eq!((index.get((9, 0)), index.get((3, 0))), (None, None));
        for (key, new) in [((5, 1), true), ((5, 1), false), ((2, 0), true), ((3, 0), false)] {
            assert_eq!(index.decide(key), new, "{key:?}");
        }
        assert_eq!(index.tiles_decided(0..10), 2);
        assert_eq!(index.tiles_decided(3..10), 1);
        assert_eq!(index.tiles_decided(6..6), 0);
        index.clear();
        assert_eq!((index.len(), index.iter().count(), index.tiles_decided(0..10)), (0, 0, 0));
    }
}
