//! The tile table as comma-separated text (RFC 4180, UTF-8, a header line).
//!
//! Every number has the fewest digits that read back as the same float.

use std::path::PathBuf;
use std::sync::Arc;

use super::atomic::{AtomicFile, explain, explain_any};
use super::columns::{FIXED, Names, check};
use super::{Context, Given, Row, Sink};
use crate::{Error, Result};

struct CsvSink {
    writer: csv::Writer<AtomicFile>,
    path: PathBuf,
    genes: usize,
    given: Arc<Given>,
}

pub(super) fn open(context: &Context) -> Result<Box<dyn Sink>> {
    let path = context.file(".csv");
    let mut writer = csv::Writer::from_writer(AtomicFile::create(&path)?);
    let names = Names::new(context);
    let others = names.given.iter().chain(&names.genes).map(String::as_str);
    writer.write_record(FIXED.iter().copied().chain(others)).map_err(|e| failure(&path, e))?;
    let genes = context.genes.len();
    Ok(Box::new(CsvSink { writer, path, genes, given: context.given.clone() }))
}

impl Sink for CsvSink {
    fn push(&mut self, row: &Row) -> Result<()> {
        check(row, self.genes, &self.path)?;
        let tile = &row.tile;
        let numbers = [tile.x, tile.y, tile.side, tile.side].map(number);
        let quality = [row.tissue, row.confidence].map(number);
        let fixed = std::iter::once(tile.id.clone()).chain(numbers).chain(quality);
        let given = self.given.values(tile).map(str::to_owned);
        let genes = row.expression.iter().copied().map(number);
        let fields = fixed.chain(given).chain(genes);
        self.writer.write_record(fields).map_err(|e| failure(&self.path, e))
    }

    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>> {
        let path = self.path;
        let file = self.writer.into_inner().map_err(|e| explain(&path, e.into_error()))?;
        Ok(vec![file.commit()?])
    }
}

/// The shortest text that reads back as the same float; very large and small ones with exponent.
fn number<F: Copy + Into<f64> + std::fmt::Display + std::fmt::LowerExp>(value: F) -> String {
    let magnitude = value.into().abs();
    if magnitude != 0.0 && magnitude.is_finite() && !(1e-5..1e16).contains(&magnitude) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

fn failure(path: &std::path::Path, error: csv::Error) -> Error {
    explain_any(path, Box::new(error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn written(context: &Context, rows: &[Row]) -> PathBuf {
        let mut sink = open(context).unwrap();
        rows.iter().for_each(|row| sink.push(row).unwrap());
        sink.finish().unwrap().remove(0)
    }

    #[test]
    fn numbers_are_short_and_exact() {
        assert_eq!(number(224.0f64), "224");
        assert_eq!(number(0.1f32), "0.1");
        assert_eq!(number(1e-30f32), "1e-30");
        assert_eq!(number(f32::NAN), "NaN");
        assert_eq!(number(-0.0f32), "-0");
    }

    #[test]
    fn the_users_columns_are_kept_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context_with_given(directory.path(), &["ERBB2"]);
        let path = written(&context, &[testing::row(0, 1), testing::row(2, 1)]);
        let mut reader = csv::Reader::from_path(path).unwrap();
        let header = reader.headers().unwrap().clone();
        assert_eq!(
            header.iter().skip(6).collect::<Vec<_>>(),
            ["confidence", "x_given", "region/part", "ERBB2"]
        );
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!((&rows[1][7], &rows[1][8]), ("02", "zone \"2\""));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ids_genes_and_numbers_read_back(
            id in any::<String>(),
            gene in any::<String>(),
            value in any::<f32>(),
            x in any::<f64>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let context = testing::context(directory.path(), &[&gene, "HLA-A/B"]);
            let mut row = testing::row(0, 2);
            row.tile.id = id.clone();
            row.tile.x = x;
            row.expression[0] = value;
            let path = written(&context, &[row]);
            let mut reader = csv::Reader::from_path(path).unwrap();
            prop_assert_eq!(&reader.headers().unwrap()[7], &Names::new(&context).genes[0]);
            let record = reader.records().next().unwrap().unwrap();
            prop_assert_eq!(&record[0], &id);
            prop_assert_eq!(record[1].parse::<f64>().unwrap().to_bits(), x.to_bits());
            let back: f32 = record[7].parse().unwrap();
            prop_assert!(back.to_bits() == value.to_bits() || value.is_nan());
        }
    }
}
