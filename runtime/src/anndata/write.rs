//! Writes an [`AnnData`] in the on-disk encoding of anndata 0.8 and later.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;

use hdf5_pure::{
    AttrValue, DatasetBuilder, EnumTypeBuilder, FileBuilder, GroupBuilder, make_i8_type,
};

use super::{AnnData, Column, Csr, Embedding, Matrix, Value, problem};
use crate::Result;
use crate::output::atomic::{AtomicFile, explain};

/// Entries below this stay in one contiguous block; above it they are chunked and compressed.
const COMPRESS_FROM: usize = 1 << 14;

/// Elements a compressed chunk.
const CHUNK: u64 = 1 << 15;

pub(super) fn write(path: &Path, data: &AnnData) -> Result<()> {
    data.check().map_err(|e| problem(path, e))?;
    let mut file = FileBuilder::new();
    match &data.x {
        Matrix::Dense { rows, columns, values } => {
            let x = file.create_dataset("X");
            x.with_f32_data(values).with_shape(&[*rows as u64, *columns as u64]);
            encoding(x, "array", "0.2.0");
        }
        Matrix::Csr(csr) => write_csr(&mut file, csr),
    }
    emit(path, file, data)?.commit().map(drop)
}

/// Adds everything but `X` to `file` and writes it, all but the final name.
pub(super) fn emit(path: &Path, mut file: FileBuilder, data: &AnnData) -> Result<AtomicFile> {
    let fail = |e: String| problem(path, e);
    file.set_attr("encoding-type", text("anndata"));
    file.set_attr("encoding-version", text("0.1.0"));
    for (name, names, columns) in
        [("obs", &data.obs_names, &data.obs), ("var", &data.var_names, &data.var)]
    {
        let mut group = file.create_group(name);
        write_table(&mut group, names, columns).map_err(|e| fail(format!("{name}: {e}")))?;
        file.add_group(group.finish());
    }

    let mut obsm = dict(file.create_group("obsm"));
    write_obsm(&mut obsm, &data.obsm, data.obs_names.len()).map_err(fail)?;
    file.add_group(obsm.finish());

    let mut uns = dict(file.create_group("uns"));
    write_map(&mut uns, &data.uns).map_err(|e| fail(format!("uns: {e}")))?;
    file.add_group(uns.finish());

    for name in ["layers", "obsp", "varm", "varp"] {
        let group = dict(file.create_group(name));
        file.add_group(group.finish());
    }

    let mut out = AtomicFile::create(path)?;
    match file.finish_to(&mut out) {
        Ok(()) => {
            out.flush().map_err(|e| explain(path, e))?;
            Ok(out)
        }
        Err(hdf5_pure::Error::Io(e)) => Err(explain(path, e)),
        Err(e) => Err(problem(path, format!("cannot be written as HDF5: {e}"))),
    }
}

fn write_csr(file: &mut FileBuilder, csr: &Csr) {
    let mut group = file.create_group("X");
    group.set_attr("encoding-type", text("csr_matrix"));
    group.set_attr("encoding-version", text("0.1.0"));
    group.set_attr("shape", AttrValue::I64Array(vec![csr.rows as i64, csr.columns as i64]));
    compressed(group.create_dataset("data").with_f32_data(&csr.values), csr.values.len());
    // scipy wants one integer type for both index arrays: 32 bits where they suffice.
    let boundaries: &[u64] = if csr.indptr.is_empty() { &[0] } else { &csr.indptr };
    let (indices, indptr) = (csr.indices.len(), boundaries.len());
    if i32::try_from(csr.values.len()).is_ok() && i32::try_from(csr.columns).is_ok() {
        let narrow: Vec<i32> = csr.indices.iter().map(|v| *v as i32).collect();
        compressed(group.create_dataset("indices").with_i32_data(&narrow), indices);
        let narrow: Vec<i32> = boundaries.iter().map(|v| *v as i32).collect();
        compressed(group.create_dataset("indptr").with_i32_data(&narrow), indptr);
    } else {
        let wide: Vec<i64> = csr.indices.iter().map(|v| i64::from(*v)).collect();
        compressed(group.create_dataset("indices").with_i64_data(&wide), indices);
        let wide: Vec<i64> = boundaries.iter().map(|v| *v as i64).collect();
        compressed(group.create_dataset("indptr").with_i64_data(&wide), indptr);
    }
    file.add_group(group.finish());
}

