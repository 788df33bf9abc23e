//! Importers from the layouts that exist into one paired dataset on disk.

pub mod augment;
pub mod color;
pub mod normalize;

pub use normalize::log_normalize;
