//! Small closed-form regressions: standardisation, principal components, ridge and kernel ridge.
//!
//! Rows are tiles, columns are features or genes. There are fewer tiles than features, so every
//! ridge is solved in its dual form (tiles x tiles).

use nalgebra::{Cholesky, DMatrix, DVector, RowDVector, SymmetricEigen};

/// Mean and scale of every column.
#[derive(Debug, Clone)]
pub struct Standardizer {
    mean: RowDVector<f64>,
    scale: RowDVector<f64>,
}

impl Standardizer {
    /// Measures the columns of `x`; a constant column gets scale one and becomes zero.
    pub fn fit(x: &DMatrix<f64>) -> Self {
        let mean = x.row_mean();
        let scale = RowDVector::from_iterator(
            x.ncols(),
            x.column_iter().zip(mean.iter()).map(|(column, mean)| {
                let deviation = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                let deviation = (deviation / x.nrows().max(1) as f64).sqrt();
                if deviation > 1e-12 * mean.abs() && deviation > 0.0 { deviation } else { 1.0 }
            }),
        );
        Self { mean, scale }
    }

    /// (x - mean) / scale.
    pub fn apply(&self, x: &DMatrix<f64>) -> DMatrix<f64> {
        DMatrix::from_fn(x.nrows(), x.ncols(), |i, j| (x[(i, j)] - self.mean[j]) / self.scale[j])
    }

    /// The columns' means.
    pub fn mean(&self) -> &[f64] {
        self.mean.as_slice()
    }

    /// The columns' standard deviations (one where a column is constant).
    pub fn scale(&self) -> &[f64] {
        self.scale.as_slice()
    }
}

/// Principal components of the rows of a matrix.
#[derive(Debug, Clone)]
pub struct PrincipalComponents {
    mean: RowDVector<f64>,
    /// One component a column, unit length, by falling variance.
    axes: DMatrix<f64>,
}

impl PrincipalComponents {
    /// The first `count` components of `x` (fewer if `x` has lower rank).
    pub fn fit(x: &DMatrix<f64>, count: usize) -> Self {
        let mean = x.row_mean();
        let mut centred = x.clone();
        centred.row_iter_mut().for_each(|mut row| row -= &mean);
        let wide = x.ncols() > x.nrows();
        // Of the two Gram matrices, which share their non-zero spectrum, the smaller one.
        let gram =
            if wide { &centred * centred.transpose() } else { centred.transpose() * &centred };
        let eigen = SymmetricEigen::new(gram);
        let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
        order.sort_by(|&i, &j| eigen.eigenvalues[j].total_cmp(&eigen.eigenvalues[i]));
        let largest = order.first().map_or(0.0, |&i| eigen.eigenvalues[i]);
        order.retain(|&i| eigen.eigenvalues[i] > 1e-10 * largest);
        order.truncate(count);
        let mut axes = if wide {
            centred.transpose() * eigen.eigenvectors.select_columns(&order)
        } else {
            eigen.eigenvectors.select_columns(&order)
        };
        for mut axis in axes.column_iter_mut() {
            axis.normalize_mut();
            // The sign of an eigenvector is arbitrary: fix it, so that a run can be repeated.
            if axis[axis.icamax()] < 0.0 {
                axis.neg_mut();
            }
        }
        Self { mean, axes }
    }

    /// Coordinates of the rows of `x` on the components.
    pub fn project(&self, x: &DMatrix<f64>) -> DMatrix<f64> {
        let mut centred = x.clone();
        centred.row_iter_mut().for_each(|mut row| row -= &self.mean);
        centred * &self.axes
    }

    /// Rows from their coordinates.
    pub fn reconstruct(&self, coordinates: &DMatrix<f64>) -> DMatrix<f64> {
        let mut out = coordinates * self.axes.transpose();
        out.row_iter_mut().for_each(|mut row| row += &self.mean);
        out
    }

    /// Mean of the rows.
    pub fn mean(&self) -> &[f64] {
        self.mean.as_slice()
    }

    /// Components [columns of x, components].
    pub fn axes(&self) -> &DMatrix<f64> {
        &self.axes
    }
}

/// Similarity of tiles by their standardised features.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kernel {
    /// The inner product: plain ridge regression.
    Linear,
    /// exp(-gamma |a - b|^2).
    Rbf {
        /// Inverse squared width.
        gamma: f64,
    },
}

impl Kernel {
    /// Similarities [rows of a, rows of b].
    pub fn between(self, a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
        match self {
            Self::Linear => a * b.transpose(),
            Self::Rbf { gamma } => square_distances(a, b).map(|d| (-gamma * d).exp()),
        }
    }
}

/// Squared Euclidean distances [rows of a, rows of b].
pub fn square_distances(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    let squares =
        |m: &DMatrix<f64>| -> Vec<f64> { m.row_iter().map(|row| row.norm_squared()).collect() };
    let (norm_a, norm_b) = (squares(a), squares(b));
    let mut out = a * b.transpose();
    for (j, norm_b) in norm_b.iter().enumerate() {
        for (i, norm_a) in norm_a.iter().enumerate() {
            out[(i, j)] = (norm_a + norm_b - 2.0 * out[(i, j)]).max(0.0);
        }
    }
    out
}

