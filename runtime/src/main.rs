//! The `diffbulk` program.
fn main() {}
