//! Tile centres from a user's file: a table of positions, or a HEST patches file.
//!
//! A table is CSV or TSV (by its header line) with a header. Centres are in level-0 pixels, in
//! the columns `pixel_x` and `pixel_y`, or else `x` and `y`. All other columns are kept as they
//! are. A tile's id is, in this order: the column `id`, `barcode`, `name`, `spot`, `tile`, `cell`
//! or one without a name (a table's index); `XxY` where the table has both kinds of coordinates
//! (spots of legacy Spatial Transcriptomics, whose x and y are array positions); the other
//! columns joined by `_`; the row's number.
//!
//! A HEST patches file is HDF5 with `coords` (N, 2), the top-left corners in level-0 px, the
//! attribute `patch_size_src` of `img`, the side in level-0 px, and `barcode`, the ids.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use hdf5_pure::{AttrValue, DType};

use super::Tile;
use crate::{Error, Result};

/// Column names that hold a tile's id, in order of preference.
const ID_COLUMNS: [&str; 7] = ["id", "barcode", "name", "spot", "tile", "cell", ""];

/// Positions farther from the origin than this are no pixels of any slide.
const MAX_POSITION: f64 = 1e9;

/// One position to predict at.
#[derive(Debug, Clone, PartialEq)]
pub struct Centre {
    /// The tile's id; no two centres of a file have the same.
    pub id: String,
    /// Centre in level-0 px.
    pub x: f64,
    /// Centre in level-0 px.
    pub y: f64,
    /// The values of [`Centres::columns`], as written in the file.
    pub values: Vec<String>,
}

/// The positions of a file, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Centres {
    /// Names of the columns that are not the centre's coordinates.
    pub columns: Vec<String>,
    /// The positions.
    pub centres: Vec<Centre>,
}

/// What is wrong with a file of centres; the path is added by [`Centres::read`].
type Problem = String;

impl Centres {
    /// Reads the file at `path`. Errors name the file and the line.
    pub fn read(path: &Path) -> Result<Self> {
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(8).read_to_end(&mut head))
            .map_err(Error::io(path))?;
        let centres = if head.starts_with(b"\x89HDF\r\n\x1A\n") {
            hest(path)
        } else {
            table(&std::fs::read(path).map_err(Error::io(path))?)
        };
        centres.map_err(|problem| {
            Error::Request(format!("tile centres of {}: {problem}", path.display()))
        })
    }

    /// Square tiles of `side` level-0 px around the centres.
    pub fn tiles(&self, side: f64) -> impl Iterator<Item = Tile> + '_ {
        self.centres.iter().zip(0..).map(move |(centre, index)| Tile {
            index,
            id: centre.id.clone(),
            x: centre.x - side / 2.0,
            y: centre.y - side / 2.0,
            side,
        })
    }
}

/// Which columns of a table are what.
struct Columns {
    x: usize,
    y: usize,
    /// Indices of the columns that are kept.
    kept: Vec<usize>,
    id: Id,
}

/// Where a row's id comes from; indices of columns.
enum Id {
    Column(usize),
    ArrayPosition(usize, usize),
    Joined,
    RowNumber,
}

impl Columns {
    fn new(header: &[String]) -> Result<Self, Problem> {
        let find = |name: &str| header.iter().position(|own| own.eq_ignore_ascii_case(name));
        let pair = |x: &str, y: &str| Some((find(x)?, find(y)?));
        let (pixels, plain) = (pair("pixel_x", "pixel_y"), pair("x", "y"));
        let Some((x, y)) = pixels.or(plain) else {
            return Err(format!(
                "the header has no columns x and y (or pixel_x and pixel_y) but {}; name the \
                 columns with the centres in level-0 pixels x and y",
                if header.is_empty() { "is empty".into() } else { header.join(", ") }
            ));
        };
        let kept: Vec<usize> =
            (0..header.len()).filter(|&index| index != x && index != y).collect();
        let named =
            ID_COLUMNS.iter().find_map(|name| find(name)).filter(|index| kept.contains(index));
        let id = match (named, pixels, plain) {
            (Some(column), ..) => Id::Column(column),
            (None, Some(_), Some((x, y))) => Id::ArrayPosition(x, y),
            _ if !kept.is_empty() => Id::Joined,
            _ => Id::RowNumber,
        };
        Ok(Self { x, y, kept, id })
    }
}

