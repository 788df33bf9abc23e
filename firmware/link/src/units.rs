//! Quantities as they are on the wire: integers with a stated unit, so that neither NaN nor rounding gets in.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// A length or a stage coordinate, held in nanometres: +-2.1 m.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Schema,
    MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Um(pub i32);

impl Um {
    /// From micrometres; `None` if not finite or beyond what the type holds.
    pub fn new(micrometres: f64) -> Option<Self> {
        let nm = micrometres * 1e3;
        // `as` rounds towards zero, so half a nanometre is added away from it.
        let nm = nm + if nm < 0.0 { -0.5 } else { 0.5 };
        (nm > f64::from(i32::MIN) && nm < f64::from(i32::MAX)).then_some(Self(nm as i32))
    }

    /// In micrometres.
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1e3
    }

    /// Sum, `None` beyond the range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Multiple, `None` beyond the range.
    pub fn checked_mul(self, times: u16) -> Option<Self> {
        self.0.checked_mul(i32::from(times)).map(Self)
    }
}

/// Size of a pixel on the glass, held in picometres: 0.25 um/px is 250,000.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Schema,
    MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UmPerPx(pub u32);

impl UmPerPx {
    /// From micrometres per pixel; `None` unless positive, finite and within the range (4,294 um/px).
    pub fn new(um_per_px: f64) -> Option<Self> {
        let pm = um_per_px * 1e6 + 0.5;
        (pm >= 1.0 && pm < f64::from(u32::MAX)).then_some(Self(pm as u32))
    }

    /// In micrometres per pixel.
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// A share from 0 to 1, in steps of 1/65,535.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Schema,
    MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fraction(pub u16);

impl Fraction {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All.
    pub const ONE: Self = Self(u16::MAX);

    /// From a number in 0..=1; `None` outside, NaN included.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self((share * 65535.0 + 0.5) as u16))
    }

    /// As a number in 0..=1.
    pub fn get(self) -> f64 {
        f64::from(self.0) / 65535.0
    }
}

/// IEEE 754 binary16 as its bits. May be NaN or infinite on the wire: see [`F16::finite`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Schema, MaxSize,
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct F16(pub u16);

impl F16 {
    /// Rounded to the nearest; beyond +-65,504 becomes infinite.
    pub fn new(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_bits())
    }

    /// The value, unless it is NaN or infinite.
    pub fn finite(self) -> Option<f32> {
        let value = half::f16::from_bits(self.0);
        value.is_finite().then(|| value.to_f32())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_round_to_a_nanometre_and_refuse_what_does_not_fit() {
        assert_eq!(Um::new(12.3456), Some(Um(12_346)));
        assert_eq!(Um::new(-0.0006), Some(Um(-1)));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3e6, -3e6] {
            assert_eq!(Um::new(bad), None, "{bad}");
        }
        assert_eq!(Um(i32::MAX).checked_add(Um(1)), None);
        assert_eq!(Um(1 << 20).checked_mul(4096), None);
    }

    #[test]
    fn scales_and_shares_refuse_what_they_cannot_be() {
        assert_eq!(UmPerPx::new(0.2525), Some(UmPerPx(252_500)));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert_eq!(UmPerPx::new(bad), None, "{bad}");
        }
        assert_eq!(Fraction::new(1.0), Some(Fraction::ONE));
        for bad in [-1e-9, 1.000_001, f64::NAN] {
            assert_eq!(Fraction::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn half_floats_tell_what_is_not_finite() {
        assert_eq!(F16::new(1.5).finite(), Some(1.5));
        assert_eq!(F16::new(f32::NAN).finite(), None);
        assert_eq!(F16::new(1e6).finite(), None);
    }
}