fn compressed(dataset: &mut DatasetBuilder, elements: usize) {
    if elements >= COMPRESS_FROM {
        dataset.with_chunks(&[CHUNK.min(elements as u64)]).with_shuffle().with_deflate(4);
    }
}

fn write_table(
    group: &mut GroupBuilder,
    names: &[String],
    columns: &[(String, Column)],
) -> Result<(), String> {
    const INDEX: &str = "_index";
    let mut keys = Keys::default();
    keys.take(INDEX)?;
    let order = columns.iter().map(|(name, _)| keys.take(name)).collect::<Result<Vec<_>, _>>()?;
    group.set_attr("encoding-type", text("dataframe"));
    group.set_attr("encoding-version", text("0.2.0"));
    group.set_attr("_index", text(INDEX));
    group.set_attr("column-order", AttrValue::VarLenStringArray(order.clone()));
    write_texts(group.create_dataset(INDEX), names)?;
    for ((name, column), key) in columns.iter().zip(&order) {
        write_column(group, key, column).map_err(|e| format!("column {name:?}: {e}"))?;
    }
    Ok(())
}

fn write_column(group: &mut GroupBuilder, key: &str, column: &Column) -> Result<(), String> {
    if let Column::Categorical { codes, categories, ordered } = column {
        let mut nested = group.create_group(key);
        nested.set_attr("encoding-type", text("categorical"));
        nested.set_attr("encoding-version", text("0.2.0"));
        nested.set_attr("ordered", AttrValue::U8(u8::from(*ordered)));
        let dataset = nested.create_dataset("codes");
        // pandas keeps codes as narrow as the categories allow.
        match i8::try_from(categories.len()) {
            Ok(_) => {
                dataset.with_i8_data(&codes.iter().map(|c| *c as i8).collect::<Vec<_>>());
            }
            Err(_) => {
                dataset.with_i32_data(codes);
            }
        }
        encoding(dataset, "array", "0.2.0");
        write_texts(nested.create_dataset("categories"), categories)?;
        group.add_group(nested.finish());
        return Ok(());
    }
    let dataset = group.create_dataset(key);
    match column {
        Column::Float(v) => encoding(dataset.with_f64_data(v), "array", "0.2.0"),
        Column::Float32(v) => encoding(dataset.with_f32_data(v), "array", "0.2.0"),
        Column::Integer(v) => encoding(dataset.with_i64_data(v), "array", "0.2.0"),
        Column::Boolean(v) => {
            write_booleans(dataset, v)?;
            encoding(dataset, "array", "0.2.0");
        }
        Column::Text(v) => write_texts(dataset, v)?,
        Column::Categorical { .. } => {}
    }
    Ok(())
}

fn write_obsm(group: &mut GroupBuilder, obsm: &[Embedding], rows: usize) -> Result<(), String> {
    let mut keys = Keys::default();
    for entry in obsm {
        let key = keys.take(&entry.name).map_err(|e| format!("obsm: {e}"))?;
        let dataset = group.create_dataset(&key);
        dataset.with_f64_data(&entry.values).with_shape(&[rows as u64, entry.width as u64]);
        encoding(dataset, "array", "0.2.0");
    }
    Ok(())
}