/// Line numbers of records. The reader's own position is where it began to look for a record,
/// which blank lines may lie behind.
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// The line on which the record that was looked for at `position` begins. Positions must not
    /// go back.
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let from = position.map_or(self.at, |position| position.byte() as usize);
        let from = from.clamp(self.at, self.text.len());
        let blank = |byte: &&u8| matches!(**byte, b'\r' | b'\n');
        let start = from + self.text[from..].iter().take_while(blank).count();
        let passed = self.text[self.at..start].iter().filter(|byte| **byte == b'\n').count();
        (self.at, self.line) = (start, self.line + passed as u64);
        self.line
    }
}

fn table(text: &[u8]) -> Result<Centres, Problem> {
    let unreadable = |error: &dyn std::fmt::Display| format!("it cannot be read as text ({error})");
    let text = text.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(text);
    let mut rows = text.split(|byte| matches!(byte, b'\r' | b'\n'));
    let header = rows.find(|row| !row.is_empty()).unwrap_or_default();
    let delimiter = if header.contains(&b'\t') {
        b'\t'
    } else if header.contains(&b',') || !header.contains(&b';') {
        b','
    } else {
        b';'
    };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(text);
    let names: Vec<String> =
        reader.headers().map_err(|e| unreadable(&e))?.iter().map(str::to_owned).collect();
    let columns = Columns::new(&names)?;
    let mut lines = Lines::new(text);

    let mut centres = Vec::new();
    let mut ids = Ids::default();
    for (number, record) in (1u64..).zip(reader.into_records()) {
        let record = record.map_err(|error| match error.kind() {
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => format!(
                "line {} has {len} fields where the header has {expected_len}",
                lines.of(pos.as_ref())
            ),
            csv::ErrorKind::Utf8 { pos, .. } => format!(
                "line {} is not UTF-8 text; save the table as UTF-8",
                lines.of(pos.as_ref())
            ),
            _ => unreadable(&error),
        })?;
        let line = lines.of(record.position());
        let field = |index: usize| record.get(index).unwrap_or_default();
        let coordinate = |index: usize| {
            let text = field(index);
            text.parse().ok().filter(|value: &f64| value.abs() <= MAX_POSITION).ok_or_else(|| {
                format!(
                    "line {line}: {} is {text:?}, not a position in level-0 pixels; correct or \
                     remove the line",
                    names[index]
                )
            })
        };
        let (x, y) = (coordinate(columns.x)?, coordinate(columns.y)?);
        let values: Vec<String> =
            columns.kept.iter().map(|&index| field(index).to_owned()).collect();
        let id = match columns.id {
            Id::Column(index) => field(index).to_owned(),
            Id::ArrayPosition(x, y) => format!("{}x{}", field(x), field(y)),
            Id::Joined => values.join("_"),
            Id::RowNumber => number.to_string(),
        };
        if id.is_empty() {
            return Err(format!("line {line}: the id is empty; give every row an id"));
        }
        ids.add(&id, line, "line")?;
        centres.push(Centre { id, x, y, values });
    }
    if centres.is_empty() {
        return Err("the table has a header but no rows".into());
    }
    let columns = columns.kept.iter().map(|&index| names[index].clone()).collect();
    Ok(Centres { columns, centres })
}

/// Ids seen so far and where.
#[derive(Default)]
struct Ids(HashMap<String, u64>);

impl Ids {
    fn add(&mut self, id: &str, place: u64, kind: &str) -> Result<(), Problem> {
        match self.0.insert(id.to_owned(), place) {
            None => Ok(()),
            Some(first) => Err(format!(
                "the id {id:?} of {kind} {place} is also that of {kind} {first}; ids must be \
                 unique (give a column id)"
            )),
        }
    }
}

