//! Trainer command line.
fn main() {}
