//! Reads `.h5ad` files of any writer since anndata 0.7.

use std::collections::HashMap;
use std::path::Path;

use hdf5_pure::{AttrValue, DType, Dataset, File, Group};

use super::{AnnData, Column, Csr, Embedding, Matrix, Value, problem};
use crate::Result;

/// What went wrong inside the file; the path is added at the top.
type Inner<T> = std::result::Result<T, String>;

/// Deeper nesting in `uns` than any real file has.
const MAX_DEPTH: usize = 32;

pub(super) fn read(path: &Path) -> Result<AnnData> {
    if !path.exists() {
        return Err(problem(path, "no such file"));
    }
    let file = File::open_streaming(path).map_err(|e| {
        problem(path, format!("is not a whole HDF5 file ({e}); copy or export it again"))
    })?;
    let data = read_parts(&file).map_err(|e| problem(path, e))?;
    data.check().map_err(|e| problem(path, e))?;
    Ok(data)
}

fn read_parts(file: &File) -> Inner<AnnData> {
    let root = file.root();
    let members = Members::of(&root)?;
    for required in ["obs", "var"] {
        if members.is_dataset(required) {
            return Err(format!(
                "{required} is in the layout of anndata before 0.7; open and save it with a newer \
                 anndata"
            ));
        }
        if !members.is_group(required) {
            return Err(format!("has no {required}; is this an AnnData file?"));
        }
    }
    let (obs_names, obs) = read_table(&root, "obs")?;
    let (var_names, var) = read_table(&root, "var")?;
    let x = if members.is_dataset("X") {
        read_dense(&dataset(&root, "X")?)?
    } else if members.is_group("X") {
        Matrix::Csr(read_sparse(&group(&root, "X")?)?)
    } else {
        return Err("has no X; the counts may be in layers only".into());
    };
    let obsm = if members.is_group("obsm") {
        read_obsm(&group(&root, "obsm")?, obs_names.len())?
    } else {
        Vec::new()
    };
    let uns = if members.is_group("uns") {
        read_map(&group(&root, "uns")?, MAX_DEPTH)?
    } else {
        Vec::new()
    };
    Ok(AnnData { x, obs_names, obs, var_names, var, obsm, uns })
}

fn read_dense(x: &Dataset) -> Inner<Matrix> {
    let shape = shape_of(x, "X")?;
    let [rows, columns] = shape[..] else {
        return Err(format!("X has {} dimensions, not 2", shape.len()));
    };
    Ok(Matrix::Dense { rows, columns, values: floats32(x, "X")? })
}

fn read_sparse(group: &Group) -> Inner<Csr> {
    let attrs = attributes(group)?;
    let kind = text_attr(&attrs, "encoding-type")
        .or_else(|| text_attr(&attrs, "h5sparse_format").map(|f| format!("{f}_matrix")))
        .ok_or("X is a group that does not say how it is stored")?;
    let shape = attrs
        .get("shape")
        .or_else(|| attrs.get("h5sparse_shape"))
        .and_then(AttrValue::to_u64s)
        .ok_or("the sparse X has no shape")?;
    let [rows, columns] = shape[..] else {
        return Err(format!("X has {} dimensions, not 2", shape.len()));
    };
    let extent = |v: u64| usize::try_from(v).map_err(|_| format!("X has an extent of {v}"));
    let (rows, columns) = (extent(rows)?, extent(columns)?);
    let values = floats32(&dataset(group, "data")?, "X/data")?;
    let indptr = dataset(group, "indptr")?.read_u64().map_err(|e| format!("X/indptr: {e}"))?;
    let indices = dataset(group, "indices")?.read_u64().map_err(|e| format!("X/indices: {e}"))?;
    let indices = indices
        .into_iter()
        .map(|i| u32::try_from(i).map_err(|_| format!("X/indices holds {i}")))
        .collect::<Inner<Vec<u32>>>()?;
    match kind.as_str() {
        "csr_matrix" => Ok(Csr { rows, columns, indptr, indices, values }),
        // A CSC matrix is the CSR matrix of its transpose.
        "csc_matrix" => {
            let stored = Csr { rows: columns, columns: rows, indptr, indices, values };
            stored.check()?;
            Ok(transpose(&stored))
        }
        other => Err(format!("X is stored as {other}; save it dense, as CSR or as CSC")),
    }
}

fn transpose(m: &Csr) -> Csr {
    let mut indptr = vec![0u64; m.columns + 1];
    for column in &m.indices {
        indptr[*column as usize + 1] += 1;
    }
    for i in 0..m.columns {
        indptr[i + 1] += indptr[i];
    }
    let mut next: Vec<usize> = indptr.iter().map(|v| *v as usize).collect();
    let mut indices = vec![0u32; m.values.len()];
    let mut values = vec![0f32; m.values.len()];
    for row in 0..m.rows {
        for (column, value) in m.row(row) {
            indices[next[column]] = row as u32;
            values[next[column]] = value;
            next[column] += 1;
        }
    }
    Csr { rows: m.columns, columns: m.rows, indptr, indices, values }
}

