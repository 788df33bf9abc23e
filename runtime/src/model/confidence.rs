//! How close a tile is to what a model was trained on, from simple image statistics.

use super::metadata::Confidence;

/// Names of the values of [`image_statistics`], in order.
pub const IMAGE_STATISTICS: [&str; 6] =
    ["mean_red", "mean_green", "mean_blue", "std_red", "std_green", "std_blue"];

/// Smallest standard deviation that is divided by, so that a statistic that never varied in
/// training does not swamp the others.
const MIN_STD: f64 = 1e-3;

/// Mean and population standard deviation of red, green and blue over a tile of RGB bytes, on a 0
/// to 1 scale, in the order of [`IMAGE_STATISTICS`]. All zero for an empty image.
pub fn image_statistics(rgb: &[u8]) -> [f64; 6] {
    // Integer sums are exact: 255^2 * pixels fits u64 for any image in memory.
    let mut sum = [0u64; 3];
    let mut squares = [0u64; 3];
    let pixels = rgb.chunks_exact(3);
    let count = pixels.len().max(1) as f64;
    for pixel in pixels {
        for (channel, &value) in pixel.iter().enumerate() {
            let value = u64::from(value);
            sum[channel] += value;
            squares[channel] += value * value;
        }
    }
    let mut statistics = [0.0; 6];
    for channel in 0..3 {
        let mean = sum[channel] as f64 / count;
        let variance = (squares[channel] as f64 / count - mean * mean).max(0.0);
        statistics[channel] = mean / 255.0;
        statistics[channel + 3] = variance.sqrt() / 255.0;
    }
    statistics
}

impl Confidence {
    /// Mean and standard deviation of [`image_statistics`] over training tiles; `None` without
    /// any.
    pub fn fit(tiles: impl IntoIterator<Item = [f64; 6]>) -> Option<Self> {
        let mut count = 0.0;
        let mut mean = [0.0; 6];
        let mut m2 = [0.0; 6];
        for tile in tiles {
            count += 1.0;
            for (k, value) in tile.into_iter().enumerate() {
                // Welford's update: stable for any number of tiles.
                let delta = value - mean[k];
                mean[k] += delta / count;
                m2[k] += delta * (value - mean[k]);
            }
        }
        (count > 0.0).then(|| Self {
            statistics: IMAGE_STATISTICS.map(String::from).to_vec(),
            mean: mean.to_vec(),
            std: m2.map(|sum| (sum / count).sqrt()).to_vec(),
        })
    }

    /// Confidence of one tile, 0 to 1: exp(-z^2 / 2) with z^2 the mean over the statistics of the
    /// squared distance from the training mean in training standard deviations. An average
    /// training tile has about 0.6, a tile at the training mean 1.
    pub fn of(&self, rgb: &[u8]) -> f32 {
        let statistics = image_statistics(rgb);
        let mut sum = 0.0;
        let mut count = 0.0;
        for ((name, mean), std) in self.statistics.iter().zip(&self.mean).zip(&self.std) {
            let Some(k) = IMAGE_STATISTICS.iter().position(|known| known == name) else {
                continue;
            };
            let z = (statistics[k] - mean) / std.max(MIN_STD);
            sum += z * z;
            count += 1.0;
        }
        if count == 0.0 { 1.0 } else { (-0.5 * sum / count).exp() as f32 }
    }

    /// What is wrong with these values, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let n = self.statistics.len();
        if self.mean.len() != n || self.std.len() != n {
            return Err(format!(
                "{n} statistics with {} means and {} standard deviations",
                self.mean.len(),
                self.std.len()
            ));
        }
        for name in &self.statistics {
            if !IMAGE_STATISTICS.contains(&name.as_str()) {
                return Err(format!("unknown statistic `{name}`"));
            }
        }
        let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        if !finite(&self.mean) || !finite(&self.std) || self.std.iter().any(|&std| std < 0.0) {
            return Err("a mean or standard deviation is not a number it can be".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_two_pixels() {
        let s = image_statistics(&[0, 255, 51, 255, 255, 51]);
        let expected = [0.5, 1.0, 0.2, 0.5, 0.0, 0.0];
        for (a, b) in s.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{s:?}");
        }
        assert_eq!(image_statistics(&[]), [0.0; 6]);
    }

    #[test]
    fn confidence_is_one_at_the_mean_and_falls_with_distance() {
        let flat = |value: u8| vec![value; 3 * 16];
        let tiles = [100u8, 120, 140].map(|v| image_statistics(&flat(v)));
        let confidence = Confidence::fit(tiles).unwrap();
        confidence.check().unwrap();
        let at_mean = confidence.of(&flat(120));
        assert!(at_mean > 0.999, "{at_mean}");
        let near = confidence.of(&flat(130));
        let far = confidence.of(&flat(250));
        assert!(near < at_mean && far < near && far >= 0.0, "{near} {far}");
        assert!(Confidence::fit([]).is_none());
    }
}
