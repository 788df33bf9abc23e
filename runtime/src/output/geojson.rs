//! Tiles as QuPath reads them: a GeoJSON FeatureCollection of closed squares in level-0 px.
//!
//! Each feature is a QuPath tile object with its measurements; one feature a line, so the file can
//! also be searched line by line. A value that is not finite is left out, since JSON has none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::atomic::{AtomicFile, explain};
use super::columns::{Names, check, provenance};
use super::{Context, Given, Row, Sink};
use crate::{Error, Result};

struct GeoJsonSink {
    file: AtomicFile,
    path: PathBuf,
    names: Names,
    given: Arc<Given>,
    rows: u64,
    line: Vec<u8>,
}

pub(super) fn open(context: &Context) -> Result<Box<dyn Sink>> {
    let path = context.file(".geojson");
    let mut file = AtomicFile::create(&path)?;
    let mut head = b"{\"type\":\"FeatureCollection\",\"diffbulk\":".to_vec();
    serde_json::Serializer::new(&mut head)
        .collect_map(provenance(context))
        .map_err(|e| Error::output(&path, e.to_string()))?;
    head.extend_from_slice(b",\"features\":[");
    file.put(&head)?;
    let (names, given) = (Names::new(context), context.given.clone());
    Ok(Box::new(GeoJsonSink { file, path, names, given, rows: 0, line: Vec::new() }))
}

#[derive(serde::Serialize)]
struct Feature<'a> {
    r#type: &'static str,
    geometry: Geometry,
    properties: Properties<'a>,
}

#[derive(serde::Serialize)]
struct Geometry {
    r#type: &'static str,
    coordinates: [[[Number; 2]; 5]; 1],
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Properties<'a> {
    object_type: &'static str,
    name: &'a str,
    is_locked: bool,
    /// What the user's file says of the tile, as QuPath's own text entries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
    measurements: Measurements<'a>,
}

struct Measurements<'a> {
    genes: &'a [String],
    row: &'a Row,
}

impl Serialize for Measurements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let fixed = [("tissue", self.row.tissue), ("confidence", self.row.confidence)];
        let genes = self.genes.iter().map(String::as_str).zip(self.row.expression.iter().copied());
        for (name, value) in fixed.into_iter().chain(genes) {
            if value.is_finite() {
                map.serialize_entry(name, &value)?;
            }
        }
        map.end()
    }
}

/// A coordinate, without a fraction where it has none.
#[derive(Clone, Copy)]
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        // Beyond 2^53 a float is not every whole number any more.
        if self.0.fract() == 0.0 && self.0.abs() < 9e15 {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

impl Sink for GeoJsonSink {
    fn push(&mut self, row: &Row) -> Result<()> {
        check(row, self.names.genes.len(), &self.path)?;
        let (left, top) = (row.tile.x, row.tile.y);
        let (right, bottom) = (left + row.tile.side, top + row.tile.side);
        let corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
        if corners.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
            return Err(Error::output(
                &self.path,
                format!("tile {} has no finite position", row.tile.id),
            ));
        }
        let feature = Feature {
            r#type: "Feature",
            geometry: Geometry {
                r#type: "Polygon",
                coordinates: [corners.map(|(x, y)| [Number(x), Number(y)])],
            },
            properties: Properties {
                object_type: "tile",
                name: &row.tile.id,
                is_locked: true,
                metadata: self
                    .names
                    .given
                    .iter()
                    .map(String::as_str)
                    .zip(self.given.values(&row.tile))
                    .collect(),
                measurements: Measurements { genes: &self.names.genes, row },
            },
        };
        self.line.clear();
        self.line.extend_from_slice(if self.rows == 0 { b"\n" } else { b",\n" });
        serde_json::to_writer(&mut self.line, &feature)
            .map_err(|e| explain(&self.path, e.into()))?;
        self.file.put(&self.line)?;
        self.rows += 1;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>> {
        self.file.put(b"\n]}\n")?;
        Ok(vec![self.file.commit()?])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::testing;
    use super::*;

    fn written(context: &Context, rows: &[Row]) -> Value {
        let mut sink = open(context).unwrap();
        rows.iter().for_each(|row| sink.push(row).unwrap());
        let path = sink.finish().unwrap().remove(0);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_tile_is_a_closed_square_with_measurements() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["ERBB2"]);
        let json = written(&context, &[testing::row(0, 1), testing::row(21, 1)]);
        assert_eq!(json["type"], "FeatureCollection");
        assert_eq!(json["diffbulk"]["model"], "test-model");
        let features = json["features"].as_array().unwrap();
        assert_eq!(features.len(), 2);
        let tile = &features[1];
        assert_eq!(tile["properties"]["objectType"], "tile");
        assert_eq!(tile["properties"]["isLocked"], true);
        assert_eq!(tile["properties"]["name"], "x1_y1");
        assert_eq!(tile["properties"]["measurements"]["tissue"], 0.75);
        let value = tile["properties"]["measurements"]["ERBB2"].as_f64().unwrap();
        assert_eq!(value as f32, 22.0 / 3.0);
        let ring = tile["geometry"]["coordinates"][0].as_array().unwrap();
        assert_eq!(ring.len(), 5);
        assert_eq!(ring[0], ring[4]);
        assert_eq!(ring[2], serde_json::json!([200, 200.25]));
    }

    #[test]
    fn the_users_columns_are_metadata() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context_with_given(directory.path(), &["ERBB2"]);
        let json = written(&context, &[testing::row(1, 1)]);
        let metadata = &json["features"][0]["properties"]["metadata"];
        assert_eq!(*metadata, serde_json::json!({"x_given": "01", "region/part": "zone \"1\""}));
    }

    #[test]
    fn what_json_cannot_hold_is_left_out_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let context = testing::context(directory.path(), &["A", "B"]);
        let mut row = testing::row(0, 2);
        row.expression = vec![f32::NAN, f32::INFINITY];
        let json = written(&context, std::slice::from_ref(&row));
        let measurements = &json["features"][0]["properties"]["measurements"];
        assert_eq!(measurements.as_object().unwrap().len(), 2);
        row.tile.x = f64::NAN;
        assert!(open(&context).unwrap().push(&row).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ids_and_genes_read_back(id in any::<String>(), gene in any::<String>()) {
            let directory = tempfile::tempdir().unwrap();
            let context = testing::context(directory.path(), &[&gene, "HLA-A/B\"\\"]);
            let mut row = testing::row(0, 2);
            row.tile.id = id.clone();
            let json = written(&context, &[row]);
            let properties = &json["features"][0]["properties"];
            prop_assert_eq!(&properties["name"], &id);
            let column = &Names::new(&context).genes[0];
            prop_assert_eq!(properties["measurements"][column].as_f64().unwrap() as f32, 1.0 / 3.0);
        }
    }
}
