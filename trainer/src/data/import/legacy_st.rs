//! The layout of the first Spatial Transcriptomics arrays: a table of counts, a table of spot
//! positions and one image a section.
//!
//! `counts/<S>.tsv[.gz]` has rows `XxY` (array coordinates) and one column a gene;
//! `spots/<S>_selection.tsv` has columns x, y, pixel_x, pixel_y and optionally selected;
//! `images/<S>.<extension>` is what the pixel positions refer to, unscaled.

use std::collections::HashMap;
use std::path::Path;

use super::table::Lines;
use super::{Importer, Pixels, Request, Section, Spot, file_names, first_file};
use crate::data::normalize::Unit;
use crate::data::report::SectionReport;
use crate::{Error, Result};

/// Largest count that float32 holds exactly.
const LARGEST_COUNT: f64 = 16_777_216.0;

const IMAGE_EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "tif", "tiff", "svs", "ome.tif"];

/// See the module.
pub(super) struct LegacySt;

/// Array coordinates, the key that joins counts and positions.
type Grid = (i64, i64);

impl Importer for LegacySt {
    fn name(&self) -> &'static str {
        "legacy-st"
    }

    fn about(&self) -> &'static str {
        "counts/<S>.tsv[.gz], spots/<S>_selection.tsv, images/<S>.jpg"
    }

    fn sections(&self, source: &Path) -> Result<Vec<String>> {
        let counts = source.join("counts");
        if !counts.is_dir() {
            return Err(Error::data(
                source,
                "has no `counts` directory, so it is not in the legacy-st layout \
                 (counts/<S>.tsv.gz, spots/<S>_selection.tsv, images/<S>.jpg); give the directory \
                 that holds those three",
            ));
        }
        let mut names: Vec<String> = file_names(&counts)?
            .iter()
            .filter_map(|name| {
                let name = name.strip_suffix(".gz").unwrap_or(name);
                Some(name.strip_suffix(".tsv")?.to_owned())
            })
            .collect();
        names.dedup();
        if names.is_empty() {
            return Err(Error::data(&counts, "holds no .tsv or .tsv.gz file"));
        }
        Ok(names)
    }

    fn read(
        &self,
        request: &Request<'_>,
        section: &str,
        report: &mut SectionReport,
    ) -> Result<Section> {
        let find = |folder: &str, names: Vec<String>| {
            let directory = request.source.join(folder);
            first_file(&directory, names.clone()).ok_or_else(|| {
                Error::data(
                    &directory,
                    format!("section {section} has no file here; expected {}", names.join(" or ")),
                )
            })
        };
        let tables = |stem: &str| vec![format!("{stem}.tsv.gz"), format!("{stem}.tsv")];
        let counts_path = find("counts", tables(section))?;
        let spots_path = find("spots", tables(&format!("{section}_selection")))?;
        let image_path = find(
            "images",
            IMAGE_EXTENSIONS.iter().map(|extension| format!("{section}.{extension}")).collect(),
        )?;
        let slide = diffbulk::slide::open(&image_path)?;

        let positions = read_positions(&spots_path, report)?;
        let mut counts = read_counts(&counts_path, report)?;

        let mut spots = Vec::with_capacity(positions.len());
        for (grid, centre) in positions {
            let barcode = name(grid);
            match counts.rows.remove(&grid) {
                Some(Row::Good(values)) => {
                    spots.push(Spot { barcode, centre: Some(centre), image_row: 0, values });
                }
                // Its row of counts was entered in the report already.
                Some(Row::Bad) => {}
                None => report.skip("spot without a row of counts", barcode),
            }
        }
        let mut left: Vec<_> = counts
            .rows
            .into_iter()
            .filter_map(|(grid, row)| matches!(row, Row::Good(_)).then_some(grid))
            .collect();
        left.sort_unstable();
        for grid in left {
            report.skip("row of counts without a usable spot", name(grid));
        }
        Ok(Section { genes: counts.genes, unit: Unit::Counts, spots, pixels: Pixels::Slide(slide) })
    }
}

fn name(grid: Grid) -> String {
    format!("{}x{}", grid.0, grid.1)
}

