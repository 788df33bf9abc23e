//! Fold what is constant at inference and write ONNX.
