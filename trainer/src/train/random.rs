//! Random numbers addressed by what they are for, so that a resumed run draws the same ones.
//!
//! A [`Stream`] is a function of a seed and a key (for example the step and the image's place in
//! the batch); nothing has to be stored in a checkpoint and nothing depends on thread order.

/// A reproducible sequence (SplitMix64) for one purpose.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stream {
    /// The stream of `seed` for the purpose `key`.
    pub fn new(seed: u64, key: u64) -> Self {
        Self { state: mix(seed.wrapping_add(GOLDEN)) ^ mix(key.wrapping_mul(GOLDEN) ^ 0xd1b5) }
    }

    /// The stream of `seed` for a purpose addressed by several numbers.
    pub fn keyed(seed: u64, keys: &[u64]) -> Self {
        let state = keys.iter().fold(mix(seed.wrapping_add(GOLDEN)), |state, key| {
            mix(state.wrapping_mul(3).wrapping_add(GOLDEN) ^ mix(key.wrapping_add(GOLDEN)))
        });
        Self { state }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n, or 0 where n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Two independent standard normal values (Box and Muller).
    pub fn normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (self.uniform() * std::f64::consts::TAU).sin_cos();
        (radius * cos, radius * sin)
    }

    /// A standard normal value.
    pub fn normal(&mut self) -> f64 {
        self.normal_pair().0
    }

    /// `count` standard normal values.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let (a, b) = self.normal_pair();
            values.push(a as f32);
            values.push(b as f32);
        }
        values.truncate(count);
        values
    }

    /// A permutation of 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_are_standard() {
        let values = Stream::new(7, 1).normals(200_000);
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let var = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
    }

    #[test]
    fn keys_separate_streams() {
        let first = |keys: &[u64]| Stream::keyed(1, keys).bits();
        assert_eq!(first(&[3, 4]), first(&[3, 4]));
        let mut all = vec![first(&[3, 4]), first(&[4, 3]), first(&[3]), first(&[3, 4, 0])];
        all.push(Stream::keyed(2, &[3, 4]).bits());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn a_permutation_holds_every_index() {
        let mut order = Stream::new(1, 2).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
