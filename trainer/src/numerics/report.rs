//! The table of errors and the verdict on it.

use std::fmt;

use crate::diffusion::Array;
use crate::{Error, Result};

/// What a compared tensor is, which decides its tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something the forward pass computes.
    Output,
    /// A gradient or the norm of one.
    Gradient,
}

impl Kind {
    /// Largest accepted error relative to the reference's largest magnitude.
    pub fn tolerance(self) -> f64 {
        match self {
            Self::Output => 1e-4,
            Self::Gradient => 1e-3,
        }
    }
}

#[derive(Debug, Clone)]
struct Row {
    name: String,
    kind: Kind,
    error: f64,
}

/// Largest relative error of every compared tensor.
#[derive(Debug, Clone, Default)]
pub struct Report {
    rows: Vec<Row>,
    unchecked: Vec<String>,
}

impl Report {
    /// Compares computed values with the reference's of the same name.
    pub fn compare(&mut self, kind: Kind, name: &str, computed: &[f32], reference: &Array) {
        let error = if computed.len() == reference.data.len() {
            let scale = f64::from(reference.max_abs()).max(f64::MIN_POSITIVE);
            computed.iter().zip(&reference.data).fold(0.0f64, |worst, (a, b)| {
                let difference = (f64::from(*a) - f64::from(*b)).abs() / scale;
                // A value that is not a number must not pass as small.
                if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
            })
        } else {
            f64::INFINITY
        };
        self.rows.push(Row { name: name.to_owned(), kind, error });
    }

    /// Names a reference tensor that nothing was compared with.
    pub fn leave_unchecked(&mut self, name: &str) {
        self.unchecked.push(name.to_owned());
    }

    /// Whether a tensor of this name has been compared.
    pub fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|row| row.name == name)
    }

    /// The largest error of this kind.
    pub fn worst(&self, kind: Kind) -> f64 {
        self.rows.iter().filter(|r| r.kind == kind).fold(0.0, |worst, r| worst.max(r.error))
    }

    /// Number of compared tensors.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing was compared.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Success if everything was compared and is within its tolerance.
    pub fn verdict(&self) -> Result<()> {
        let failed: Vec<&str> = self
            .rows
            .iter()
            .filter(|r| r.error > r.kind.tolerance())
            .map(|r| r.name.as_str())
            .collect();
        if !failed.is_empty() {
            return Err(Error::Check(format!(
                "{} of {} tensors are beyond tolerance: {}",
                failed.len(),
                self.rows.len(),
                failed.join(", ")
            )));
        }
        if !self.unchecked.is_empty() {
            return Err(Error::Check(format!(
                "no counterpart is computed for {}; remove them or check the configuration",
                self.unchecked.join(", ")
            )));
        }
        if self.rows.is_empty() {
            return Err(Error::Check("the directory holds nothing to compare".to_owned()));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max(6);
        writeln!(f, "{:width$}  {:>9}  {:>9}", "tensor", "error", "tolerance")?;
        for row in &self.rows {
            let tolerance = row.kind.tolerance();
            let mark = if row.error > tolerance { "  FAIL" } else { "" };
            writeln!(f, "{:width$}  {:>9.2e}  {tolerance:>9.0e}{mark}", row.name, row.error)?;
        }
        write!(
            f,
            "{} tensors; largest error of outputs {:.2e}, of gradients {:.2e}",
            self.rows.len(),
            self.worst(Kind::Output),
            self.worst(Kind::Gradient)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_is_relative_to_the_largest_value() {
        let reference = Array::new(vec![2], vec![100.0, 0.0]);
        let mut report = Report::default();
        report.compare(Kind::Output, "near", &[100.0, 0.009], &reference);
        report.verdict().unwrap();
        report.compare(Kind::Output, "far", &[100.0, 0.011], &reference);
        assert!(report.verdict().unwrap_err().to_string().contains("far"));
    }

    #[test]
    fn nan_and_wrong_length_fail() {
        let reference = Array::new(vec![2], vec![1.0, 1.0]);
        for values in [&[f32::NAN, 1.0][..], &[1.0][..]] {
            let mut report = Report::default();
            report.compare(Kind::Gradient, "x", values, &reference);
            assert!(report.verdict().is_err());
        }
    }

    #[test]
    fn an_unchecked_reference_fails() {
        let mut report = Report::default();
        report.compare(Kind::Output, "x", &[1.0], &Array::new(vec![1], vec![1.0]));
        report.leave_unchecked("y");
        assert!(report.verdict().unwrap_err().to_string().contains('y'));
    }
}
