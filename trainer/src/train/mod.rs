//! Training loops and what they share.

pub mod atomic;
pub mod device;
pub mod random;
pub mod step;
pub mod tiles;
