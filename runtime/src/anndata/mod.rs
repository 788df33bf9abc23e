//! AnnData files (`.h5ad`): cells, spots or tiles in rows, genes in columns.
//!
//! [`AnnData`] is the part of the format this project uses: the matrix `X`, the two tables `obs`
//! and `var`, the coordinates in `obsm` and the notes in `uns`. [`AnnData::read_h5ad`] reads files
//! of any writer (dense, CSR and CSC matrices, plain, categorical and nullable columns);
//! [`AnnData::write_h5ad`] writes the encoding that anndata 0.8 and later specify (root
//! `encoding-type` `anndata`, version 0.1.0), so scanpy and squidpy open it.
//!
//! Memory: reading and writing hold the whole object. [`RowSpool`] writes a dense `X` of any
//! number of rows in constant memory: rows wait in a temporary file and only the tables are held.

mod read;
mod spool;
mod write;

pub use spool::RowSpool;

use std::path::Path;

use crate::{Error, Result};

/// Observations x variables, with what is known about both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnnData {
    /// The values, one row an observation, one column a variable.
    pub x: Matrix,
    /// Names of the observations (the index of `obs`).
    pub obs_names: Vec<String>,
    /// Columns of `obs`, in order.
    pub obs: Vec<(String, Column)>,
    /// Names of the variables (the index of `var`), for this project gene symbols.
    pub var_names: Vec<String>,
    /// Columns of `var`, in order.
    pub var: Vec<(String, Column)>,
    /// Arrays with a row an observation, for example `spatial`.
    pub obsm: Vec<Embedding>,
    /// Unstructured notes.
    pub uns: Vec<(String, Value)>,
}

/// The matrix `X` in float32.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// Every value, row-major.
    Dense {
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        columns: usize,
        /// `rows * columns` values.
        values: Vec<f32>,
    },
    /// Compressed sparse rows.
    Csr(Csr),
}

/// A compressed sparse row matrix: the entries of row `r` are
/// `indptr[r] as usize..indptr[r + 1] as usize` of `indices` (columns) and `values`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Csr {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Row boundaries, `rows + 1` of them.
    pub indptr: Vec<u64>,
    /// Column of each entry.
    pub indices: Vec<u32>,
    /// Value of each entry.
    pub values: Vec<f32>,
}

/// A column of `obs` or `var`.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// 64-bit floats; missing values are NaN.
    Float(Vec<f64>),
    /// 32-bit floats; missing values are NaN.
    Float32(Vec<f32>),
    /// Integers.
    Integer(Vec<i64>),
    /// Truth values.
    Boolean(Vec<bool>),
    /// Strings.
    Text(Vec<String>),
    /// Indices into a few named categories; -1 is missing.
    Categorical {
        /// One code a row.
        codes: Vec<i32>,
        /// The names.
        categories: Vec<String>,
        /// Whether the categories have an order.
        ordered: bool,
    },
}

/// One entry of `obsm`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Its key, for example `spatial`.
    pub name: String,
    /// Number of columns.
    pub width: usize,
    /// Row-major, `observations * width` values.
    pub values: Vec<f64>,
}

/// One entry of `uns`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A number.
    Number(f64),
    /// A whole number.
    Integer(i64),
    /// A truth value.
    Boolean(bool),
    /// A list of strings.
    Texts(Vec<String>),
    /// A list of numbers.
    Numbers(Vec<f64>),
    /// An array of bytes with a shape, for example an image (height, width, 3).
    Bytes {
        /// Extent of every dimension.
        shape: Vec<u64>,
        /// Row-major values.
        values: Vec<u8>,
    },
    /// A nested mapping.
    Map(Vec<(String, Value)>),
}

impl AnnData {
    /// Reads the file at `path`. Parts this project has no use for (`layers`, `raw`, `obsp`,
    /// `varm`, unusual entries of `uns`) are left out.
    pub fn read_h5ad(path: &Path) -> Result<Self> {
        read::read(path)
    }

