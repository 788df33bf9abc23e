//! What the fused predictor is compared with: closed-form regressions on simple image statistics
//! and on the frozen encoder's features.
//!
//! Hyper-parameters are chosen on training sections only, by leaving each out in turn and
//! predicting it from the others; the choice is refitted on all of them. With a single training
//! section, its tiles are halved in order instead.

use nalgebra::DMatrix;
use serde::Serialize;

use super::metrics::{mean_defined, pearson};
use super::regression::{
    DualRidge, Kernel, PrincipalComponents, Standardizer, beside, median_square_distance,
    subtract_section_means,
};

/// Tiles of one side of a split. Rows agree between all fields.
#[derive(Debug, Clone)]
pub struct Tiles {
    /// Statistics of the tile's pixels [tiles, statistics].
    pub colour: DMatrix<f64>,
    /// Features of the frozen encoder, averaged over flips [tiles, features].
    pub encoder: DMatrix<f64>,
    /// Features of the fused predictor's encoder where that is another one, averaged too.
    pub own_encoder: Option<DMatrix<f64>>,
    /// Measured expression [tiles, genes].
    pub expression: DMatrix<f64>,
    /// Section of every tile.
    pub section: Vec<String>,
}

impl Tiles {
    fn select(&self, rows: &[usize]) -> Self {
        Self {
            colour: self.colour.select_rows(rows),
            encoder: self.encoder.select_rows(rows),
            own_encoder: self.own_encoder.as_ref().map(|own| own.select_rows(rows)),
            expression: self.expression.select_rows(rows),
            section: rows.iter().map(|&i| self.section[i].clone()).collect(),
        }
    }
}

/// A closed-form model: which features, which kernel, which targets.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// Name in tables.
    pub name: &'static str,
    colour: bool,
    encoder: Encoder,
    radial: bool,
    /// Learn only the first components of expression.
    programme: Option<usize>,
    /// Leave differences between training sections out of the targets.
    centred: bool,
    constant: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Encoder {
    Absent,
    Components(usize),
    All,
    /// All features of the fused predictor's own encoder.
    Own,
}

/// What a baseline predicted and with which hyper-parameters.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// Predictions for the test tiles [tiles, genes].
    pub predicted: DMatrix<f64>,
    /// The chosen hyper-parameters.
    pub chosen: Chosen,
}

/// Hyper-parameters chosen on the training sections.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Chosen {
    /// Ridge penalty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Kernel width parameter over the median squared distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
}

/// Components of expression that the strong baseline learns.
pub const PROGRAMME: usize = 10;
/// Components that it learns with centred targets, of which fewer carry over.
const OWN_PROGRAMME: usize = 6;

impl Baseline {
    const fn new(name: &'static str, colour: bool, encoder: Encoder) -> Self {
        Self {
            name,
            colour,
            encoder,
            radial: false,
            programme: None,
            centred: false,
            constant: false,
        }
    }

    /// Every baseline, in table order. Where the fused predictor has an encoder of its own, the
    /// strong baseline is there once more on that encoder's features and the fused predictor's
    /// kind of targets, so that a better encoder alone cannot pass for a better model.
    pub fn all(own_encoder: bool) -> Vec<Self> {
        let mut all = Self::usual();
        if own_encoder {
            all.push(Self {
                radial: true,
                programme: Some(OWN_PROGRAMME),
                centred: true,
                ..Self::new(
                    "kernel ridge (RBF) on fused predictor's encoder, 6 centred components",
                    false,
                    Encoder::Own,
                )
            });
        }
        all
    }

    fn usual() -> Vec<Self> {
        use Encoder::{Absent, All, Components};
        vec![
            Self { constant: true, ..Self::new("mean expression", false, Absent) },
            Self::new("ridge on RGB statistics", true, Absent),
            Self::new("PCA-64 + ridge on encoder", false, Components(64)),
            Self::new("PCA-256 + ridge on encoder", false, Components(256)),
            Self::new("encoder + linear", false, All),
            Self::new("ridge on RGB + PCA-64 encoder", true, Components(64)),
            Self {
                radial: true,
                ..Self::new("kernel ridge (RBF) on RGB + PCA-64 encoder", true, Components(64))
            },
            Self {
                radial: true,
                programme: Some(PROGRAMME),
                ..Self::new(
                    "kernel ridge (RBF) on RGB + PCA-64 encoder, 10 expression components",
                    true,
                    Components(64),
                )
            },
        ]
    }

