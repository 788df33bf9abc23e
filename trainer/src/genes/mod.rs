//! Genes as names, not columns: the open vocabulary and the permutation-invariant encoder.
//!
//! A gene is its symbol. [`Vocabulary`] maps symbols to rows of one embedding table that grows as
//! panels are added, and [`GeneEncoder`] turns any panel's expression into one vector.

mod encoder;
mod vocabulary;

pub use encoder::GeneEncoder;
pub use vocabulary::Vocabulary;
