//! The open gene vocabulary and the gene encoder.
