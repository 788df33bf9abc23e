//! Reading an ONNX file: bytes in, a checked protobuf out.
//!
//! The checks here are what any ONNX file needs before another library may look at it: that it is
//! ONNX at all, that it is whole in itself (no external data), and that every tensor holds as many
//! values as its shape says. What makes it a DiffBulk model is checked in [`super::Model`].

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
pub use tract_onnx::pb;

use super::stream::Stream;
use crate::{Error, Result};

/// Largest file that is read: the protobuf format itself ends at 2 GiB.
pub const MAX_FILE_BYTES: u64 = (1 << 31) - 1;

/// Deepest nesting of graphs (If, Loop and Scan bodies) that is looked into.
const MAX_GRAPH_DEPTH: usize = 8;

/// An ONNX file in memory, decoded and checked.
#[derive(Debug, Clone)]
pub struct OnnxFile {
    path: PathBuf,
    sha256: String,
    bytes: u64,
    proto: pb::ModelProto,
}

impl OnnxFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is no ONNX file, keeps tensors in other files, or contradicts
    /// itself.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::model(path, "there is no such file; check the path to the .onnx file")
            }
            _ => Error::io(path)(error),
        })?;
        let about = file.metadata().map_err(Error::io(path))?;
        let length = about.len();
        let too_large = || {
            Error::model(
                path,
                format!(
                    "{length} bytes is more than an ONNX file can hold ({MAX_FILE_BYTES}); give \
                     the model's own .onnx file"
                ),
            )
        };
        if length > MAX_FILE_BYTES {
            return Err(too_large());
        }
        if about.is_file() {
            return Self::from_stream(Stream::new(file, length as usize), length, path);
        }
        let mut bytes = vec![];
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(too_large());
        }
        Self::from_bytes(&bytes, path)
    }

    fn from_stream(mut stream: Stream<File>, bytes: u64, path: &Path) -> Result<Self> {
        let proto = pb::ModelProto::decode(&mut stream);
        let hash = stream.finish().map_err(Error::io(path))?;
        let proto = proto.map_err(|error| undecodable(error, path))?;
        Self::checked(proto, hex(&hash.finalize()), bytes, path)
    }

    /// Decodes and checks `bytes`; `path` is only used to name the file in errors.
    ///
    /// # Errors
    /// As [`OnnxFile::open`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let proto = pb::ModelProto::decode(bytes).map_err(|error| undecodable(error, path))?;
        let sha256 = hex(&Sha256::digest(bytes));
        Self::checked(proto, sha256, bytes.len() as u64, path)
    }

    /// Checks a model built in memory; `path` is only used to name it in errors.
    ///
    /// # Errors
    /// As [`OnnxFile::open`].
    pub fn from_proto(proto: pb::ModelProto, path: &Path) -> Result<Self> {
        let bytes = proto.encode_to_vec();
        let sha256 = hex(&Sha256::digest(&bytes));
        Self::checked(proto, sha256, bytes.len() as u64, path)
    }

    fn checked(proto: pb::ModelProto, sha256: String, bytes: u64, path: &Path) -> Result<Self> {
        check(&proto).map_err(|problem| Error::model(path, problem))?;
        Ok(Self { path: path.to_owned(), sha256, bytes, proto })
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the whole file, lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes out the graph. What asks for it afterwards is told that there is none.
    pub(super) fn release_graph(&mut self) -> pb::ModelProto {
        let graph = self.proto.graph.take();
        pb::ModelProto { graph, ..self.proto.clone() }
    }

    /// The decoded protobuf.
    pub fn proto(&self) -> &pb::ModelProto {
        &self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> Result<&pb::GraphProto> {
        self.proto.graph.as_ref().ok_or_else(|| Error::model(&self.path, "it has no graph"))
    }

    /// The `metadata_props` entries, key and value, in file order.
    pub fn props(&self) -> impl Iterator<Item = (&str, &str)> {
        self.proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()))
    }

    /// The value of one `metadata_props` entry.
    pub fn prop(&self, key: &str) -> Option<&str> {
        self.props().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The graph's inputs that a caller has to feed (initializers that are also listed as inputs
    /// left out).
    pub fn inputs(&self) -> Result<Vec<Value>> {
        let graph = self.graph()?;
        let constants: HashSet<&str> =
            graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        graph
            .input
            .iter()
            .filter(|input| !constants.contains(input.name.as_str()))
            .map(|input| self.value(input))
            .collect()
    }

    /// The graph's outputs.
    pub fn outputs(&self) -> Result<Vec<Value>> {
        self.graph()?.output.iter().map(|output| self.value(output)).collect()
    }

    fn value(&self, info: &pb::ValueInfoProto) -> Result<Value> {
        let Some(pb::type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            return Err(Error::model(
                &self.path,
                format!("graph value `{}` is not a tensor", info.name),
            ));
        };
        let shape = tensor.shape.as_ref().map(|shape| {
            shape
                .dim
                .iter()
                .map(|dim| match &dim.value {
                    Some(pb::tensor_shape_proto::dimension::Value::DimValue(n)) => {
                        usize::try_from(*n).map_or_else(|_| Dim::Symbol(n.to_string()), Dim::Fixed)
                    }
                    Some(pb::tensor_shape_proto::dimension::Value::DimParam(name)) => {
                        Dim::Symbol(name.clone())
                    }
                    None => Dim::Symbol("?".into()),
                })
                .collect()
        });
        Ok(Value { name: info.name.clone(), data_type: tensor.elem_type, shape })
    }
}