    /// Fits on `train` and predicts the test tiles, whose expression is not looked at.
    pub fn fit_predict(&self, train: &Tiles, test: &Tiles) -> Fitted {
        if self.constant {
            let mean = train.expression.row_mean();
            let predicted = DMatrix::from_fn(test.colour.nrows(), mean.len(), |_, gene| mean[gene]);
            return Fitted { predicted, chosen: Chosen { alpha: None, gamma: None } };
        }
        let grid = self.grid();
        let chosen = if grid.len() == 1 { 0 } else { self.choose(train, &grid) };
        let mut predicted = self.predict_grid(train, test, &grid[chosen..=chosen]);
        Fitted {
            predicted: predicted.pop().unwrap_or_else(|| DMatrix::zeros(0, 0)),
            chosen: grid[chosen],
        }
    }

    fn grid(&self) -> Vec<Chosen> {
        let some = |alpha, gamma| Chosen { alpha: Some(alpha), gamma };
        if self.radial {
            let gammas = [0.25, 0.5, 1.0, 2.0];
            let alphas = [0.3, 1.0, 2.0, 4.0, 8.0];
            gammas.iter().flat_map(|&g| alphas.iter().map(move |&a| some(a, Some(g)))).collect()
        } else {
            // Up to a penalty that outweighs hundreds of correlated standardised features.
            (0..13).map(|i| some(10f64.powf(f64::from(i) / 2.0), None)).collect()
        }
    }

    /// Index of the grid point with the best mean per-gene Pearson over inner splits.
    fn choose(&self, train: &Tiles, grid: &[Chosen]) -> usize {
        let mut totals = vec![0.0; grid.len()];
        for (inside, outside) in inner_splits(&train.section) {
            let held_out = train.select(&outside);
            let predictions = self.predict_grid(&train.select(&inside), &held_out, grid);
            for (total, predicted) in totals.iter_mut().zip(&predictions) {
                let rows = outside.len();
                let column = |m: &DMatrix<f64>, g: usize| m.as_slice()[g * rows..][..rows].to_vec();
                let genes: Vec<Option<f64>> = (0..predicted.ncols())
                    .map(|g| pearson(&column(predicted, g), &column(&held_out.expression, g)))
                    .collect();
                *total += mean_defined(&genes).unwrap_or(-1.0);
            }
        }
        // The first of equals: the weakest penalty.
        (0..grid.len()).fold(0, |best, i| if totals[i] > totals[best] { i } else { best })
    }

    /// Predictions for every grid point; a singular one predicts the mean.
    fn predict_grid(&self, train: &Tiles, test: &Tiles, grid: &[Chosen]) -> Vec<DMatrix<f64>> {
        let (x, test_x) = self.features(train, test);
        let mean = train.expression.row_mean();
        let mut expression = train.expression.clone();
        if self.centred {
            subtract_section_means(&mut expression, &train.section);
            expression.row_iter_mut().for_each(|mut row| row += &mean);
        }
        let programme = self.programme.map(|count| PrincipalComponents::fit(&expression, count));
        let targets = match &programme {
            Some(components) => components.project(&expression),
            None => expression,
        };
        let unit = if self.radial { median_square_distance(&x) } else { 1.0 };
        let mut kernels: Option<(Option<f64>, DMatrix<f64>, DMatrix<f64>)> = None;
        let mut out = Vec::with_capacity(grid.len());
        for point in grid {
            if kernels.as_ref().is_none_or(|(gamma, ..)| *gamma != point.gamma) {
                let kernel = match point.gamma {
                    Some(gamma) => Kernel::Rbf { gamma: gamma / unit },
                    None => Kernel::Linear,
                };
                kernels = Some((point.gamma, kernel.between(&x, &x), kernel.between(&test_x, &x)));
            }
            let Some((_, kernel, test_kernel)) = &kernels else { continue };
            let predicted = match DualRidge::fit(kernel, &targets, point.alpha.unwrap_or(0.0)) {
                Some(ridge) => ridge.predict(test_kernel),
                None => {
                    let mean = targets.row_mean();
                    DMatrix::from_fn(test_x.nrows(), mean.len(), |_, j| mean[j])
                }
            };
            out.push(match &programme {
                Some(components) => components.reconstruct(&predicted),
                None => predicted,
            });
        }
        out
    }

