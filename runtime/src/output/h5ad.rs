//! AnnData for scanpy and squidpy: tiles x genes.
//!
//! `obsm['spatial']` holds tile centres in level-0 px. `uns['diffbulk']` says where the numbers come
//! from; `uns['spatial']` holds the slide's overview and scale in the layout of Space Ranger, so
//! that `squidpy.pl.spatial_scatter` and `scanpy.pl.spatial` draw over the slide as they are.

use std::path::PathBuf;

use super::columns::{Names, check, provenance};
use super::{Context, Row, Sink};
use crate::Result;
use crate::anndata::{AnnData, Column, Embedding, RowSpool, Value};

struct H5adSink {
    path: PathBuf,
    context: Context,
    rows: RowSpool,
    ids: Vec<String>,
    x: Vec<f64>,
    y: Vec<f64>,
    side: Vec<f64>,
    centres: Vec<f64>,
    tissue: Vec<f32>,
    confidence: Vec<f32>,
    /// One list a column of the user's file.
    given: Vec<Vec<String>>,
}

pub(super) fn open(context: &Context) -> Result<Box<dyn Sink>> {
    let path = context.file(".h5ad");
    Ok(Box::new(H5adSink {
        rows: RowSpool::create(&path, context.genes.len())?,
        path,
        context: context.clone(),
        ids: Vec::new(),
        x: Vec::new(),
        y: Vec::new(),
        side: Vec::new(),
        centres: Vec::new(),
        tissue: Vec::new(),
        confidence: Vec::new(),
        given: vec![Vec::new(); context.given.columns.len()],
    }))
}

impl Sink for H5adSink {
    fn push(&mut self, row: &Row) -> Result<()> {
        check(row, self.context.genes.len(), &self.path)?;
        self.rows.push(&row.expression)?;
        let tile = &row.tile;
        let (cx, cy) = tile.centre();
        // HDF5 strings end at a NUL; an id cannot have one in any other table either.
        self.ids.push(tile.id.replace('\0', ""));
        self.x.push(tile.x);
        self.y.push(tile.y);
        self.side.push(tile.side);
        self.centres.extend([cx, cy]);
        self.tissue.push(row.tissue);
        self.confidence.push(row.confidence);
        for (column, value) in self.given.iter_mut().zip(self.context.given.values(tile)) {
            column.push(value.replace('\0', ""));
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>> {
        let Self { path, context, rows, ids, x, y, side, centres, tissue, confidence, given } =
            *self;
        let uns = vec![
            ("diffbulk".to_owned(), notes(&context)),
            ("spatial".to_owned(), overview(&context, &side)),
        ];
        let scale = vec![context.um_per_px; ids.len()];
        let pearson = context
            .genes
            .iter()
            .map(|gene| context.model.gene_pearson.get(gene).copied().unwrap_or(f64::NAN))
            .collect();
        let mut obs: Vec<(String, Column)> = vec![
            ("x".into(), Column::Float(x)),
            ("y".into(), Column::Float(y)),
            ("width".into(), Column::Float(side.clone())),
            ("height".into(), Column::Float(side)),
            ("um_per_px".into(), Column::Float(scale)),
            ("tissue".into(), Column::Float32(tissue)),
            ("confidence".into(), Column::Float32(confidence)),
        ];
        // A slash would make a group of a name.
        let names =
            Names::new(&context).given.into_iter().map(|name| name.replace(['/', '\0'], "_"));
        obs.extend(names.zip(given.into_iter().map(Column::Text)));
        let tables = AnnData {
            obs_names: ids,
            obs,
            var_names: context.genes,
            var: vec![("held_out_pearson".into(), Column::Float(pearson))],
            obsm: vec![Embedding { name: "spatial".into(), width: 2, values: centres }],
            uns,
            ..AnnData::default()
        };
        rows.write_h5ad(&path, &tables)?;
        Ok(vec![path])
    }
}

/// Where the numbers come from; what is a number stays one.
fn notes(context: &Context) -> Value {
    let entries = provenance(context).into_iter().map(|(key, value)| {
        let value = match key {
            "um_per_px" => Value::Number(context.um_per_px),
            "model_um_per_px" => Value::Number(context.model.um_per_px),
            "tile_px" => Value::Integer(i64::from(context.model.tile_px)),
            _ => Value::Text(value.replace('\0', "")),
        };
        (key.to_owned(), value)
    });
    Value::Map(entries.collect())
}

/// The overview as Space Ranger's `hires` image. The spot diameter is the median tile side.
fn overview(context: &Context, side: &[f64]) -> Value {
    let mut sorted = side.to_vec();
    sorted.sort_by(f64::total_cmp);
    let diameter = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let image = &context.thumbnail;
    let map = |entries: Vec<(&str, Value)>| {
        Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let pixels = Value::Bytes {
        shape: vec![u64::from(image.height()), u64::from(image.width()), 3],
        values: image.as_raw().clone(),
    };
    let scales = map(vec![
        ("spot_diameter_fullres", Value::Number(diameter)),
        ("tissue_hires_scalef", Value::Number(context.thumbnail_downsample.recip())),
    ]);
    map(vec![(
        &context.stem,
        map(vec![
            ("images", map(vec![("hires", pixels)])),
            ("metadata", map(vec![("um_per_px", Value::Number(context.um_per_px))])),
            ("scalefactors", scales),
        ]),
    )])
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::anndata::Matrix;

    #[test]
    fn rows_read_back_with_their_places() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2", "HLA-A/B"]);
        let mut sink = open(&context).unwrap();
        for index in 0..30 {
            sink.push(&testing::row(index, 2)).unwrap();
        }
        let files = sink.finish().unwrap();
        assert_eq!(files, [directory.path().join("slide.h5ad")]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let data = AnnData::read_h5ad(&files[0]).unwrap();
        assert_eq!(data.var_names, context.genes);
        let Matrix::Dense { rows: 30, columns: 2, values } = &data.x else { panic!() };
        assert_eq!(values[2 * 21..2 * 22], testing::row(21, 2).expression);
        assert_eq!(data.obs_names[21], "x1_y1");
        assert_eq!(data.embedding("spatial").unwrap().values[42..44], [150.0, 150.25]);
        assert_eq!(data.obs_column("um_per_px"), Some(&Column::Float(vec![0.5; 30])));
        let Some((_, Value::Map(notes))) = data.uns.iter().find(|(k, _)| k == "diffbulk") else {
            panic!()
        };
        assert!(notes.contains(&("model".to_owned(), Value::Text("test-model".into()))));
    }

    #[test]
    fn the_users_columns_are_of_the_observations() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context_with_given(directory.path(), &["ERBB2"]);
        let mut sink = open(&context).unwrap();
        (0..3).for_each(|index| sink.push(&testing::row(index, 1)).unwrap());
        let data = AnnData::read_h5ad(&sink.finish().unwrap()[0]).unwrap();
        let text = |column: &str| match data.obs_column(column) {
            Some(Column::Text(values)) => values.clone(),
            other => panic!("{column}: {other:?}"),
        };
        assert_eq!(text("x_given"), ["00", "01", "02"]);
        assert_eq!(text("region_part")[2], "zone \"2\"");
    }
}