/// One dimension of a declared shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name, for example `N`, or `?` where the file says nothing.
    Symbol(String),
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Symbol(name) => f.write_str(name),
        }
    }
}

/// A declared input or output of the graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name.
    pub name: String,
    /// ONNX element type number.
    pub data_type: i32,
    /// Its shape, where the file tells.
    pub shape: Option<Vec<Dim>>,
}

impl Value {
    /// True when the elements are of type `data_type`.
    pub fn is(&self, data_type: pb::tensor_proto::DataType) -> bool {
        self.data_type == data_type as i32
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.name, data_type_name(self.data_type))?;
        match &self.shape {
            Some(shape) => {
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, " [{}]", dims.join(", "))
            }
            None => f.write_str(" of unknown shape"),
        }
    }
}

/// Name of an ONNX element type, in lower case.
pub fn data_type_name(data_type: i32) -> String {
    pb::tensor_proto::DataType::try_from(data_type)
        .map_or_else(|_| format!("type {data_type}"), |t| t.as_str_name().to_lowercase())
}

/// Lower-case hexadecimal of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn undecodable(error: prost::DecodeError, path: &Path) -> Error {
    Error::model(
        path,
        format!("not an ONNX file, or a damaged one ({error}); give a whole .onnx file"),
    )
}

fn check(proto: &pb::ModelProto) -> Result<(), String> {
    let graph = match &proto.graph {
        Some(graph) if proto.ir_version > 0 && !proto.opset_import.is_empty() => graph,
        _ => {
            return Err("not an ONNX file: it has no graph, IR version or operator set; give a \
                        whole .onnx file"
                .into());
        }
    };
    if graph.node.is_empty() {
        return Err("its graph is empty; export the model again".into());
    }
    if !proto.functions.is_empty() {
        return Err("it defines its own functions, which are not supported; inline them when \
                    exporting"
            .into());
    }
    check_graph(graph, &HashSet::new(), 0)
}

/// Checks tensors and that every value that is used is defined before it is.
fn check_graph(
    graph: &pb::GraphProto,
    outer: &HashSet<String>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_GRAPH_DEPTH {
        return Err(format!("its graphs are nested deeper than {MAX_GRAPH_DEPTH}"));
    }
    if !graph.sparse_initializer.is_empty() {
        return Err("it has sparse tensors, which are not supported; export dense ones".into());
    }
    let mut defined = outer.clone();
    defined.extend(graph.input.iter().map(|input| input.name.clone()));
    for tensor in &graph.initializer {
        check_tensor(tensor)?;
        defined.insert(tensor.name.clone());
    }
    for node in &graph.node {
        for input in node.input.iter().filter(|name| !name.is_empty()) {
            if !defined.contains(input) {
                return Err(format!(
                    "damaged graph: node `{}` ({}) reads `{input}`, which nothing before it makes",
                    node.name, node.op_type
                ));
            }
        }
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                check_tensor(tensor)?;
            }
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                check_graph(graph, &defined, depth + 1)?;
            }
        }
        defined.extend(node.output.iter().filter(|name| !name.is_empty()).cloned());
    }
    match graph.output.iter().find(|output| !defined.contains(&output.name)) {
        Some(output) => Err(format!("damaged graph: nothing makes its output `{}`", output.name)),
        None => Ok(()),
    }
}

