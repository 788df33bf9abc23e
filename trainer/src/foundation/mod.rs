//! Frozen image encoders: an ONNX file run once, its features cached.
