//! The matrix product that convolutions, dense layers and attention share: packed weights and the register block.

mod panels;
mod strip;

pub(crate) use panels::{Panel, layout, layout_for, pack, packed_len, pad_bias, parts};
pub(crate) use strip::{MOST_COLUMNS, MOST_ROWS, Strip, group_start, groups};
