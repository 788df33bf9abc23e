//! Importers from the layouts that exist into one paired dataset on disk, and its reader.
//!
//! [`import`] reads a source, [`prepare`] cuts its tiles and writes the dataset directory,
//! [`PairedDataset`] reads it, [`normalize`] and [`select`] make of its counts what models see,
//! [`augment`] and [`color`] look at tiles as plain bytes. Every row of a source that is left out
//! is named in the [`report`].

pub mod augment;
pub mod color;
pub mod dataset;
mod expression;
pub mod import;
pub mod manifest;
pub mod normalize;
mod overview;
mod patients;
pub mod prepare;
pub mod report;
pub mod select;
pub mod tiles;
mod unlabelled;

pub use dataset::{PairedDataset, Unlabelled};
pub use normalize::{Unit, log_normalize};
pub use select::{GeneFilter, most_variable};
