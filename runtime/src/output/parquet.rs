//! The tile table as Parquet: id, place and size in level-0 px (float64), tissue and confidence,
//! then one float32 column a gene. Snappy, and readable by every Parquet reader (plain encoding).
//!
//! The file's key-value metadata says where the numbers come from (`diffbulk.model`,
//! `diffbulk.model_sha256`, `diffbulk.um_per_px` and so on).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, PrimitiveTypeBuilder, Type};

use super::atomic::{AtomicFile, explain_any};
use super::columns::{FIXED, Names, check, provenance};
use super::{Context, Given, Row, Sink};
use crate::{Error, Result};

/// Bytes of gene values kept in memory before a row group is written.
const GROUP_BYTES: usize = 64 << 20;

/// Rows of a group at most, so that readers can skip by place.
const GROUP_ROWS: usize = 1 << 16;

struct ParquetSink {
    writer: SerializedFileWriter<AtomicFile>,
    path: PathBuf,
    group_rows: usize,
    ids: Vec<ByteArray>,
    /// x, y, width, height.
    places: [Vec<f64>; 4],
    /// tissue and confidence.
    quality: [Vec<f32>; 2],
    /// One list a column of the user's file of tile centres.
    given: Vec<Vec<ByteArray>>,
    given_values: Arc<Given>,
    /// One list a gene.
    expression: Vec<Vec<f32>>,
}

pub(super) fn open(context: &Context) -> Result<Box<dyn Sink>> {
    let path = context.file(".parquet");
    let file = AtomicFile::create(&path)?;
    let genes = context.genes.len();
    let writer = schema(context)
        .and_then(|schema| {
            SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties(context)))
        })
        .map_err(|e| failure(&path, e))?;
    Ok(Box::new(ParquetSink {
        writer,
        path,
        group_rows: (GROUP_BYTES / (4 * genes.max(1))).clamp(1, GROUP_ROWS),
        ids: Vec::new(),
        places: Default::default(),
        quality: Default::default(),
        given: vec![Vec::new(); context.given.columns.len()],
        given_values: context.given.clone(),
        expression: vec![Vec::new(); genes],
    }))
}

fn schema(context: &Context) -> parquet::errors::Result<Type> {
    let [id, places @ .., tissue, confidence] = FIXED;
    let text = |name| {
        column(name, Physical::BYTE_ARRAY)
            .with_logical_type(Some(LogicalType::String))
            .with_converted_type(ConvertedType::UTF8)
            .build()
            .map(Arc::new)
    };
    let mut fields = vec![text(id)?];
    for name in places {
        fields.push(Arc::new(column(name, Physical::DOUBLE).build()?));
    }
    for name in [tissue, confidence] {
        fields.push(Arc::new(column(name, Physical::FLOAT).build()?));
    }
    let names = Names::new(context);
    for name in &names.given {
        fields.push(text(name)?);
    }
    for name in &names.genes {
        fields.push(Arc::new(column(name, Physical::FLOAT).build()?));
    }
    Type::group_type_builder("tiles").with_fields(fields).build()
}

fn column(name: &str, physical: Physical) -> PrimitiveTypeBuilder<'_> {
    Type::primitive_type_builder(name, physical).with_repetition(Repetition::REQUIRED)
}

fn properties(context: &Context) -> WriterProperties {
    let notes = provenance(context)
        .into_iter()
        .map(|(key, value)| KeyValue::new(format!("diffbulk.{key}"), value))
        .collect();
    WriterProperties::builder()
        .set_created_by(format!("diffbulk version {}", crate::VERSION))
        .set_compression(Compression::SNAPPY)
        // Predictions hardly repeat and neither do ids: a dictionary only costs.
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled(ColumnPath::from("width"), true)
        .set_column_dictionary_enabled(ColumnPath::from("height"), true)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(notes))
        .build()
}

impl ParquetSink {
    fn write_group(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let write = |writer: &mut SerializedFileWriter<AtomicFile>| {
            let mut group = writer.next_row_group()?;
            write_column::<ByteArrayType>(&mut group, &self.ids)?;
            for values in &self.places {
                write_column::<DoubleType>(&mut group, values)?;
            }
            for values in &self.quality {
                write_column::<FloatType>(&mut group, values)?;
            }
            for values in &self.given {
                write_column::<ByteArrayType>(&mut group, values)?;
            }
            for values in &self.expression {
                write_column::<FloatType>(&mut group, values)?;
            }
            group.close().map(drop)
        };
        write(&mut self.writer).map_err(|e| failure(&self.path, e))?;
        self.ids.clear();
        self.places.iter_mut().for_each(Vec::clear);
        self.quality.iter_mut().for_each(Vec::clear);
        self.given.iter_mut().for_each(Vec::clear);
        self.expression.iter_mut().for_each(Vec::clear);
        Ok(())
    }
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, AtomicFile>,
    values: &[T::T],
) -> parquet::errors::Result<()> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".into()));
    };
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

