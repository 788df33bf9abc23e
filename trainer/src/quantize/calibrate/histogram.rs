//! How often a tensor took which values.

/// Bins of a histogram.
pub const BINS: usize = 2048;

/// Counts of values in equal bins from the lowest to the highest; zero always lies inside.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

impl Histogram {
    /// An empty histogram over `low` to `high`.
    pub fn new(low: f32, high: f32) -> Self {
        Self { low: low.min(0.0), high: high.max(0.0), counts: vec![0; BINS] }
    }

    /// A histogram of `values`.
    pub fn of(low: f32, high: f32, values: &[f32]) -> Self {
        let mut histogram = Self::new(low, high);
        histogram.add(values);
        histogram
    }

    /// Counts `values`; what lies outside goes into the outermost bins.
    pub fn add(&mut self, values: &[f32]) {
        let factor = BINS as f32 / (self.high - self.low).max(f32::MIN_POSITIVE);
        for value in values {
            let bin = ((value - self.low) * factor) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    /// Adds the counts of another histogram over the same range.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// Lower end.
    pub fn low(&self) -> f32 {
        self.low
    }

    /// Upper end.
    pub fn high(&self) -> f32 {
        self.high
    }

    /// Counts, from the lowest bin.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Number of values.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Width of a bin.
    pub fn width(&self) -> f32 {
        (self.high - self.low) / BINS as f32
    }

    /// Middle of bin `bin`.
    pub fn middle(&self, bin: usize) -> f32 {
        self.low + (bin as f32 + 0.5) * self.width()
    }

    /// The lower end after about `cut` values are taken off below zero.
    pub fn cut_low(&self, cut: f64) -> f32 {
        let mut seen = 0.0;
        for (bin, &count) in self.counts.iter().enumerate() {
            seen += count as f64;
            if seen > cut {
                return (self.low + bin as f32 * self.width()).min(0.0);
            }
        }
        self.low
    }

    /// The upper end after about `cut` values are taken off above zero.
    pub fn cut_high(&self, cut: f64) -> f32 {
        let mut seen = 0.0;
        for (bin, &count) in self.counts.iter().enumerate().rev() {
            seen += count as f64;
            if seen > cut {
                // The uppermost bin ends where the histogram does, rounding or not.
                let end = self.low + (bin + 1) as f32 * self.width();
                return if bin + 1 == BINS { self.high } else { end.max(0.0) };
            }
        }
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        let histogram = Histogram::of(0.0, BINS as f32, &[0.5, 0.7, 3.5, 9999.0, -5.0]);
        assert_eq!(histogram.counts()[0], 3);
        assert_eq!(histogram.counts()[3], 1);
        assert_eq!(histogram.counts()[BINS - 1], 1);
        assert_eq!(histogram.total(), 5);
        assert_eq!(histogram.middle(3), 3.5);
    }

    #[test]
    fn zero_lies_inside() {
        let histogram = Histogram::of(2.0, 4.0, &[3.0]);
        assert_eq!((histogram.low(), histogram.high()), (0.0, 4.0));
        let mut merged = histogram.clone();
        merged.merge(&histogram);
        assert_eq!(merged.total(), 2);
    }
}
