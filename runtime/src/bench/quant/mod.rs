//! `bench quant`: what quantisation costs and gains, for every model, engine and thread count.
//!
//! [`plan`] decides what is run on what and leaves it as files; [`cell`] runs one model once in a
//! process of its own, so that memory is its own and a crash is a row; [`tiles`] are the data,
//! [`figures`] the arithmetic, [`layers`] the comparison inside two graphs; [`report`] and [`html`]
//! write the result. Peers in other languages run the same files and tiles and leave the same
//! cells.

pub mod cell;
mod energy;
mod figures;
mod html;
mod layers;
mod plan;
mod report;
mod rules;
mod subject;
mod tiles;

pub use cell::CellRun;
pub use plan::{Settings, run};
pub use report::{Results, Row, text};
