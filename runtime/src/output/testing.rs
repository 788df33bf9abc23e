//! A small context and rows for the sinks' tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Context, Given, Row};
use crate::model::{Metadata, Provenance, SCHEMA_VERSION};
use crate::slide::{Level, SlideInfo};
use crate::tiling::Tile;

pub(super) fn context(directory: &Path, genes: &[&str]) -> Context {
    let genes: Vec<String> = genes.iter().map(|g| (*g).to_owned()).collect();
    Context {
        directory: directory.to_owned(),
        stem: "slide".into(),
        genes: genes.clone(),
        heatmap_genes: None,
        model: Metadata {
            schema_version: SCHEMA_VERSION,
            name: "test-model".into(),
            version: "1.0".into(),
            panel: genes,
            tile_px: 224,
            um_per_px: 0.5,
            unit: "ln(1 + counts per 10,000)".into(),
            precision: "float32".into(),
            quantization: None,
            macs_per_tile: 0,
            license: "CC BY 4.0".into(),
            training_data: vec![],
            metrics: vec![],
            gene_pearson: BTreeMap::new(),
            confidence: None,
            provenance: Provenance {
                crate_version: "test".into(),
                config_sha256: "00".into(),
                seed: 0,
                encoder: "none".into(),
            },
        },
        model_sha256: "ab".repeat(32),
        slide_name: "slide.svs".into(),
        slide: SlideInfo {
            format: "PNG".into(),
            vendor: None,
            um_per_px: None,
            objective: None,
            levels: vec![Level {
                width: 2000,
                height: 1500,
                downsample: 1.0,
                codec: "PNG".into(),
                chunk: (2000, 1500),
            }],
            properties: vec![],
        },
        um_per_px: 0.5,
        thumbnail: image::RgbImage::from_pixel(200, 150, image::Rgb([230, 200, 220])),
        thumbnail_downsample: 10.0,
        given: Arc::default(),
    }
}

pub(super) fn row(index: u64, genes: usize) -> Row {
    let side = 100.0;
    let (column, line) = (index % 20, index / 20);
    Row {
        tile: Tile {
            index,
            id: format!("x{column}_y{line}"),
            x: column as f64 * side,
            y: line as f64 * side + 0.25,
            side,
        },
        tissue: 0.75,
        confidence: 0.1 + index as f32 / 1000.0,
        expression: (0..genes).map(|g| (index as f32 + 1.0) / (g as f32 + 3.0)).collect(),
    }
}

/// A context whose tiles come from a file with two columns beside the positions.
pub(super) fn context_with_given(directory: &Path, genes: &[&str]) -> Context {
    let rows = (0..3).map(|i| vec![format!("0{i}"), format!("zone \"{i}\"")]).collect();
    let given = Given { columns: vec!["x".into(), "region/part".into()], rows };
    Context { given: Arc::new(given), ..context(directory, genes) }
}
