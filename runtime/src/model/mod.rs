//! A model is one ONNX file: its metadata, its checks, its signature.

mod metadata;

pub use metadata::*;
