//! A tile every model can predict, and what has to come out.
//!
//! The tile is drawn by integer arithmetic, so it is the same everywhere. Predictions are not: the
//! last bits depend on the processor and the engine. So what is compared is a hash of the values
//! counted in steps that are large against such noise, from an offset that lies in the middle of
//! the largest gap between the values (modulo the step): no value is near a boundary, so noise
//! cannot change a count, while a wrong weight does.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::engine::Engine;
use crate::model::{Model, hex};
use crate::{Error, Result};

/// Key of the expectation in a signed comment.
const KEY: &str = "selftest:";

/// A boundary is at least this far from any value, as a fraction of the largest absolute value:
/// a hundred times what engines differ by in float32.
const MARGIN: f64 = 2e-4;

/// Steps the range of values is divided into, before [`MARGIN`] asks for fewer.
const STEPS: f64 = 64.0;

/// What a model predicts on [`tile`], robust against rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    step: f64,
    offset: f64,
    hash: String,
}

impl Expectation {
    /// The expectation that `values` meet.
    ///
    /// # Errors
    /// When there are none or one is not a number.
    pub fn of(values: &[f32]) -> Result<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Request(
                "the model predicts no numbers on the self-test tile; it must not be released"
                    .into(),
            ));
        }
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| {
            (low.min(value.into()), high.max(value.into()))
        });
        let margin = MARGIN * low.abs().max(high.abs()).max(1e-6);
        let mut step = power_of_two((high - low) / STEPS).max(power_of_two(4.0 * margin));
        loop {
            let (gap, offset) = largest_gap(values, step);
            // A step above the whole range has a gap of at least its excess.
            if gap / 2.0 >= margin {
                return Ok(Self { step, offset, hash: hash(values, step, offset) });
            }
            step *= 2.0;
        }
    }

    /// Whether `values` are what is expected.
    pub fn is_met_by(&self, values: &[f32]) -> bool {
        hash(values, self.step, self.offset) == self.hash
    }

    /// The expectation in a signed comment, if it carries one.
    pub fn find(comment: &str) -> Option<std::result::Result<Self, String>> {
        comment.split_whitespace().find(|word| word.starts_with(KEY)).map(str::parse)
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{KEY}{}/{}/{}", self.step, self.offset, self.hash)
    }
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || format!("`{text}` is no `{KEY}STEP/OFFSET/SHA256`");
        let mut parts = text.strip_prefix(KEY).ok_or_else(bad)?.split('/');
        let (Some(step), Some(offset), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let number = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
        let step = number(step).filter(|&step| step > 0.0).ok_or_else(bad)?;
        let offset = number(offset).ok_or_else(bad)?;
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        Ok(Self { step, offset, hash: hash.to_ascii_lowercase() })
    }
}

/// The self-test tile: `side` x `side` RGB bytes, violet nuclei on pink stroma.
pub fn tile(side: u32) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(3 * (side * side) as usize);
    for y in 0..side {
        for x in 0..side {
            // One nucleus a cell of 16 px, moved and sized by a hash of the cell.
            let cell = (x / 16).wrapping_mul(0x9E37_79B1) ^ (y / 16).wrapping_mul(0x85EB_CA77);
            let cell = (cell ^ (cell >> 15)).wrapping_mul(0x2C1B_3C6D);
            let cell = cell ^ (cell >> 13);
            let dx = (x % 16) as i32 - 5 - (cell & 7) as i32;
            let dy = (y % 16) as i32 - 5 - (cell >> 3 & 7) as i32;
            let radius = 3 + (cell >> 6 & 3) as i32;
            let grain = ((x * 7 + y * 13 + (x * y) / 5) % 23) as u8;
            let pixel = if dx * dx + dy * dy <= radius * radius {
                [92 + grain, 52 + grain, 138 + grain]
            } else {
                [208 + grain, 148 + grain, 190 + grain]
            };
            rgb.extend(pixel);
        }
    }
    rgb
}

/// What `engine`, which has `model` loaded, predicts on the self-test tile.
///
/// # Errors
/// When the engine fails, also by a panic.
pub fn predict(engine: &dyn Engine, model: &Model) -> Result<Vec<f32>> {
    let tile = tile(model.metadata().tile_px);
    let run = std::panic::AssertUnwindSafe(|| engine.session()?.predict(&tile));
    std::panic::catch_unwind(run).unwrap_or_else(|_| {
        Err(Error::Engine {
            engine: engine.name(),
            problem: format!(
                "the self-test tile of {} failed inside; the model is not fit for this engine",
                model.path().display()
            ),
        })
    })
}

/// The power of two at or above `value`, for positive values.
fn power_of_two(value: f64) -> f64 {
    2f64.powf(value.max(1e-12).log2().ceil())
}

/// The largest gap between the values modulo `step`, and its middle.
fn largest_gap(values: &[f32], step: f64) -> (f64, f64) {
    let mut rests: Vec<f64> =
        values.iter().map(|&value| f64::from(value).rem_euclid(step)).collect();
    rests.sort_by(f64::total_cmp);
    let next = rests.iter().skip(1).copied().chain([rests[0] + step]);
    let gaps = rests.iter().zip(next).map(|(&from, to)| (to - from, (from + to) / 2.0));
    gaps.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0.0))
}

/// SHA-256 over the values counted in steps from the offset.
fn hash(values: &[f32], step: f64, offset: f64) -> String {
    let mut digest = Sha256::new();
    for &value in values {
        let count = ((f64::from(value) - offset) / step).floor();
        // A value that is no number counts as one that no good value has.
        let count = if count.is_finite() { count as i64 } else { i64::MAX };
        digest.update(count.to_le_bytes());
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tile_never_changes() {
        let digest = hex(&Sha256::digest(tile(224)));
        assert_eq!(&digest[..16], TILE_224, "signatures made with the old tile would fail");
        assert_eq!(tile(8).len(), 192);
    }

    /// First half of the digest of the tile of 224 px.
    const TILE_224: &str = "f0d5e513f37b9990";

    #[test]
    fn expectations_are_written_and_read() {
        let expectation = Expectation::of(&[0.25, 1.5, -3.0]).unwrap();
        let comment = format!("model:x {expectation} version:1");
        assert_eq!(Expectation::find(&comment).unwrap().unwrap(), expectation);
        assert!(Expectation::find("model:x").is_none());
        for bad in ["selftest:", "selftest:1/2", "selftest:0/0/00", "selftest:nan/0/00"] {
            assert!(Expectation::find(bad).unwrap().is_err(), "{bad}");
        }
        assert!(Expectation::of(&[]).is_err());
        assert!(Expectation::of(&[f32::NAN]).is_err());
        assert!(!expectation.is_met_by(&[0.25, f32::NAN, -3.0]));
        assert!(!expectation.is_met_by(&[0.25, 1.5]));
    }

    proptest! {
        #[test]
        fn noise_is_forgiven_and_errors_are_not(
            values in proptest::collection::vec(-20.0f32..20.0, 1..300),
            noise in proptest::collection::vec(-1e-4f32..1e-4, 300),
            wrong in any::<prop::sample::Index>(),
        ) {
            let expectation = Expectation::of(&values).unwrap();
            let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
            let noisy: Vec<f32> =
                values.iter().zip(&noise).map(|(value, noise)| value + noise * largest).collect();
            prop_assert!(expectation.is_met_by(&noisy));
            let mut broken = values.clone();
            broken[wrong.index(values.len())] += 1.5 * expectation.step as f32;
            prop_assert!(!expectation.is_met_by(&broken));
        }
    }
}