/// Reads the spot table: grid position and centre in pixels, in file order.
fn read_positions(path: &Path, report: &mut SectionReport) -> Result<Vec<(Grid, (f64, f64))>> {
    let mut lines = Lines::open(path)?;
    let Some((_, header)) = lines.next()? else {
        return Err(Error::data(path, "is empty; expected a table of spots"));
    };
    let columns: Vec<&str> = header.split('\t').map(str::trim).collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let required = |name: &str| {
        column(name).ok_or_else(|| {
            Error::data(
                path,
                format!(
                    "has no column `{name}`; it needs x, y, pixel_x and pixel_y, separated by \
                     tabs (found: {})",
                    columns.join(", ")
                ),
            )
        })
    };
    let at = [required("x")?, required("y")?, required("pixel_x")?, required("pixel_y")?];
    let selected = column("selected");

    let mut order: Vec<Grid> = Vec::new();
    /// A line of the file and the centre it gives.
    type Place = (usize, (f64, f64));
    let mut found: HashMap<Grid, Vec<Place>> = HashMap::new();
    while let Some((line, text)) = lines.next()? {
        report.spots_read += 1;
        let fields: Vec<&str> = text.split('\t').map(str::trim).collect();
        if fields.len() != columns.len() {
            report.skip(
                "spot row with another number of fields than the header",
                format!("line {line} ({} instead of {})", fields.len(), columns.len()),
            );
            continue;
        }
        let (Some(x), Some(y)) = (whole(fields[at[0]]), whole(fields[at[1]])) else {
            report.skip(
                "spot whose x or y is not a whole number",
                format!("line {line} ({} x {})", fields[at[0]], fields[at[1]]),
            );
            continue;
        };
        let barcode = name((x, y));
        let pixel = |i: usize| fields[at[i]].parse::<f64>().ok().filter(|v| v.is_finite());
        let (Some(px), Some(py)) = (pixel(2), pixel(3)) else {
            report.skip(
                "spot whose pixel position is not a number",
                format!("{barcode} (line {line})"),
            );
            continue;
        };
        if selected.is_some_and(|i| fields[i].parse::<f64>() == Ok(0.0)) {
            report.skip("spot that is not selected", barcode);
            continue;
        }
        let rows = found.entry((x, y)).or_default();
        if rows.is_empty() {
            order.push((x, y));
        }
        rows.push((line, (px, py)));
    }

    Ok(order
        .into_iter()
        .filter_map(|grid| {
            let rows = &found[&grid];
            let (first, repeats) = rows.split_first()?;
            // Which of two different positions is right cannot be known.
            let agree = repeats.iter().all(|(_, centre)| *centre == first.1);
            for (line, _) in if agree { repeats } else { rows.as_slice() } {
                let reason = if agree {
                    "spot listed again (the first was kept)"
                } else {
                    "spot listed more than once with different positions (none was kept)"
                };
                report.skip(reason, format!("{} (line {line})", name(grid)));
            }
            agree.then_some((grid, first.1))
        })
        .collect())
}

/// A whole number, also when it is written `9.0`.
fn whole(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let value: f64 = text.parse().ok()?;
        (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64)
    })
}

/// The table of counts.
struct Counts {
    genes: Vec<String>,
    rows: HashMap<Grid, Row>,
}

/// A row of counts; a bad one stays known so that its spot is not said to have none.
#[derive(Debug, Clone, PartialEq)]
enum Row {
    Good(Vec<(u32, f32)>),
    Bad,
}

fn read_counts(path: &Path, report: &mut SectionReport) -> Result<Counts> {
    let mut lines = Lines::open(path)?;
    let (Some((_, header)), Some(mut row)) = (lines.next()?, lines.next()?) else {
        return Err(Error::data(path, "has no row of counts below its header"));
    };
    let mut header: Vec<&str> = header.split('\t').map(str::trim).collect();
    // R writes the header without the corner cell above the row names.
    if header[0].is_empty() || row.1.split('\t').count() != header.len() + 1 {
        header.remove(0);
    }
    let fields_wanted = header.len() + 1;
    let columns = Columns::new(&header, path, report)?;

    let mut rows: HashMap<Grid, Row> = HashMap::new();
    loop {
        let (line, text) = &row;
        report.counts_read += 1;
        let (key, values) = text.split_once('\t').unwrap_or((text, ""));
        let key = key.trim();
        let grid = key.split_once('x').and_then(|(x, y)| Some((whole(x)?, whole(y)?)));
        match grid {
            None => report.skip(
                "row of counts whose name is not XxY",
                format!("line {line} ({})", key.chars().take(40).collect::<String>()),
            ),
            Some(grid) => {
                let parsed = columns.parse(values, fields_wanted);
                if let Err((reason, detail)) = &parsed {
                    report.skip(reason, format!("{} (line {line}{detail})", name(grid)));
                }
                let parsed = parsed.map_or(Row::Bad, Row::Good);
                match rows.get_mut(&grid) {
                    None => {
                        rows.insert(grid, parsed);
                    }
                    Some(first) if *first == parsed => report.skip(
                        "row of counts listed again (the first was kept)",
                        format!("{} (line {line})", name(grid)),
                    ),
                    Some(first) => {
                        // Which of two different rows is right cannot be known.
                        *first = Row::Bad;
                        report.skip(
                            "row of counts listed more than once with different values (none was \
                             kept)",
                            format!("{} (line {line})", name(grid)),
                        );
                    }
                }
            }
        }
        match lines.next()? {
            Some(next) => row = next,
            None => break,
        }
    }
    Ok(Counts { genes: columns.genes, rows })
}

