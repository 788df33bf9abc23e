//! The pipeline: read, find tissue, infer, write, on bounded queues.
//!
//! Tiles go through [`pipeline`], which keeps every core busy and gives rows in tile order; every
//! row is kept in the [`journal`] as soon as it is known.

pub mod genes;
pub mod journal;
pub mod pipeline;
mod progress;
#[cfg(test)]
pub(crate) mod testing;

pub use progress::{NoProgress, Progress};