/// Median squared distance between two different rows, the natural unit of a kernel's width;
/// one where there is none.
pub fn median_square_distance(x: &DMatrix<f64>) -> f64 {
    let all = square_distances(x, x);
    let mut pairs: Vec<f64> = (0..x.nrows())
        .flat_map(|j| (0..j).map(move |i| (i, j)))
        .map(|at| all[at])
        .filter(|d| *d > 0.0)
        .collect();
    if pairs.is_empty() {
        return 1.0;
    }
    let middle = pairs.len() / 2;
    *pairs.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Dual coefficients of a ridge regression and the mean it returns to.
#[derive(Debug, Clone)]
pub struct DualRidge {
    coefficients: DMatrix<f64>,
    mean: RowDVector<f64>,
}

impl DualRidge {
    /// Solves (K + alpha I) A = Y - mean(Y) for the kernel matrix of the training tiles. `None`
    /// where the matrix is not positive definite (alpha too small for duplicated tiles).
    pub fn fit(kernel: &DMatrix<f64>, y: &DMatrix<f64>, alpha: f64) -> Option<Self> {
        let mut regularised = kernel.clone();
        for i in 0..regularised.nrows() {
            regularised[(i, i)] += alpha;
        }
        let mean = y.row_mean();
        let mut centred = y.clone();
        centred.row_iter_mut().for_each(|mut row| row -= &mean);
        let coefficients = Cholesky::new(regularised)?.solve(&centred);
        Some(Self { coefficients, mean })
    }

    /// Predictions for tiles with the given similarities to the training tiles [tiles, training].
    pub fn predict(&self, kernel: &DMatrix<f64>) -> DMatrix<f64> {
        let mut out = kernel * &self.coefficients;
        out.row_iter_mut().for_each(|mut row| row += &self.mean);
        out
    }
}

/// Takes the mean row of every section off its rows.
pub fn subtract_section_means(matrix: &mut DMatrix<f64>, sections: &[String]) {
    let mut names: Vec<&String> = sections.iter().collect();
    names.sort();
    names.dedup();
    for name in names {
        let rows: Vec<usize> = (0..sections.len()).filter(|&i| sections[i] == *name).collect();
        let mean = matrix.select_rows(&rows).row_mean();
        for row in rows {
            let centred = matrix.row(row) - &mean;
            matrix.set_row(row, &centred);
        }
    }
}

/// Rows of several matrices side by side.
pub fn beside(blocks: &[&DMatrix<f64>]) -> DMatrix<f64> {
    let rows = blocks.first().map_or(0, |b| b.nrows());
    let columns = blocks.iter().flat_map(|block| block.column_iter().map(|c| c.into_owned()));
    let columns: Vec<DVector<f64>> = columns.collect();
    if columns.is_empty() { DMatrix::zeros(rows, 0) } else { DMatrix::from_columns(&columns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize, columns: usize) -> DMatrix<f64> {
        DMatrix::from_fn(rows, columns, |i, j| ((i * 37 + j * 11 + i * j * 5) % 23) as f64 - 11.0)
    }

    #[test]
    fn constant_columns_become_zero() {
        let x = DMatrix::from_row_slice(3, 2, &[1.0, 0.3, 2.0, 0.3, 3.0, 0.3]);
        let standard = Standardizer::fit(&x).apply(&x);
        assert!((standard.column(0).norm_squared() - 3.0).abs() < 1e-12);
        assert!(standard.column(1).amax() < 1e-12);
    }

    #[test]
    fn all_components_reconstruct_both_tall_and_wide() {
        for x in [table(12, 5), table(6, 15)] {
            let pca = PrincipalComponents::fit(&x, 100);
            assert!((pca.reconstruct(&pca.project(&x)) - &x).amax() < 1e-9);
            let scores = pca.project(&x);
            let variances: Vec<f64> = scores.column_iter().map(|c| c.norm_squared()).collect();
            assert!(variances.windows(2).all(|w| w[0] >= w[1] - 1e-9));
        }
    }

    #[test]
    fn dual_ridge_equals_the_normal_equations() {
        let (x, y) = (table(20, 4), table(20, 3));
        let standard = Standardizer::fit(&x);
        let z = standard.apply(&x);
        let kernel = Kernel::Linear.between(&z, &z);
        let dual = DualRidge::fit(&kernel, &y, 2.5).unwrap().predict(&kernel);

        let mut centred = y.clone();
        let mean = y.row_mean();
        centred.row_iter_mut().for_each(|mut r| r -= &mean);
        let normal = z.transpose() * &z + DMatrix::identity(4, 4) * 2.5;
        let weights = normal.lu().solve(&(z.transpose() * centred)).unwrap();
        let mut primal = &z * weights;
        primal.row_iter_mut().for_each(|mut r| r += &mean);
        assert!((dual - primal).amax() < 1e-9);
    }

    #[test]
    fn rbf_kernel_by_hand() {
        let a = DMatrix::from_row_slice(2, 2, &[0.0, 0.0, 1.0, 2.0]);
        let k = Kernel::Rbf { gamma: 0.5 }.between(&a, &a);
        assert!((k[(0, 1)] - (-0.5_f64 * 5.0).exp()).abs() < 1e-15);
        assert_eq!((k[(0, 0)], k[(1, 1)]), (1.0, 1.0));
    }

    #[test]
    fn median_distance_by_hand() {
        let x = DMatrix::from_row_slice(4, 1, &[0.0, 1.0, 3.0, 3.0]);
        // Squared distances 1, 9, 9, 4, 4 (and a zero between the equal rows).
        assert_eq!(median_square_distance(&x), 4.0);
        assert_eq!(median_square_distance(&DMatrix::zeros(3, 2)), 1.0);
    }
}