    /// Writes the file at `path`; it appears there only when whole. A `/` in a key, which HDF5
    /// cannot hold, is written as `_`.
    pub fn write_h5ad(&self, path: &Path) -> Result<()> {
        write::write(path, self)
    }

    /// Position of a variable by name; the first one where names repeat.
    pub fn var_position(&self, name: &str) -> Option<usize> {
        self.var_names.iter().position(|n| n == name)
    }

    /// A column of `obs` by name.
    pub fn obs_column(&self, name: &str) -> Option<&Column> {
        self.obs.iter().find(|(n, _)| n == name).map(|(_, column)| column)
    }

    /// A column of `var` by name.
    pub fn var_column(&self, name: &str) -> Option<&Column> {
        self.var.iter().find(|(n, _)| n == name).map(|(_, column)| column)
    }

    /// An entry of `obsm` by name.
    pub fn embedding(&self, name: &str) -> Option<&Embedding> {
        self.obsm.iter().find(|e| e.name == name)
    }

    /// Checks that every part has the size the names say.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.x.check()?;
        let (rows, columns) = (self.obs_names.len(), self.var_names.len());
        if (self.x.rows(), self.x.columns()) != (rows, columns) {
            return Err(format!(
                "X has shape {} x {}, but there are {rows} observation names and {columns} \
                 variable names",
                self.x.rows(),
                self.x.columns()
            ));
        }
        self.check_tables()
    }

    /// [`AnnData::check`] without `x`.
    fn check_tables(&self) -> std::result::Result<(), String> {
        for (table, columns, rows) in
            [("obs", &self.obs, self.obs_names.len()), ("var", &self.var, self.var_names.len())]
        {
            for (name, column) in columns {
                if column.len() != rows {
                    return Err(format!(
                        "column {name:?} of {table} has {} values for {rows} rows",
                        column.len()
                    ));
                }
                column.check().map_err(|e| format!("column {name:?} of {table}: {e}"))?;
            }
        }
        for entry in &self.obsm {
            if Some(entry.values.len()) != entry.width.checked_mul(self.obs_names.len()) {
                return Err(format!(
                    "obsm[{:?}] has {} values, not {} rows of {}",
                    entry.name,
                    entry.values.len(),
                    self.obs_names.len(),
                    entry.width
                ));
            }
        }
        Ok(())
    }
}

impl Default for Matrix {
    fn default() -> Self {
        Self::Dense { rows: 0, columns: 0, values: Vec::new() }
    }
}

impl Matrix {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense { rows, .. } => *rows,
            Self::Csr(csr) => csr.rows,
        }
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        match self {
            Self::Dense { columns, .. } => *columns,
            Self::Csr(csr) => csr.columns,
        }
    }

    /// One row with every value. Panics when `row` is out of range, like a slice.
    pub fn dense_row(&self, row: usize) -> Vec<f32> {
        match self {
            Self::Dense { columns, values, .. } => {
                values[row * columns..(row + 1) * columns].to_vec()
            }
            Self::Csr(csr) => {
                let mut dense = vec![0.0; csr.columns];
                for (column, value) in csr.row(row) {
                    dense[column] += value;
                }
                dense
            }
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        match self {
            Self::Dense { rows, columns, values } => {
                if rows.checked_mul(*columns) == Some(values.len()) {
                    Ok(())
                } else {
                    Err(format!("X has {} values, not {rows} x {columns}", values.len()))
                }
            }
            Self::Csr(csr) => csr.check(),
        }
    }
}