    fn features(&self, train: &Tiles, test: &Tiles) -> (DMatrix<f64>, DMatrix<f64>) {
        let standard = |train: &DMatrix<f64>, test: &DMatrix<f64>| {
            let standard = Standardizer::fit(train);
            (standard.apply(train), standard.apply(test))
        };
        let mut blocks = Vec::new();
        match self.encoder {
            Encoder::Absent => {}
            Encoder::All => blocks.push(standard(&train.encoder, &test.encoder)),
            Encoder::Own => {
                let own = |tiles: &Tiles| {
                    tiles.own_encoder.clone().unwrap_or_else(|| tiles.encoder.clone())
                };
                blocks.push(standard(&own(train), &own(test)));
            }
            Encoder::Components(count) => {
                let pca = PrincipalComponents::fit(&train.encoder, count);
                let (mut inside, mut outside) =
                    (pca.project(&train.encoder), pca.project(&test.encoder));
                // One scale for the block, to a mean square of one: scaling every component by
                // itself would give noise in the last the weight of the signal in the first.
                let scale = (inside.norm_squared() / inside.len().max(1) as f64).sqrt();
                if scale > 0.0 {
                    inside /= scale;
                    outside /= scale;
                }
                blocks.push((inside, outside));
            }
        }
        if self.colour {
            blocks.push(standard(&train.colour, &test.colour));
        }
        (
            beside(&blocks.iter().map(|(train, _)| train).collect::<Vec<_>>()),
            beside(&blocks.iter().map(|(_, test)| test).collect::<Vec<_>>()),
        )
    }
}

/// Training and held-out rows of every inner split: each section left out in turn.
pub fn inner_splits(section: &[String]) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut names: Vec<&String> = section.iter().collect();
    names.sort();
    names.dedup();
    let rows = 0..section.len();
    if names.len() < 2 {
        let half = section.len() / 2;
        let (first, second) = ((0..half).collect::<Vec<_>>(), (half..section.len()).collect());
        return vec![(first, second)];
    }
    names.iter().map(|name| rows.clone().partition(|&i| &section[i] != *name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expression is a nonlinear function of two hidden factors that the features show noisily.
    fn tiles(sections: &[&str], per_section: usize, seed: usize) -> Tiles {
        let n = sections.len() * per_section;
        let wave = |i: usize, j: usize| (((i + seed) * 13 + j * 29) % 97) as f64 / 97.0 - 0.5;
        let encoder = DMatrix::from_fn(n, 80, |i, j| {
            wave(i, 0) * (j as f64 * 0.7).sin()
                + wave(i, 1) * (j as f64 * 0.3).cos()
                + 0.05 * wave(i * 7 + j * 31, 5)
        });
        let colour = DMatrix::from_fn(n, 3, |i, j| wave(i, 0) + 0.5 * wave(i * 3 + j, 9));
        let expression = DMatrix::from_fn(n, 12, |i, g| {
            let factor = wave(i, g % 2);
            factor + factor * factor * 0.5 + 0.1 * wave(i * 11 + g * 17, 3)
        });
        let section =
            sections.iter().flat_map(|s| vec![s.to_string(); per_section]).collect::<Vec<_>>();
        let own_encoder = Some(encoder.clone());
        Tiles { colour, encoder, own_encoder, expression, section }
    }

    fn mean_pearson(predicted: &DMatrix<f64>, truth: &DMatrix<f64>) -> Option<f64> {
        super::super::metrics::Scores::new(predicted, truth, &[]).pearson
    }

    #[test]
    fn every_baseline_but_the_mean_learns() {
        let (train, test) = (tiles(&["a", "b", "c"], 30, 0), tiles(&["d"], 40, 500));
        for baseline in Baseline::all(true) {
            let fitted = baseline.fit_predict(&train, &test);
            assert_eq!(fitted.predicted.shape(), (40, 12));
            let score = mean_pearson(&fitted.predicted, &test.expression);
            if baseline.constant {
                assert_eq!(score, None, "{}", baseline.name);
            } else {
                assert!(score.unwrap() > 0.3, "{}: {score:?}", baseline.name);
                assert!(fitted.chosen.alpha.is_some());
            }
        }
    }

    #[test]
    fn test_expression_is_not_looked_at() {
        let (train, mut test) = (tiles(&["a", "b"], 25, 0), tiles(&["d"], 20, 500));
        for baseline in Baseline::all(true) {
            let before = baseline.fit_predict(&train, &test).predicted;
            test.expression.fill(f64::NAN);
            assert_eq!(before, baseline.fit_predict(&train, &test).predicted);
        }
    }

    #[test]
    fn inner_splits_leave_out_whole_sections() {
        let names: Vec<String> = ["b", "a", "b", "c"].map(String::from).to_vec();
        let splits = inner_splits(&names);
        assert_eq!(splits[1], (vec![1, 3], vec![0, 2]));
        assert_eq!(splits.len(), 3);
        assert_eq!(inner_splits(&names[..1]).len(), 1);
    }
}