/// Which gene each column of the count table belongs to.
struct Columns {
    genes: Vec<String>,
    /// Per column: index into `genes`, or none for a column without a symbol.
    gene_of: Vec<Option<u32>>,
}

impl Columns {
    fn new(header: &[&str], path: &Path, report: &mut SectionReport) -> Result<Self> {
        let mut genes: Vec<String> = Vec::with_capacity(header.len());
        let mut index: HashMap<&str, u32> = HashMap::with_capacity(header.len());
        let mut gene_of = Vec::with_capacity(header.len());
        let mut repeated: Vec<&str> = Vec::new();
        let mut unnamed = 0;
        for symbol in header {
            if symbol.is_empty() {
                unnamed += 1;
                gene_of.push(None);
                continue;
            }
            let next = genes.len() as u32;
            let gene = *index.entry(symbol).or_insert(next);
            if gene == next {
                genes.push((*symbol).to_owned());
            } else {
                repeated.push(symbol);
            }
            gene_of.push(Some(gene));
        }
        if genes.is_empty() {
            return Err(Error::data(path, "names no gene in its first line"));
        }
        if genes.iter().all(|gene| gene.parse::<f64>().is_ok()) {
            return Err(Error::data(
                path,
                "has numbers where gene symbols are expected in its first line",
            ));
        }
        if unnamed > 0 {
            report
                .note(format!("{unnamed} columns of counts have no gene symbol and were left out"));
        }
        if !repeated.is_empty() {
            repeated.sort_unstable();
            repeated.dedup();
            report.note(format!(
                "{} gene symbols occur in more than one column; their counts were summed: {}",
                repeated.len(),
                repeated.join(", ")
            ));
        }
        report.genes_read = genes.len();
        Ok(Self { genes, gene_of })
    }

    /// Values of one row that are not zero, by rising gene; or the reason and a detail why the
    /// row cannot be used.
    fn parse(
        &self,
        values: &str,
        fields_wanted: usize,
    ) -> std::result::Result<Vec<(u32, f32)>, (&'static str, String)> {
        let mut row: Vec<(u32, f32)> = Vec::new();
        let mut fields = 0;
        for (column, field) in values.split('\t').enumerate() {
            fields += 1;
            if field == "0" {
                continue;
            }
            let Some(Some(gene)) = self.gene_of.get(column) else { continue };
            let bad = |reason| {
                let shown: String = field.chars().take(20).collect();
                Err((reason, format!(", {} is {shown}", self.genes[*gene as usize])))
            };
            match field.trim().parse::<f64>() {
                Err(_) => return bad("row of counts with a value that is not a number"),
                Ok(v) if !v.is_finite() => {
                    return bad("row of counts with a value that is not a number");
                }
                Ok(v) if v < 0.0 => return bad("row of counts with a negative count"),
                Ok(v) if v.fract() != 0.0 => {
                    return bad("row of counts with a count that is not a whole number");
                }
                Ok(v) if v > LARGEST_COUNT => return bad("row of counts with an impossible count"),
                Ok(v) if v > 0.0 => row.push((*gene, v as f32)),
                Ok(_) => {}
            }
        }
        if fields + 1 != fields_wanted {
            return Err((
                "row of counts with another number of fields than the header",
                format!(", {} instead of {fields_wanted}", fields + 1),
            ));
        }
        row.sort_by_key(|(gene, _)| *gene);
        row.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(text: &str) -> (Result<Counts>, SectionReport) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("S.tsv");
        std::fs::write(&path, text).unwrap();
        let mut report = SectionReport::new("S", "S");
        (read_counts(&path, &mut report), report)
    }

    type Positions = Vec<(Grid, (f64, f64))>;

