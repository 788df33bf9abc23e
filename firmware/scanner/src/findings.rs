//! What the predictions so far come to: running statistics, hot spots, the best tiles.

use diffbulk_link::limits::{BEST, GENES};
use diffbulk_link::message::{Best, GeneStat, Objective, TileId};
use heapless::Vec;
use postcard::experimental::max_size::MaxSize;
use serde::{Deserialize, Serialize};

/// Mean and variance of one gene, updated a tile at a time (Welford 1962, doi 10.1080/00401706.1962.10490022).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, MaxSize)]
pub struct Welford {
    mean: f32,
    /// Sum of squared deviations from the mean.
    squares: f32,
}

impl Welford {
    /// With the `count`th value. Everything stays finite as long as the values lie below the root of f32's range.
    pub fn add(&mut self, value: f32, count: u16) {
        let off = value - self.mean;
        self.mean += off / f32::from(count.max(1));
        self.squares += off * (value - self.mean);
    }

    /// Mean and sample variance of `count` values.
    pub fn stat(&self, count: u16) -> GeneStat {
        let variance = if count > 1 { self.squares / f32::from(count - 1) } else { 0.0 };
        GeneStat { mean: self.mean, variance }
    }
}

/// The weighted sum of a tile's genes; `None` if it is not finite.
pub fn score(objective: &Objective, values: &[f32]) -> Option<f32> {
    let sum: f32 = objective.weights.iter().zip(values).map(|(weight, value)| weight * value).sum();
    sum.is_finite().then_some(sum)
}

/// Whether a tile of this score lies in a hot spot, coming from one or not.
pub fn is_hot(objective: &Objective, was_hot: bool, score: f32) -> bool {
    score >= if was_hot { objective.leave } else { objective.enter }
}

/// The best tiles, as a binary heap with the worst of them on top: adding one costs at most three exchanges.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, MaxSize)]
pub struct BestTiles(Vec<Best, BEST>);

impl BestTiles {
    /// Considers a tile for a place among the `most` best. Of equal scores the lower cell goes first, so what is best
    /// does not depend on the way the tiles were gone.
    pub fn add(&mut self, tile: TileId, score: f32, most: u8) {
        let most = usize::from(most).min(BEST);
        let new = Best { tile, score };
        if self.0.len() < most {
            // There is room: `most` is at most the capacity.
            let _ = self.0.push(new);
            self.rise();
        } else if let Some(worst) = self.0.first_mut()
            && is_worse(worst, &new)
        {
            *worst = new;
            self.sink();
        }
    }

    /// Best first.
    pub fn sorted(&self) -> Vec<Best, BEST> {
        let mut best = self.0.clone();
        // By insertion: eight are few, and the library's sort alone would take a seventh of the flash.
        for end in 1..best.len() {
            let mut at = end;
            while let Some([before, this]) =
                at.checked_sub(1).and_then(|first| best.get_mut(first..=at))
                && is_worse(before, this)
            {
                core::mem::swap(before, this);
                at -= 1;
            }
        }
        best
    }

    fn worse(&self, a: usize, b: usize) -> bool {
        match (self.0.get(a), self.0.get(b)) {
            (Some(a), Some(b)) => is_worse(a, b),
            _ => false,
        }
    }

    fn rise(&mut self) {
        let mut at = self.0.len().saturating_sub(1);
        while at > 0 && self.worse(at, (at - 1) / 2) {
            self.0.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self) {
        let mut at = 0;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let below = if self.worse(right, left) { right } else { left };
            if !self.worse(below, at) {
                return;
            }
            self.0.swap(at, below);
            at = below;
        }
    }
}

fn is_worse(a: &Best, b: &Best) -> bool {
    a.score.total_cmp(&b.score).then(b.tile.cmp(&a.tile)).is_lt()
}

/// Statistics of `count` tiles, one a gene of the panel.
pub fn stats(genes: &[Welford], count: u16) -> Vec<GeneStat, GENES> {
    genes.iter().map(|gene| gene.stat(count)).take(GENES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffbulk_link::units::Fraction;
    use proptest::prelude::*;

    fn objective(enter: f32, leave: f32) -> Objective {
        Objective {
            weights: [2.0, -1.0].into_iter().collect(),
            enter,
            leave,
            best: 3,
            tissue: Fraction::ZERO,
            rescan: None,
            refocus: None,
            stop: None,
        }
    }

    #[test]
    fn hysteresis_holds_a_hot_spot_until_the_lower_threshold() {
        let objective = objective(1.0, 0.5);
        let mut hot = false;
        let trace = [0.9, 1.0, 0.7, 0.5, 0.49, 0.7, 1.2].map(|score| {
            hot = is_hot(&objective, hot, score);
            hot
        });
        assert_eq!(trace, [false, true, true, true, false, false, true]);
    }

    #[test]
    fn scores_weigh_and_refuse_what_overflows() {
        assert_eq!(score(&objective(0.0, 0.0), &[1.5, 1.0]), Some(2.0));
        assert_eq!(score(&objective(0.0, 0.0), &[f32::MAX, 0.0]), None);
        assert_eq!(score(&objective(0.0, 0.0), &[f32::NAN, 0.0]), None);
    }

    proptest! {
        #[test]
        fn running_statistics_are_those_of_all_values(values in proptest::collection::vec(-100f32..100.0, 1..500)) {
            let mut gene = Welford::default();
            values.iter().zip(1..).for_each(|(&value, count)| gene.add(value, count));
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
            let stat = gene.stat(values.len() as u16);
            prop_assert!((f64::from(stat.mean) - mean).abs() < 1e-3);
            let variance = if n > 1.0 { squares / (n - 1.0) } else { 0.0 };
            prop_assert!((f64::from(stat.variance) - variance).abs() < 1e-3 * variance.max(1.0), "{stat:?} {variance}");
        }

        #[test]
        fn the_best_are_the_first_of_all_sorted(
            scores in proptest::collection::vec(-5i8..5, 0..60),
            most in 0..=BEST as u8,
        ) {
            let mut best = BestTiles::default();
            for (tile, &score) in scores.iter().enumerate() {
                best.add(TileId(tile as u16), f32::from(score), most);
            }
            let mut all: std::vec::Vec<_> = scores.iter().enumerate().map(|(t, &s)| (-i16::from(s), t as u16)).collect();
            all.sort_unstable();
            all.truncate(most.into());
            let got: std::vec::Vec<_> = best.sorted().iter().map(|b| (-(b.score as i16), b.tile.0)).collect();
            prop_assert_eq!(got, all);
        }
    }
}
