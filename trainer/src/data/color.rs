//! Plain colour statistics of a tile, the features of the simplest baselines.

/// Percentiles that are taken of every channel.
pub const PERCENTILES: [f64; 5] = [5.0, 25.0, 50.0, 75.0, 95.0];

/// Number of statistics of a tile: mean, standard deviation and percentiles of three channels.
pub const STATISTICS: usize = (2 + PERCENTILES.len()) * 3;

/// Names of the values of [`rgb_statistics`], in order (`mean_r`, ..., `p95_b`).
pub fn statistic_names() -> Vec<String> {
    let kinds = ["mean".to_owned(), "std".to_owned()]
        .into_iter()
        .chain(PERCENTILES.iter().map(|p| format!("p{p:02}")));
    kinds.flat_map(|kind| ["r", "g", "b"].map(|channel| format!("{kind}_{channel}"))).collect()
}

/// Mean, standard deviation (of the population) and percentiles 5, 25, 50, 75, 95 (linear between
/// ranks, as numpy's) of R, G and B over the RGB bytes `image`, on the byte scale 0 to 255. All
/// zero for no pixels.
pub fn rgb_statistics(image: &[u8]) -> Vec<f32> {
    let mut histograms = [[0u64; 256]; 3];
    for pixel in image.chunks_exact(3) {
        for (histogram, &value) in histograms.iter_mut().zip(pixel) {
            histogram[value as usize] += 1;
        }
    }
    let pixels = (image.len() / 3) as u64;
    let mut out = vec![0.0; STATISTICS];
    if pixels == 0 {
        return out;
    }
    for (channel, histogram) in histograms.iter().enumerate() {
        let moment = |power: i32| {
            let sum: f64 =
                (0..256).map(|v| histogram[v] as f64 * (v as f64).powi(power)).sum::<f64>();
            sum / pixels as f64
        };
        let mean = moment(1);
        out[channel] = mean as f32;
        out[3 + channel] = (moment(2) - mean * mean).max(0.0).sqrt() as f32;
        for (i, &p) in PERCENTILES.iter().enumerate() {
            out[6 + i * 3 + channel] = percentile(histogram, pixels, p) as f32;
        }
    }
    out
}

/// The `p`-th percentile of the `count` values that `histogram` holds, linear between ranks.
fn percentile(histogram: &[u64; 256], count: u64, p: f64) -> f64 {
    let rank = p / 100.0 * (count - 1) as f64;
    let below = at_rank(histogram, rank.floor() as u64);
    let above = at_rank(histogram, rank.ceil() as u64);
    below + (above - below) * rank.fract()
}

/// The value at `rank` (from 0) of the sorted values of `histogram`.
fn at_rank(histogram: &[u64; 256], rank: u64) -> f64 {
    let mut seen = 0;
    for (value, &count) in histogram.iter().enumerate() {
        seen += count;
        if seen > rank {
            return value as f64;
        }
    }
    255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_numpy() {
        // numpy on [10, 20, 30, 40]: mean 25, std 11.1803, percentiles 11.5, 17.5, 25, 32.5, 38.5.
        let image: Vec<u8> = [10u8, 20, 30, 40].iter().flat_map(|&v| [v, 7, 0]).collect();
        let got = rgb_statistics(&image);
        assert_eq!(got.len(), STATISTICS);
        let red: Vec<f32> = got.iter().copied().step_by(3).collect();
        for (a, b) in red.iter().zip([25.0, 11.18034, 11.5, 17.5, 25.0, 32.5, 38.5]) {
            assert!((a - b).abs() < 1e-4, "{a} is not {b}");
        }
        let green: Vec<f32> = got.iter().copied().skip(1).step_by(3).collect();
        assert_eq!(green, [7.0, 0.0, 7.0, 7.0, 7.0, 7.0, 7.0]);
    }

    #[test]
    fn names_match_the_values() {
        let names = statistic_names();
        assert_eq!(names.len(), STATISTICS);
        assert_eq!(
            (&*names[0], &*names[5], &*names[6], &*names[20]),
            ("mean_r", "std_b", "p05_r", "p95_b")
        );
    }

    #[test]
    fn no_pixels_are_zeros() {
        assert_eq!(rgb_statistics(&[]), vec![0.0; STATISTICS]);
    }
}
