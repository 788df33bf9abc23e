//! Benchmarks as a user's command.

pub mod engine;
pub mod quant;
