//! What a head learns to predict: the panel's expression, or its first principal components.

use nalgebra::{DMatrix, RowDVector};

use super::recipe::Recipe;
use crate::evaluate::regression::{PrincipalComponents, subtract_section_means};

/// Training targets, and the way back from them to expression.
#[derive(Debug, Clone)]
pub struct Targets {
    /// One row a training tile: panel genes or components.
    pub values: DMatrix<f64>,
    /// Expression from components, where components are learned.
    pub decoding: Option<Decoding>,
}

/// expression = components * axes + mean.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// [components, panel].
    pub axes: DMatrix<f64>,
    /// Mean expression of the panel over the training tiles.
    pub mean: RowDVector<f64>,
}

impl Targets {
    /// Makes targets of `expression` [training tiles, panel and then other component genes], of
    /// which the first `panel` columns are to be predicted.
    pub fn new(
        recipe: &Recipe,
        expression: &DMatrix<f64>,
        sections: &[String],
        panel: usize,
    ) -> Self {
        let mean = expression.row_mean();
        let mut deviation = expression.clone();
        if recipe.center_sections {
            subtract_section_means(&mut deviation, sections);
        } else {
            deviation.row_iter_mut().for_each(|mut row| row -= &mean);
        }
        let panel_mean = mean.columns(0, panel).into_owned();
        let Some(count) = recipe.components else {
            let mut values = deviation.columns(0, panel).into_owned();
            values.row_iter_mut().for_each(|mut row| row += &panel_mean);
            return Self { values, decoding: None };
        };
        let components = PrincipalComponents::fit(&deviation, count);
        let mut values = components.project(&deviation);
        // One scale for all components: their errors keep the weights they have in expression,
        // and the optimiser sees targets of order one.
        let scale = (values.norm_squared() / values.len().max(1) as f64).sqrt();
        let scale = if scale > 0.0 { scale } else { 1.0 };
        values /= scale;
        let mut axes = components.axes().transpose().columns(0, panel) * scale;
        // A head has as many outputs as its configuration says, even where expression has fewer
        // directions.
        if axes.nrows() < count {
            values = values.resize_horizontally(count, 0.0);
            axes = axes.resize_vertically(count, 0.0);
        }
        Self { values, decoding: Some(Decoding { axes, mean: panel_mean }) }
    }

    /// Expression of the panel that these target values stand for.
    pub fn decode(&self, values: &DMatrix<f64>) -> DMatrix<f64> {
        match &self.decoding {
            None => values.clone(),
            Some(decoding) => {
                let mut out = values * &decoding.axes;
                out.row_iter_mut().for_each(|mut row| row += &decoding.mean);
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression() -> (DMatrix<f64>, Vec<String>) {
        // Two sections 5 apart, one shared programme over four genes.
        let matrix = DMatrix::from_fn(8, 4, |i, g| {
            let section = if i < 4 { 0.0 } else { 5.0 };
            section + (i % 4) as f64 * [1.0, 2.0, -1.0, 0.5][g]
        });
        let sections = (0..8).map(|i| if i < 4 { "a" } else { "b" }.to_owned()).collect();
        (matrix, sections)
    }

    #[test]
    fn components_decode_to_expression_without_section_differences() {
        let (matrix, sections) = expression();
        let recipe = Recipe { components: Some(2), center_sections: true, ..Recipe::default() };
        let targets = Targets::new(&recipe, &matrix, &sections, 3);
        assert_eq!(targets.values.shape(), (8, 2));
        let decoded = targets.decode(&targets.values);
        assert_eq!(decoded.shape(), (8, 3));
        for i in 0..8 {
            for g in 0..3 {
                let section = if i < 4 { -2.5 } else { 2.5 };
                assert!((decoded[(i, g)] + section - matrix[(i, g)]).abs() < 1e-9);
            }
        }
        // One direction carries everything: eight values of unit mean square, eight zeros.
        assert!((targets.values.norm_squared() / 8.0 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn plain_targets_are_the_expression() {
        let (matrix, sections) = expression();
        let targets = Targets::new(&Recipe::default(), &matrix, &sections, 4);
        assert!((targets.decode(&targets.values) - matrix).amax() < 1e-12);
    }
}