impl Sink for ParquetSink {
    fn push(&mut self, row: &Row) -> Result<()> {
        check(row, self.expression.len(), &self.path)?;
        let tile = &row.tile;
        self.ids.push(ByteArray::from(tile.id.as_str()));
        for (column, value) in self.places.iter_mut().zip([tile.x, tile.y, tile.side, tile.side]) {
            column.push(value);
        }
        for (column, value) in self.quality.iter_mut().zip([row.tissue, row.confidence]) {
            column.push(value);
        }
        for (column, value) in self.given.iter_mut().zip(self.given_values.values(tile)) {
            column.push(ByteArray::from(value));
        }
        for (column, value) in self.expression.iter_mut().zip(&row.expression) {
            column.push(*value);
        }
        if self.ids.len() >= self.group_rows { self.write_group() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>> {
        self.write_group()?;
        let Self { writer, path, .. } = *self;
        let file = writer.into_inner().map_err(|e| failure(&path, e))?;
        Ok(vec![file.commit()?])
    }
}

fn failure(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(cause) => explain_any(path, cause),
        other => Error::output(path, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::super::testing;
    use super::*;

    #[test]
    fn rows_and_origin_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2", "HLA-A/B.1", "x"]);
        let mut sink = open(&context).unwrap();
        for index in 0..50 {
            sink.push(&testing::row(index, 3)).unwrap();
        }
        let path = sink.finish().unwrap().remove(0);
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let meta = reader.metadata().file_metadata();
        assert_eq!(meta.num_rows(), 50);
        let names: Vec<_> =
            meta.schema().get_fields().iter().map(|f| f.name().to_owned()).collect();
        assert_eq!(names[..7], FIXED.map(str::to_owned));
        assert_eq!(names[7..], ["ERBB2", "HLA-A/B.1", "x_gene"]);
        let notes = meta.key_value_metadata().unwrap();
        let sha = notes.iter().find(|n| n.key == "diffbulk.model_sha256").unwrap();
        assert_eq!(sha.value.as_deref(), Some("ab".repeat(32).as_str()));
        let row = reader.get_row_iter(None).unwrap().nth(21).unwrap().unwrap();
        assert_eq!(row.get_string(0).unwrap(), "x1_y1");
        assert_eq!(row.get_double(2).unwrap(), 100.25);
        assert_eq!(row.get_float(8).unwrap(), testing::row(21, 3).expression[1]);
    }

    #[test]
    fn the_users_columns_are_text_before_the_genes() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context_with_given(directory.path(), &["ERBB2"]);
        let mut sink = open(&context).unwrap();
        (0..3).for_each(|index| sink.push(&testing::row(index, 1)).unwrap());
        let path = sink.finish().unwrap().remove(0);
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let row = reader.get_row_iter(None).unwrap().nth(1).unwrap().unwrap();
        assert_eq!(row.get_string(7).unwrap(), "01");
        assert_eq!(row.get_string(8).unwrap(), "zone \"1\"");
        assert_eq!(row.get_float(9).unwrap(), testing::row(1, 1).expression[0]);
    }

    #[test]
    fn big_panels_make_several_groups() {
        let directory = tempfile::tempdir().unwrap();
        let genes: Vec<String> = (0..30).map(|g| format!("G{g}")).collect();
        let genes: Vec<&str> = genes.iter().map(String::as_str).collect();
        let context = testing::context(directory.path(), &genes);
        let path = context.file(".parquet");
        let writer = SerializedFileWriter::new(
            AtomicFile::create(&path).unwrap(),
            Arc::new(schema(&context).unwrap()),
            Arc::new(properties(&context)),
        )
        .unwrap();
        let mut sink = Box::new(ParquetSink {
            writer,
            path: path.clone(),
            group_rows: 16,
            ids: Vec::new(),
            places: Default::default(),
            quality: Default::default(),
            given: Vec::new(),
            given_values: Arc::default(),
            expression: vec![Vec::new(); 30],
        });
        for index in 0..40 {
            sink.push(&testing::row(index, 30)).unwrap();
            assert!(sink.ids.len() < 16);
        }
        sink.finish().unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 3);
        let ids: Vec<_> = reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| row.unwrap().get_string(0).unwrap().clone())
            .collect();
        assert_eq!(ids[39], "x19_y1");
    }
}