fn check_tensor(tensor: &pb::TensorProto) -> Result<(), String> {
    let name = &tensor.name;
    let external = pb::tensor_proto::DataLocation::External as i32;
    if tensor.data_location == Some(external) || !tensor.external_data.is_empty() {
        return Err(format!(
            "tensor `{name}` lives in another file (external data); save the model as one file"
        ));
    }
    let values = tensor.dims.iter().try_fold(1usize, |product, &dim| {
        usize::try_from(dim).ok().and_then(|dim| product.checked_mul(dim))
    });
    let Some(values) = values else {
        return Err(format!("tensor `{name}` has the impossible shape {:?}", tensor.dims));
    };
    use pb::tensor_proto::DataType as T;
    let data_type = T::try_from(tensor.data_type)
        .map_err(|_| format!("tensor `{name}` has the unknown type {}", tensor.data_type))?;
    let (size, typed) = match data_type {
        T::Float => (4, tensor.float_data.len()),
        T::Double => (8, tensor.double_data.len()),
        T::Int64 => (8, tensor.int64_data.len()),
        T::Int32 => (4, tensor.int32_data.len()),
        T::Int16 | T::Uint16 | T::Float16 => (2, tensor.int32_data.len()),
        T::Int8 | T::Uint8 | T::Bool => (1, tensor.int32_data.len()),
        other => {
            return Err(format!(
                "tensor `{name}` has the unsupported type {}",
                other.as_str_name().to_lowercase()
            ));
        }
    };
    let held = if tensor.raw_data.is_empty() {
        typed
    } else if tensor.raw_data.len().is_multiple_of(size) {
        tensor.raw_data.len() / size
    } else {
        return Err(format!("tensor `{name}` ends in the middle of a value"));
    };
    if held != values {
        return Err(format!(
            "tensor `{name}` of shape {:?} should hold {values} values but holds {held}; the file \
             is damaged",
            tensor.dims
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, tiny_model};
    use super::*;

    fn refused(bytes: &[u8]) -> String {
        OnnxFile::from_bytes(bytes, Path::new("m.onnx")).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_it_wrote() {
        let proto = tiny_model(&testing::metadata(8, &["A", "B"]));
        let bytes = proto.encode_to_vec();
        let file = OnnxFile::from_bytes(&bytes, Path::new("m.onnx")).unwrap();
        assert_eq!(file.bytes(), bytes.len() as u64);
        assert_eq!(file.sha256().len(), 64);
        assert_eq!(file.inputs().unwrap()[0].to_string(), "`image` uint8 [N, 8, 8, 3]");
        assert_eq!(file.outputs().unwrap()[0].to_string(), "`expression` float [N, 2]");
        let again = OnnxFile::from_proto(proto, Path::new("m.onnx")).unwrap();
        assert_eq!(again.sha256(), file.sha256());
    }

    #[test]
    fn text_and_emptiness_are_not_onnx() {
        for bytes in [&b""[..], b"gene,value\nERBB2,1\n", b"\x89PNG\r\n\x1a\n", &[0xff; 64]] {
            let message = refused(bytes);
            assert!(message.contains("not an ONNX file"), "{message}");
        }
    }

    #[test]
    fn every_truncation_fails_cleanly_or_is_whole() {
        let bytes = tiny_model(&testing::metadata(8, &["A", "B"])).encode_to_vec();
        for length in 0..bytes.len() {
            // A cut between two top-level fields can leave a valid, smaller message; what it may
            // not do is panic.
            let _ = OnnxFile::from_bytes(&bytes[..length], Path::new("m.onnx"));
        }
    }

    #[test]
    fn external_data_is_refused() {
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        let graph = proto.graph.as_mut().unwrap();
        graph.initializer[0].data_location = Some(pb::tensor_proto::DataLocation::External as i32);
        let message = refused(&proto.encode_to_vec());
        assert!(message.contains("external data"), "{message}");
    }

    #[test]
    fn a_tensor_shorter_than_its_shape_is_refused() {
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.graph.as_mut().unwrap().initializer[0].dims = vec![1 << 40, 1 << 40];
        assert!(refused(&proto.encode_to_vec()).contains("impossible shape"));
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.graph.as_mut().unwrap().initializer[0].dims = vec![77];
        assert!(refused(&proto.encode_to_vec()).contains("should hold 77 values"));
    }

    #[test]
    fn a_graph_that_reads_nothing_is_refused() {
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.graph.as_mut().unwrap().node[0].input[0] = "ghost".into();
        assert!(refused(&proto.encode_to_vec()).contains("`ghost`"));
        let mut proto = tiny_model(&testing::metadata(8, &["A"]));
        proto.graph.as_mut().unwrap().output[0].name = "ghost".into();
        assert!(refused(&proto.encode_to_vec()).contains("nothing makes its output `ghost`"));
    }
}