/// Row names and columns of a dataframe.
type Table = (Vec<String>, Vec<(String, Column)>);

fn read_table(root: &Group, name: &str) -> Inner<Table> {
    let table = group(root, name)?;
    let attrs = attributes(&table)?;
    let members = Members::of(&table)?;
    let index = text_attr(&attrs, "_index").unwrap_or_else(|| "_index".to_owned());
    // The same name may be the index and a column; the file holds it once.
    let names = read_column(&table, &members, &index)
        .map_err(|e| format!("the index of {name}: {e}"))?
        .ok_or_else(|| format!("the index of {name} is of a kind that cannot hold names"))?
        .to_text();
    // Written as an empty float array when there are no columns.
    let order = match attrs.get("column-order") {
        Some(order) => order.as_strings().map(<[String]>::to_vec).unwrap_or_default(),
        None => members.names().filter(|n| **n != index && *n != "__categories").cloned().collect(),
    };
    let mut columns = Vec::with_capacity(order.len());
    for key in order {
        if let Some(column) = read_column(&table, &members, &key)
            .map_err(|e| format!("column {key:?} of {name}: {e}"))?
        {
            columns.push((key, column));
        }
    }
    Ok((names, columns))
}

/// The column `key`, or nothing where it is of a kind this project has no use for.
fn read_column(table: &Group, members: &Members, key: &str) -> Inner<Option<Column>> {
    if members.is_group(key) {
        return read_column_group(&group(table, key)?);
    }
    if !members.is_dataset(key) {
        return Err("is named but not there".into());
    }
    let values = dataset(table, key)?;
    // Before anndata 0.8 categories were kept in a group beside the columns.
    if members.is_group("__categories") {
        let legacy = group(table, "__categories")?;
        if Members::of(&legacy)?.is_dataset(key) {
            let categories = dataset(&legacy, key)?.read_string().map_err(|e| e.to_string())?;
            return Ok(Some(categorical(&values, categories, false)?));
        }
    }
    plain_column(&values)
}

fn read_column_group(column: &Group) -> Inner<Option<Column>> {
    let attrs = attributes(column)?;
    match text_attr(&attrs, "encoding-type").as_deref() {
        Some("categorical") => {
            let names = plain_column(&dataset(column, "categories")?)?
                .ok_or("its categories are of an unknown kind")?;
            let ordered = attrs.get("ordered").and_then(AttrValue::as_i64).unwrap_or(0) != 0;
            Ok(Some(categorical(&dataset(column, "codes")?, names.to_text(), ordered)?))
        }
        Some("nullable-integer" | "nullable-boolean") => {
            let values = plain_column(&dataset(column, "values")?)?;
            let mut values =
                values.and_then(|v| v.to_numbers()).ok_or("its values are not numbers")?;
            for (value, missing) in values.iter_mut().zip(truths(&dataset(column, "mask")?)?) {
                if missing {
                    *value = f64::NAN;
                }
            }
            Ok(Some(Column::Float(values)))
        }
        Some("nullable-string-array") => {
            let mut values = dataset(column, "values")?.read_string().map_err(|e| e.to_string())?;
            for (value, missing) in values.iter_mut().zip(truths(&dataset(column, "mask")?)?) {
                if missing {
                    value.clear();
                }
            }
            Ok(Some(Column::Text(values)))
        }
        _ => Ok(None),
    }
}

fn categorical(codes: &Dataset, categories: Vec<String>, ordered: bool) -> Inner<Column> {
    let codes = codes.read_i32().map_err(|e| e.to_string())?;
    Ok(Column::Categorical { codes, categories, ordered })
}

fn plain_column(values: &Dataset) -> Inner<Option<Column>> {
    let text = |e: hdf5_pure::Error| e.to_string();
    Ok(Some(match values.dtype().map_err(text)? {
        DType::F32 => Column::Float32(values.read_f32().map_err(text)?),
        DType::F64 => Column::Float(values.read_f64().map_err(text)?),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => {
            Column::Integer(values.read_i64().map_err(text)?)
        }
        DType::U8 | DType::U16 | DType::U32 => Column::Integer(values.read_i64().map_err(text)?),
        DType::U64 => {
            let wide = values.read_u64().map_err(text)?;
            let narrow = wide.iter().map(|v| i64::try_from(*v).ok()).collect::<Option<Vec<_>>>();
            match narrow {
                Some(narrow) => Column::Integer(narrow),
                None => Column::Float(wide.into_iter().map(|v| v as f64).collect()),
            }
        }
        DType::String | DType::VariableLengthString => {
            Column::Text(values.read_string().map_err(text)?)
        }
        DType::Enum(_) => Column::Boolean(truths(values)?),
        _ => return Ok(None),
    }))
}