impl Csr {
    /// Builds the matrix from dense rows, leaving out zeros.
    pub fn from_dense_rows<'a>(columns: usize, rows: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let mut csr = Self { columns, indptr: vec![0], ..Self::default() };
        for row in rows {
            csr.push_row(row.iter().enumerate().map(|(c, v)| (c as u32, *v)));
        }
        csr
    }

    /// Appends a row given as (column, value) pairs, leaving out zeros.
    pub fn push_row(&mut self, entries: impl IntoIterator<Item = (u32, f32)>) {
        if self.indptr.is_empty() {
            self.indptr.push(0);
        }
        for (column, value) in entries {
            if value != 0.0 {
                self.indices.push(column);
                self.values.push(value);
            }
        }
        self.indptr.push(self.values.len() as u64);
        self.rows += 1;
    }

    /// The entries of one row as (column, value). Panics when `row` is out of range.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = self.indptr[row] as usize..self.indptr[row + 1] as usize;
        self.indices[range.clone()]
            .iter()
            .map(|c| *c as usize)
            .zip(self.values[range].iter().copied())
    }

    fn check(&self) -> std::result::Result<(), String> {
        let entries = self.values.len();
        if self.indices.len() != entries {
            return Err(format!("X has {entries} values but {} indices", self.indices.len()));
        }
        let boundaries = &self.indptr;
        if boundaries.is_empty() && self.rows == 0 && entries == 0 {
            return Ok(());
        }
        if Some(boundaries.len()) != self.rows.checked_add(1) {
            return Err(format!(
                "X has {} row boundaries for {} rows",
                boundaries.len(),
                self.rows
            ));
        }
        if boundaries[0] != 0
            || boundaries[boundaries.len() - 1] != entries as u64
            || boundaries.windows(2).any(|pair| pair[0] > pair[1])
        {
            return Err("the row boundaries of X do not rise from 0 to its entries".into());
        }
        match self.indices.iter().find(|c| **c as usize >= self.columns) {
            Some(c) => Err(format!("X names column {c} of {}", self.columns)),
            None => Ok(()),
        }
    }
}

impl Column {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Float(v) => v.len(),
            Self::Float32(v) => v.len(),
            Self::Integer(v) => v.len(),
            Self::Boolean(v) => v.len(),
            Self::Text(v) => v.len(),
            Self::Categorical { codes, .. } => codes.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A categorical column of `values`, categories in order of first appearance.
    pub fn categorical<S: AsRef<str>>(values: &[S]) -> Self {
        let mut categories: Vec<String> = Vec::new();
        let mut known = std::collections::HashMap::new();
        let codes = values
            .iter()
            .map(|value| {
                let value = value.as_ref();
                *known.entry(value).or_insert_with(|| {
                    categories.push(value.to_owned());
                    categories.len() as i32 - 1
                })
            })
            .collect();
        Self::Categorical { codes, categories, ordered: false }
    }

    /// Every row as text; a missing category is empty.
    pub fn to_text(&self) -> Vec<String> {
        match self {
            Self::Float(v) => v.iter().map(f64::to_string).collect(),
            Self::Float32(v) => v.iter().map(f32::to_string).collect(),
            Self::Integer(v) => v.iter().map(i64::to_string).collect(),
            Self::Boolean(v) => v.iter().map(bool::to_string).collect(),
            Self::Text(v) => v.clone(),
            Self::Categorical { codes, categories, .. } => codes
                .iter()
                .map(|c| {
                    let name = usize::try_from(*c).ok().and_then(|c| categories.get(c));
                    name.cloned().unwrap_or_default()
                })
                .collect(),
        }
    }

    /// Every row as a number, where the column holds numbers.
    pub fn to_numbers(&self) -> Option<Vec<f64>> {
        match self {
            Self::Float(v) => Some(v.clone()),
            Self::Float32(v) => Some(v.iter().map(|v| f64::from(*v)).collect()),
            Self::Integer(v) => Some(v.iter().map(|v| *v as f64).collect()),
            Self::Boolean(v) => Some(v.iter().map(|v| f64::from(u8::from(*v))).collect()),
            Self::Text(_) | Self::Categorical { .. } => None,
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        let Self::Categorical { codes, categories, .. } = self else { return Ok(()) };
        match codes.iter().find(|c| **c < -1 || **c >= categories.len() as i32) {
            Some(c) => Err(format!("code {c} for {} categories", categories.len())),
            None => Ok(()),
        }
    }
}

fn problem(path: &Path, problem: impl Into<String>) -> Error {
    Error::AnnData { path: path.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