fn write_map(group: &mut GroupBuilder, entries: &[(String, Value)]) -> Result<(), String> {
    let mut keys = Keys::default();
    for (name, value) in entries {
        let key = keys.take(name)?;
        let named = |e: String| format!("{name:?}: {e}");
        match value {
            Value::Map(nested) => {
                let mut child = dict(group.create_group(&key));
                write_map(&mut child, nested).map_err(named)?;
                group.add_group(child.finish());
            }
            Value::Text(v) => {
                check_text(v).map_err(named)?;
                let dataset = group.create_dataset(&key);
                dataset.with_vlen_strings(&[v]).with_shape(&[]);
                encoding(dataset, "string", "0.2.0");
            }
            Value::Number(v) => {
                let dataset = group.create_dataset(&key);
                encoding(dataset.with_f64_data(&[*v]).with_shape(&[]), "numeric-scalar", "0.2.0");
            }
            Value::Integer(v) => {
                let dataset = group.create_dataset(&key);
                encoding(dataset.with_i64_data(&[*v]).with_shape(&[]), "numeric-scalar", "0.2.0");
            }
            Value::Boolean(v) => {
                let dataset = group.create_dataset(&key);
                write_booleans(dataset, &[*v])?;
                encoding(dataset.with_shape(&[]), "numeric-scalar", "0.2.0");
            }
            Value::Texts(v) => write_texts(group.create_dataset(&key), v).map_err(named)?,
            Value::Numbers(v) => {
                encoding(group.create_dataset(&key).with_f64_data(v), "array", "0.2.0");
            }
            Value::Bytes { shape, values } => {
                let size = shape.iter().try_fold(1u64, |size, extent| size.checked_mul(*extent));
                if size != Some(values.len() as u64) {
                    return Err(named(format!("{} bytes for shape {shape:?}", values.len())));
                }
                let dataset = group.create_dataset(&key);
                dataset.with_u8_data(values).with_shape(shape);
                if let (Some(rows), true) = (shape.first(), values.len() >= COMPRESS_FROM) {
                    let row = (values.len() as u64 / rows).max(1);
                    let mut chunk = shape.clone();
                    chunk[0] = (CHUNK * 4 / row).clamp(1, *rows);
                    dataset.with_chunks(&chunk).with_deflate(4);
                }
                encoding(dataset, "array", "0.2.0");
            }
        }
    }
    Ok(())
}

fn write_texts(dataset: &mut DatasetBuilder, values: &[String]) -> Result<(), String> {
    values.iter().try_for_each(|v| check_text(v))?;
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    encoding(dataset.with_vlen_strings(&values), "string-array", "0.2.0");
    Ok(())
}

/// The enumeration h5py uses for truth values.
fn write_booleans(dataset: &mut DatasetBuilder, values: &[bool]) -> Result<(), String> {
    let datatype = EnumTypeBuilder::with_base(make_i8_type())
        .value("FALSE", 0)
        .value("TRUE", 1)
        .build()
        .map_err(|e| e.to_string())?;
    let bytes = values.iter().map(|v| u8::from(*v)).collect();
    dataset.with_raw_data(datatype, bytes, values.len() as u64);
    Ok(())
}

/// An HDF5 string ends at its first NUL, so one inside would silently cut it.
fn check_text(value: &str) -> Result<(), String> {
    if value.contains('\0') {
        return Err(format!("the text {value:?} holds a NUL character, which HDF5 cannot"));
    }
    Ok(())
}

pub(super) fn encoding(dataset: &mut DatasetBuilder, kind: &str, version: &str) {
    dataset.set_attr("encoding-type", text(kind));
    dataset.set_attr("encoding-version", text(version));
}

fn dict(mut group: GroupBuilder) -> GroupBuilder {
    group.set_attr("encoding-type", text("dict"));
    group.set_attr("encoding-version", text("0.1.0"));
    group
}

fn text(value: &str) -> AttrValue {
    AttrValue::VarLenString(value.to_owned())
}

/// Link names used so far in one group.
#[derive(Default)]
struct Keys(HashSet<String>);

impl Keys {
    /// The link name for `name`: HDF5 splits names at `/` and reads `.` as the group itself.
    fn take(&mut self, name: &str) -> Result<String, String> {
        let key: String =
            name.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
        let key = if key.is_empty() || key == "." { "_".to_owned() } else { key };
        if self.0.insert(key.clone()) {
            Ok(key)
        } else {
            Err(format!("the key {name:?} (written as {key:?}) is taken; rename one of the two"))
        }
    }
}
