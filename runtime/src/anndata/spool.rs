//! A dense `X` with any number of rows in constant memory.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use hdf5_pure::{FileBuilder, Layout, make_f32_type};

use super::{AnnData, problem, write};
use crate::Result;
use crate::output::atomic::{AtomicFile, explain};

/// Dense float32 rows that wait on disk until their number is known, which HDF5 needs before the
/// first byte of `X`.
///
/// The rows go to `<path>.rows.partial`, removed when the spool is written or dropped. Memory does
/// not grow with the rows; at the end the zeroed pages reserved for `X` are never touched, so they
/// take address space only.
#[derive(Debug)]
pub struct RowSpool {
    file: AtomicFile,
    columns: usize,
    rows: usize,
}

impl RowSpool {
    /// A spool for the file that will be at `path`, with `columns` values a row.
    pub fn create(path: &Path, columns: usize) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".rows");
        let file = AtomicFile::create(&path.with_file_name(name))?;
        Ok(Self { file, columns, rows: 0 })
    }

    /// Number of rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Appends a row.
    pub fn push(&mut self, row: &[f32]) -> Result<()> {
        if row.len() != self.columns {
            return Err(problem(
                self.file.path(),
                format!("a row has {} values for {} columns", row.len(), self.columns),
            ));
        }
        for value in row {
            self.file.put(&value.to_le_bytes())?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes the file at `path`: `X` from the spooled rows, everything else from `tables`, whose
    /// own `x` is not used.
    pub fn write_h5ad(mut self, path: &Path, tables: &AnnData) -> Result<()> {
        let (rows, columns) = (tables.obs_names.len(), tables.var_names.len());
        if (self.rows, self.columns) != (rows, columns) {
            return Err(problem(
                path,
                format!(
                    "{} spooled rows of {} values for {rows} observations and {columns} variables",
                    self.rows, self.columns
                ),
            ));
        }
        tables.check_tables().map_err(|e| problem(path, e))?;
        self.file.flush().map_err(|e| explain(path, e))?;

        let elements = rows * columns;
        let mut file = FileBuilder::new();
        let x = file.create_dataset("X");
        x.with_raw_data(make_f32_type(), vec![0; elements * 4], elements as u64);
        x.with_shape(&[rows as u64, columns as u64]);
        write::encoding(x, "array", "0.2.0");
        // Written with zeros first, then X is filled in where it lies.
        let whole = write::emit(path, file, tables)?;
        if elements > 0 {
            self.fill(path, whole.partial_path())?;
        }
        whole.commit().map(drop)
    }

    /// Copies the spooled rows over the zeros of `X` in the file at `target`.
    fn fill(&self, path: &Path, target: &Path) -> Result<()> {
        let size = self.rows as u64 * self.columns as u64 * 4;
        let layout = hdf5_pure::File::open_streaming(target)
            .and_then(|file| file.dataset("X")?.layout())
            .map_err(|e| problem(path, format!("cannot be read back: {e}")))?;
        let Layout::Contiguous { address: Some(address), size: stored } = layout else {
            return Err(problem(path, "X was not stored as one block"));
        };
        if stored != size {
            return Err(problem(path, format!("X was stored with {stored} bytes, not {size}")));
        }
        let copy = || -> io::Result<()> {
            let mut source = BufReader::new(File::open(self.file.partial_path())?);
            let mut sink = File::options().write(true).open(target)?;
            sink.seek(SeekFrom::Start(address))?;
            let copied = io::copy(&mut source, &mut sink)?;
            if copied != size {
                return Err(io::Error::other(format!("{copied} of {size} spooled bytes are left")));
            }
            Ok(())
        };
        copy().map_err(|e| explain(path, e))
    }
}