    fn positions(text: &str) -> (Result<Positions>, SectionReport) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("S_selection.tsv");
        std::fs::write(&path, text).unwrap();
        let mut report = SectionReport::new("S", "S");
        (read_positions(&path, &mut report), report)
    }

    #[test]
    fn every_kind_of_bad_count_row_is_named() {
        let (read, report) = counts(
            "\tA\tB\tA\t\n1x1\t1\t0\t2\t9\n1x2\t1\t-1\t0\t0\n1x3\t1.5\t0\t0\t0\n1x4\t1\t0\t0\n\
             1x5\tmany\t0\t0\t0\nspot6\t1\t1\t1\t0\n1x7\t1\t1\t1\t0\n1x7\t1\t1\t1\t0\n\
             1x8\t1\t1\t1\t0\n1x8\t2\t1\t1\t0\n1x9\tNaN\t0\t0\t0\n",
        );
        let read = read.unwrap();
        assert_eq!(read.genes, ["A", "B"]);
        assert_eq!(read.rows[&(1, 1)], Row::Good(vec![(0, 3.0)]), "repeated symbols are summed");
        assert_eq!(read.rows[&(1, 7)], Row::Good(vec![(0, 2.0), (1, 1.0)]));
        let good = read.rows.values().filter(|row| matches!(row, Row::Good(_))).count();
        assert_eq!(good, 2);
        let named = |reason: &str| {
            report.skipped.iter().find(|(r, _)| r.contains(reason)).map(|(_, n)| n.join("; "))
        };
        assert_eq!(named("negative").unwrap(), "1x2 (line 3, B is -1)");
        assert_eq!(named("not a whole number").unwrap(), "1x3 (line 4, A is 1.5)");
        assert_eq!(named("number of fields").unwrap(), "1x4 (line 5, 4 instead of 5)");
        assert_eq!(
            named("not a number").unwrap(),
            "1x5 (line 6, A is many); 1x9 (line 12, A is NaN)"
        );
        assert_eq!(named("not XxY").unwrap(), "line 7 (spot6)");
        assert_eq!(named("the first was kept").unwrap(), "1x7 (line 9)");
        assert_eq!(named("none was kept").unwrap(), "1x8 (line 11)");
        assert_eq!(report.counts_read, 11);
        assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
    }

    #[test]
    fn headers_with_and_without_a_corner_cell_read_the_same() {
        for header in ["\tA\tB", "spot\tA\tB", "A\tB"] {
            let (read, _) = counts(&format!("{header}\n3x4\t5\t6\n"));
            let read = read.unwrap();
            assert_eq!(read.genes, ["A", "B"], "{header:?}");
            assert_eq!(read.rows[&(3, 4)], Row::Good(vec![(0, 5.0), (1, 6.0)]));
        }
    }

    #[test]
    fn a_table_without_genes_or_rows_is_refused() {
        for text in ["", "\tA\tB\n", "\t1\t2\n3x4\t5\t6\n", "x\n3x4\n"] {
            assert!(counts(text).0.is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_kind_of_bad_spot_is_named() {
        let (read, report) = positions(
            "x\ty\tpixel_x\tpixel_y\tselected\n1\t1\t10.5\t20\t1\n1\t2\tleft\t20\t1\n\
             1\t3\t10\t20\t0\n1\t4\t10\t20\n1.5\t5\t10\t20\t1\n1\t6\t1\t2\t1\n1\t6\t1\t2\t1\n\
             1\t7\t1\t2\t1\n1\t7\t1\t3\t1\n2.0\t8\t5\t6\t1\n1\t9\tinf\t2\t1\n",
        );
        let read = read.unwrap();
        assert_eq!(read, [((1, 1), (10.5, 20.0)), ((1, 6), (1.0, 2.0)), ((2, 8), (5.0, 6.0))]);
        let counted: Vec<_> =
            report.skipped.iter().map(|(reason, names)| (reason.as_str(), names.len())).collect();
        assert_eq!(
            counted,
            [
                ("spot listed again (the first was kept)", 1),
                ("spot listed more than once with different positions (none was kept)", 2),
                ("spot row with another number of fields than the header", 1),
                ("spot that is not selected", 1),
                ("spot whose pixel position is not a number", 2),
                ("spot whose x or y is not a whole number", 1),
            ]
        );
        assert_eq!(report.spots_read, 11);
    }

    #[test]
    fn a_spot_table_without_its_columns_says_which() {
        let error = positions("x\ty\n1\t2\n").0.unwrap_err().to_string();
        assert!(error.contains("pixel_x") && error.contains("found: x, y"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[0-9x\\t\\n.A-C\\-]{0,200}") {
            let _ = counts(&text);
            let _ = positions(&format!("x\ty\tpixel_x\tpixel_y\n{text}"));
        }

        #[test]
        fn whole_numbers_survive(x in -1000i64..1000) {
            prop_assert_eq!(whole(&x.to_string()), Some(x));
            prop_assert_eq!(whole(&format!("{x}.0")), Some(x));
        }
    }
}