fn read_obsm(obsm: &Group, rows: usize) -> Inner<Vec<Embedding>> {
    let mut entries = Vec::new();
    for name in sorted(obsm.datasets().map_err(|e| e.to_string())?) {
        let values = dataset(obsm, &name)?;
        let shape = shape_of(&values, &name)?;
        let numeric = plain_numeric(&values);
        // Data frames and sparse matrices in obsm are groups; arrays of other ranks are rare.
        if let ([height, width], true) = (&shape[..], numeric)
            && *height == rows
        {
            let numbers = values.read_f64().map_err(|e| format!("obsm[{name:?}]: {e}"))?;
            entries.push(Embedding { name, width: *width, values: numbers });
        }
    }
    Ok(entries)
}

fn read_map(map: &Group, depth: usize) -> Inner<Vec<(String, Value)>> {
    let mut entries = Vec::new();
    for name in sorted(map.datasets().map_err(|e| e.to_string())?) {
        let stored = dataset(map, &name)?;
        if let Some(value) = read_value(&stored).map_err(|e| format!("uns {name:?}: {e}"))? {
            entries.push((name, value));
        }
    }
    if depth > 0 {
        for name in sorted(map.groups().map_err(|e| e.to_string())?) {
            let child = group(map, &name)?;
            let kind = text_attr(&attributes(&child)?, "encoding-type");
            if kind.is_none_or(|k| k == "dict") {
                entries.push((name, Value::Map(read_map(&child, depth - 1)?)));
            }
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

fn read_value(stored: &Dataset) -> Inner<Option<Value>> {
    let shape = shape_of(stored, "value")?;
    let dtype = stored.dtype().map_err(|e| e.to_string())?;
    if let (DType::U8, 2..) = (&dtype, shape.len()) {
        let values = stored.read_u8().map_err(|e| e.to_string())?;
        return Ok(Some(Value::Bytes { shape: shape.iter().map(|v| *v as u64).collect(), values }));
    }
    let Some(column) = plain_column(stored)? else { return Ok(None) };
    Ok(match (shape.len(), column) {
        (0, Column::Text(v)) => v.into_iter().next().map(Value::Text),
        (0, Column::Integer(v)) => v.first().copied().map(Value::Integer),
        (0, Column::Boolean(v)) => v.first().copied().map(Value::Boolean),
        (0, column) => column.to_numbers().and_then(|v| v.first().copied()).map(Value::Number),
        (1, Column::Text(v)) => Some(Value::Texts(v)),
        (1, column) => column.to_numbers().map(Value::Numbers),
        _ => None,
    })
}

/// Truth values: h5py's enumeration of FALSE and TRUE, or any integers.
fn truths(values: &Dataset) -> Inner<Vec<bool>> {
    let size = values.element_size().map_err(|e| e.to_string())?;
    let bytes = values.read_raw().map_err(|e| e.to_string())?;
    let size = usize::try_from(size).ok().filter(|s| *s > 0).ok_or("has elements of no size")?;
    Ok(bytes.chunks_exact(size).map(|element| element.iter().any(|b| *b != 0)).collect())
}

fn floats32(values: &Dataset, name: &str) -> Inner<Vec<f32>> {
    if !plain_numeric(values) {
        return Err(format!("{name} does not hold numbers"));
    }
    values.read_f32().map_err(|e| format!("{name}: {e}"))
}

fn plain_numeric(values: &Dataset) -> bool {
    values.dtype().is_ok_and(|dtype| {
        matches!(
            dtype,
            DType::F32
                | DType::F64
                | DType::I8
                | DType::I16
                | DType::I32
                | DType::I64
                | DType::U8
                | DType::U16
                | DType::U32
                | DType::U64
        )
    })
}

fn shape_of(values: &Dataset, name: &str) -> Inner<Vec<usize>> {
    let shape = values.shape().map_err(|e| format!("{name}: {e}"))?;
    shape
        .into_iter()
        .map(|v| usize::try_from(v).map_err(|_| format!("{name} has an extent of {v}")))
        .collect()
}

fn dataset(parent: &Group, name: &str) -> Inner<Dataset> {
    parent.dataset(name).map_err(|e| format!("{name}: {e}"))
}

fn group(parent: &Group, name: &str) -> Inner<Group> {
    parent.group(name).map_err(|e| format!("{name}: {e}"))
}

fn attributes(group: &Group) -> Inner<HashMap<String, AttrValue>> {
    group.attrs().map_err(|e| e.to_string())
}

fn text_attr(attrs: &HashMap<String, AttrValue>, name: &str) -> Option<String> {
    attrs.get(name).and_then(AttrValue::as_str).map(str::to_owned)
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// What a group holds, by name.
struct Members {
    datasets: Vec<String>,
    groups: Vec<String>,
}

impl Members {
    fn of(group: &Group) -> Inner<Self> {
        Ok(Self {
            datasets: sorted(group.datasets().map_err(|e| e.to_string())?),
            groups: sorted(group.groups().map_err(|e| e.to_string())?),
        })
    }

    fn is_dataset(&self, name: &str) -> bool {
        self.datasets.binary_search_by(|n| n.as_str().cmp(name)).is_ok()
    }

    fn is_group(&self, name: &str) -> bool {
        self.groups.binary_search_by(|n| n.as_str().cmp(name)).is_ok()
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.datasets.iter().chain(&self.groups)
    }
}
