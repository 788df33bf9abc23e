//! The controller on a simulated machine: one program, so that what the tests share is compiled once.

mod axis;
mod common;
mod disorder;
mod power;
mod scan;
mod soak;