fn hest(path: &Path) -> Result<Centres, Problem> {
    let damaged = |what: &str, error: hdf5_pure::Error| {
        format!("{what} cannot be read ({error}); is this a HEST patches file?")
    };
    let file = hdf5_pure::File::open_streaming(path).map_err(|e| damaged("the HDF5 file", e))?;
    let root = file.root();
    let names = root.datasets().map_err(|e| damaged("the HDF5 file", e))?;
    if let Some(absent) = ["img", "coords"].iter().find(|name| !names.iter().any(|n| n == *name)) {
        return Err(format!(
            "it has no dataset {absent}; a HEST patches file holds img, coords and barcode"
        ));
    }
    let open = |name: &str| root.dataset(name).map_err(|e| damaged(name, e));
    let coords = open("coords")?;
    let shape = coords.shape().map_err(|e| damaged("coords", e))?;
    let [count, 2] = shape[..] else {
        return Err(format!("coords has shape {shape:?}, not (N, 2)"));
    };
    let attributes = open("img")?.attrs().map_err(|e| damaged("img", e))?;
    let side = attributes
        .get("patch_size_src")
        .and_then(number)
        .filter(|side| *side >= 1.0 && *side <= MAX_POSITION)
        .ok_or(
            "img has no attribute patch_size_src (the side of a patch in level-0 pixels), so \
             centres are unknown; give the centres as a table with x and y",
        )?;
    let corners = coords.read_f64().map_err(|e| damaged("coords", e))?;
    let barcodes = if names.iter().any(|name| name == "barcode") {
        let stored = open("barcode")?;
        let text = match stored.dtype().map_err(|e| damaged("barcode", e))? {
            DType::String | DType::VariableLengthString => stored.read_string(),
            _ => stored
                .read_i64()
                .map(|numbers| numbers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        };
        text.map_err(|e| damaged("barcode", e))?
    } else {
        (1..=count).map(|number| number.to_string()).collect()
    };
    if corners.len() as u64 != 2 * count || barcodes.len() as u64 != count || count == 0 {
        return Err(format!(
            "{count} coords and {} barcodes do not make a list of patches",
            barcodes.len()
        ));
    }
    let mut centres = Vec::with_capacity(barcodes.len());
    let mut ids = Ids::default();
    for ((corner, id), row) in corners.chunks_exact(2).zip(barcodes).zip(0..) {
        let (x, y) = (corner[0] + side / 2.0, corner[1] + side / 2.0);
        if !(x.abs() <= MAX_POSITION && y.abs() <= MAX_POSITION) {
            return Err(format!("row {row} of coords, ({x}, {y}), is no position on a slide"));
        }
        ids.add(&id, row, "row")?;
        centres.push(Centre { values: vec![id.clone()], id, x, y });
    }
    Ok(Centres { columns: vec!["barcode".into()], centres })
}

/// A numeric attribute, stored as a scalar or as an array of one.
fn number(value: &AttrValue) -> Option<f64> {
    match value {
        AttrValue::F32(v) => Some(f64::from(*v)),
        AttrValue::F64(v) => Some(*v),
        AttrValue::F32Array(v) => v.first().map(|v| f64::from(*v)),
        AttrValue::F64Array(v) => v.first().copied(),
        other => other.to_i64s().and_then(|v| v.first().map(|v| *v as f64)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Centres, Problem> {
        table(text.as_bytes())
    }

    #[test]
    fn a_table_keeps_its_order_ids_and_columns() {
        let centres = read("barcode,x,y,cluster\nAAC,10.5,20,3\nAAA,-1,0,1\n").unwrap();
        assert_eq!(centres.columns, ["barcode", "cluster"]);
        assert_eq!(centres.centres[0].id, "AAC");
        assert_eq!((centres.centres[1].x, centres.centres[1].y), (-1.0, 0.0));
        assert_eq!(centres.centres[0].values, ["AAC", "3"]);
        let tiles: Vec<Tile> = centres.tiles(4.0).collect();
        assert_eq!((tiles[0].x, tiles[0].y, tiles[1].index), (8.5, 18.0, 1));
        assert_eq!(tiles[0].centre(), (10.5, 20.0));
    }

    #[test]
    fn legacy_spots_are_named_by_their_array_position() {
        let text = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n\
                    10\t11\t9.97\t11.03\t2800.4\t3100\t1\n";
        let centres = read(text).unwrap();
        assert_eq!(centres.centres[0].id, "10x11");
        assert_eq!((centres.centres[0].x, centres.centres[0].y), (2800.4, 3100.0));
        assert_eq!(centres.columns, ["x", "y", "new_x", "new_y", "selected"]);
    }

    #[test]
    fn ids_are_made_where_there_is_no_id_column() {
        assert_eq!(read("x,y\n1,2\n3,4\n").unwrap().centres[1].id, "2");
        assert_eq!(read("slide,x,y,n\nA,1,2,7\n").unwrap().centres[0].id, "A_7");
        assert_eq!(read(",X,Y\nrow1,1,2\n").unwrap().centres[0].id, "row1");
        assert_eq!(read("\u{FEFF}x;y\r\n1;2\r\n").unwrap().centres.len(), 1);
    }

    #[test]
    fn bad_rows_are_named_by_their_line() {
        for (text, expected) in [
            ("x,y\n1,2\nleft,2\n", "line 3: x is \"left\""),
            ("x,y\n1,NaN\n", "line 2: y is \"NaN\""),
            ("x,y\n1,inf\n", "line 2"),
            ("x,y\n1,2\n3\n", "line 3 has 1 fields"),
            ("x,y\n1,2\n\n3\n", "line 4 has 1 fields"),
            ("\r\n\r\nx,y\r\n\r\n1,2\r\n\r\n\r\n1,up\r\n", "line 8: y is \"up\""),
            ("id,x,y\n\"two\nlines\",1,2\n\nb,1\n", "line 5 has 2 fields"),
            ("id,x,y\na,1,2\n\n\na,3,4\n", "line 5 is also that of line 2"),
            ("id,x,y\na,1,2\nb,1,2\na,3,4\n", "line 4 is also that of line 2"),
            ("id,x,y\n,1,2\n", "line 2: the id is empty"),
            ("a,b\n1,2\n", "no columns x and y"),
            ("x,y\n", "no rows"),
            ("", "no columns x and y"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(expected), "{text:?}: {problem}");
        }
    }

    #[test]
    fn a_hest_patches_file_gives_centres_of_its_patches() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("patches.h5");
        let write = |with_side: bool, second: &str| {
            let mut builder = hdf5_pure::FileBuilder::new();
            let images =
                builder.create_dataset("img").with_u8_data(&[0; 24]).with_shape(&[2, 2, 2, 3]);
            if with_side {
                images.set_attr("patch_size_src", AttrValue::I64(448));
            }
            builder.create_dataset("coords").with_i64_data(&[100, 200, -10, 0]).with_shape(&[2, 2]);
            builder.create_dataset("barcode").with_vlen_strings(&["AAC", second]);
            builder.write(&path).unwrap();
        };
        write(true, "AAA");
        let centres = Centres::read(&path).unwrap();
        assert_eq!((centres.centres[0].x, centres.centres[0].y), (324.0, 424.0));
        assert_eq!((centres.centres[1].id.as_str(), centres.centres[1].x), ("AAA", 214.0));
        write(true, "AAC");
        assert!(Centres::read(&path).unwrap_err().to_string().contains("unique"));
        write(false, "AAA");
        let error = Centres::read(&path).unwrap_err().to_string();
        assert!(error.contains("patch_size_src") && error.contains("patches.h5"), "{error}");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(Centres::read(&path).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(x,y|x\ty|id,x,y|pixel_x,pixel_y)?\n?(.|\n){0,80}") {
            let _ = read(&text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = table(&bytes);
        }

        #[test]
        fn lines_are_counted_as_an_editor_does(blanks in proptest::collection::vec(0usize..3, 1..20)) {
            let mut text = String::from("x,y\n");
            for blank in &blanks {
                text += &"\n".repeat(*blank);
                text += "1,2\n";
            }
            text += "1,bad\n";
            let line = text.lines().position(|line| line.ends_with("bad")).unwrap() + 1;
            let problem = read(&text).unwrap_err();
            prop_assert!(problem.contains(&format!("line {line}: y is")), "{}", problem);
        }

        #[test]
        fn tables_are_read_back(
            rows in proptest::collection::vec((-1e6f64..1e6, -1e6f64..1e6), 1..30),
        ) {
            let mut text = String::from("x,y\n");
            for (x, y) in &rows {
                text += &format!("{x},{y}\n");
            }
            let read: Vec<_> = read(&text).unwrap().centres.iter().map(|c| (c.x, c.y)).collect();
            prop_assert_eq!(read, rows);
        }
    }
}
