//! A model is one ONNX file: its metadata, its checks, its signature.
//!
//! [`OnnxFile`] reads any ONNX file safely; [`Model`] is one whose metadata and signature are a
//! DiffBulk predictor's; [`Metadata`] is what travels inside it and [`graph`] describes its graph.
//! [`locate`] finds the file when the user names none. Which engine runs it is not decided here.

mod confidence;
mod dequantise;
pub mod graph;
pub mod locate;
mod metadata;
mod onnx;
mod props;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod typed;
pub mod widen;

use std::path::Path;

pub use confidence::{IMAGE_STATISTICS, image_statistics};
pub use graph::GraphSummary;
pub use metadata::*;
pub use onnx::{Dim, MAX_FILE_BYTES, OnnxFile, Value, data_type_name, pb};
pub use props::PropsError;

pub(crate) use onnx::hex;

use crate::{Error, Result};

/// Name of a model's input, uint8 [N, S, S, 3], RGB.
pub const INPUT: &str = "image";

/// Name of a model's output, float32 [N, G].
pub const OUTPUT: &str = "expression";

/// A DiffBulk predictor: an ONNX file whose metadata and signature fit together.
#[derive(Debug, Clone)]
pub struct Model {
    file: OnnxFile,
    metadata: Metadata,
}

impl Model {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// When the file is no whole ONNX file, carries no (or newer, or contradictory) DiffBulk
    /// metadata, or its input or output are not what the metadata says.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(OnnxFile::open(path)?)
    }

    /// Takes an ONNX file that is already in memory.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_file(file: OnnxFile) -> Result<Self> {
        let metadata = Metadata::from_props(file.props())
            .map_err(|problem| Error::model(file.path(), problem.to_string()))?;
        check_signature(&file, &metadata)?;
        Ok(Self { file, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The ONNX file itself.
    pub fn file(&self) -> &OnnxFile {
        &self.file
    }

    /// Takes out the graph and its weights, which an engine that has loaded them no longer needs.
    /// Metadata and identity stay.
    pub(crate) fn release_graph(&mut self) -> pb::ModelProto {
        self.file.release_graph()
    }

    /// What travels inside it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// SHA-256 of the file, lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        self.file.sha256()
    }

    /// What its graph is made of.
    pub fn summary(&self) -> Result<GraphSummary> {
        GraphSummary::of(&self.file)
    }

    /// Shape of the input for one tile: [1, S, S, 3].
    pub fn input_shape(&self) -> [usize; 4] {
        let side = self.metadata.tile_px as usize;
        [1, side, side, 3]
    }

    /// Side of the square tile on the slide in micrometres.
    pub fn tile_um(&self) -> f64 {
        f64::from(self.metadata.tile_px) * self.metadata.um_per_px
    }
}

fn check_signature(file: &OnnxFile, metadata: &Metadata) -> Result<()> {
    let refuse = |problem: String| Error::model(file.path(), problem);
    let side = metadata.tile_px as usize;
    let wanted = format!("`{INPUT}` uint8 [N, {side}, {side}, 3]");
    let inputs = file.inputs()?;
    let [input] = inputs.as_slice() else {
        let names: Vec<String> = inputs.iter().map(Value::to_string).collect();
        return Err(refuse(format!(
            "it has {} inputs ({}); a DiffBulk model has one, {wanted}",
            inputs.len(),
            names.join(", ")
        )));
    };
    let shape_fits = match input.shape.as_deref() {
        Some([batch, height, width, channels]) => {
            is_batch(batch)
                && *height == Dim::Fixed(side)
                && *width == Dim::Fixed(side)
                && *channels == Dim::Fixed(3)
        }
        _ => false,
    };
    if input.name != INPUT || !input.is(pb::tensor_proto::DataType::Uint8) || !shape_fits {
        return Err(refuse(format!(
            "its input is {input}, but its metadata asks for {wanted}; export it again"
        )));
    }
    let genes = metadata.panel.len();
    let wanted = format!("`{OUTPUT}` float [N, {genes}]");
    let outputs = file.outputs()?;
    let [output] = outputs.as_slice() else {
        return Err(refuse(format!(
            "it has {} outputs; a DiffBulk model has one, {wanted}",
            outputs.len()
        )));
    };
    if output.name != OUTPUT || !output.is(pb::tensor_proto::DataType::Float) {
        return Err(refuse(format!("its output is {output}, not {wanted}; export it again")));
    }
    let shape_fits = match output.shape.as_deref() {
        Some([batch, width]) => is_batch(batch) && *width == Dim::Fixed(genes),
        _ => false,
    };
    if !shape_fits {
        return Err(refuse(format!(
            "its output is {output}, but its panel has {genes} genes ({wanted}); export it again"
        )));
    }
    Ok(())
}

/// True for a batch dimension that one tile at a time fits into.
fn is_batch(dim: &Dim) -> bool {
    matches!(dim, Dim::Symbol(_) | Dim::Fixed(1))
}

#[cfg(test)]
mod tests {
    use super::testing::{self, tiny_model};
    use super::*;

    fn open(proto: pb::ModelProto) -> Result<Model> {
        Model::from_file(OnnxFile::from_proto(proto, Path::new("m.onnx"))?)
    }

    fn refused(proto: pb::ModelProto) -> String {
        open(proto).unwrap_err().to_string()
    }

    #[test]
    fn a_model_opens_from_disk_and_tells_about_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.onnx");
        let metadata = testing::metadata(8, &["A", "B", "C"]);
        testing::write(&tiny_model(&metadata), &path);
        let model = Model::open(&path).unwrap();
        assert_eq!(model.metadata(), &metadata);
        assert_eq!(model.path(), path);
        assert_eq!(model.input_shape(), [1, 8, 8, 3]);
        assert_eq!(model.tile_um(), 8.0 * metadata.um_per_px);
        let on_disk = std::fs::read(&path).unwrap();
        use sha2::Digest;
        assert_eq!(model.sha256(), hex(&sha2::Sha256::digest(on_disk)));
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = Model::open(Path::new("nowhere/x.onnx")).unwrap_err().to_string();
        assert!(message.contains("nowhere/x.onnx"), "{message}");
    }

    #[test]
    fn an_onnx_file_without_our_metadata_is_told_what_it_lacks() {
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.metadata_props.clear();
        let message = refused(proto);
        assert!(message.contains("diffbulk-train export"), "{message}");
        assert!(message.contains("diffbulk.panel"), "{message}");
    }

    #[test]
    fn another_input_is_refused() {
        // Metadata that asks for another tile side than the graph takes.
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.metadata_props = testing::props(&testing::metadata(16, &["A"]));
        let message = refused(proto);
        assert!(message.contains("uint8 [N, 8, 8, 3]"), "{message}");
        assert!(message.contains("uint8 [N, 16, 16, 3]"), "{message}");

        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        testing::set_type(
            &mut proto.graph.as_mut().unwrap().input[0],
            pb::tensor_proto::DataType::Float,
        );
        assert!(refused(proto).contains("`image` float"));
    }

    #[test]
    fn another_panel_size_than_the_output_is_refused() {
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.metadata_props = testing::props(&testing::metadata(8, &["A", "B"]));
        let message = refused(proto);
        assert!(message.contains("2 genes"), "{message}");
    }
}
