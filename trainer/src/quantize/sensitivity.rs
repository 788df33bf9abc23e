//! Mixed precision: each layer quantised alone, then the cheapest set of layers under a budget.

use std::collections::BTreeMap;

use serde::Serialize;

use super::graph::Layer;
use super::measure::Measured;
use super::table::LayerPrecision;
use crate::Result;

/// One layer quantised alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The layer.
    pub layer: String,
    /// Of the whole model with only this layer in int8.
    pub sqnr_db: f64,
    /// What the outputs lose.
    pub drop: f64,
    /// Multiply-accumulates for one tile: what int8 makes cheaper.
    pub macs: u64,
}

impl Sensitivity {
    /// Noise that leaving it out of int8 takes away, for each multiply-accumulate that stays float.
    fn worth(&self) -> f64 {
        10f64.powf(-self.sqnr_db / 10.0) / self.macs.max(1) as f64
    }
}

/// Arithmetic of every layer, by name.
pub type Assignment = BTreeMap<String, LayerPrecision>;

/// The budget of a search.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Largest loss.
    pub max_drop: f64,
    /// Smallest signal to noise ratio in dB.
    pub min_sqnr_db: f64,
}

impl Budget {
    /// Whether a model is within it.
    pub fn allows(&self, measured: &Measured) -> bool {
        measured.drop <= self.max_drop && measured.sqnr_db >= self.min_sqnr_db
    }
}

/// Measures each of `layers` alone; `measure` is given an assignment where all others are float.
/// They come out in the order in which they should be left out of int8.
pub fn rank(
    layers: &[&Layer],
    macs: &[u64],
    mut measure: impl FnMut(&Assignment) -> Result<Measured>,
) -> Result<Vec<Sensitivity>> {
    let mut ranked = Vec::with_capacity(layers.len());
    for (layer, &macs) in layers.iter().zip(macs) {
        let alone = [(layer.name.clone(), LayerPrecision::Int8)].into_iter().collect();
        let measured = measure(&alone)?;
        ranked.push(Sensitivity {
            layer: layer.name.clone(),
            sqnr_db: measured.sqnr_db,
            drop: measured.drop,
            macs,
        });
    }
    // What is lost of single layers' correlations is mostly chance, so the noise decides.
    ranked.sort_by(|a, b| b.worth().total_cmp(&a.worth()));
    Ok(ranked)
}

/// The fewest layers from the front of `ranked` out of int8 so that the rest is within `budget`:
/// found by halving, since taking out more layers is taken to lose less.
///
/// Returns how many, and the measurement with them; `None` where even one layer is too many.
pub fn search(
    ranked: &[Sensitivity],
    budget: Budget,
    mut measure: impl FnMut(&[Sensitivity]) -> Result<Measured>,
) -> Result<Option<(usize, Measured)>> {
    let all = measure(&[])?;
    if budget.allows(&all) {
        return Ok(Some((0, all)));
    }
    let (mut low, mut high) = (0, ranked.len());
    let mut found = None;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let measured = measure(&ranked[..middle])?;
        if budget.allows(&measured) {
            high = middle;
            found = Some((middle, measured));
        } else {
            low = middle;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensitivity(layer: usize) -> Sensitivity {
        Sensitivity { layer: format!("l{layer}"), sqnr_db: layer as f64, drop: 0.0, macs: 1 }
    }

    fn measured(drop: f64) -> Measured {
        Measured { tiles: 1, sqnr_db: 30.0, largest: 0.0, drop }
    }

    #[test]
    fn the_fewest_layers_are_taken_out() {
        let ranked: Vec<Sensitivity> = (0..20).map(sensitivity).collect();
        let budget = Budget { max_drop: 0.005, min_sqnr_db: 20.0 };
        for needed in 0..19 {
            let found = search(&ranked, budget, |out| {
                Ok(measured(if out.len() >= needed { 0.004 } else { 0.1 }))
            });
            assert_eq!(found.unwrap().unwrap().0, needed);
        }
        let never = search(&ranked, budget, |_| Ok(measured(1.0))).unwrap();
        assert!(never.is_none());
    }

    #[test]
    fn noise_is_weighed_against_what_int8_saves() {
        // Ten times the noise (10 dB less), a hundred times the cost: the cheap one goes first.
        let dear = Sensitivity { sqnr_db: 20.0, macs: 100, ..sensitivity(0) };
        let cheap = Sensitivity { sqnr_db: 30.0, macs: 1, ..sensitivity(1) };
        assert!((cheap.worth() / dear.worth() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn noise_counts_as_well() {
        let budget = Budget { max_drop: 0.1, min_sqnr_db: 20.0 };
        assert!(budget.allows(&measured(0.1)));
        assert!(!budget.allows(&Measured { sqnr_db: 19.0, ..measured(0.0) }));
        assert!(!budget.allows(&measured(f64::NAN)));
    }
}
