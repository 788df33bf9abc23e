//! The scan controller: moves the stage, fires light and camera, and acts on each tile's prediction while the glass
//! is still on the stage.
//!
//! Neither `std` nor an allocator nor an operating system is needed: drivers are written against embedded-hal's
//! traits, nothing blocks, memory and the time of each call are bounded. The same code runs on a board and, over a
//! simulated machine, in this crate's tests.
//!
//! - [`Scanner`]: all of it, over one link to the host;
//! - [`controller`]: the state machine; [`progress`]: the rules; [`findings`]: statistics, score, best tiles;
//! - [`motion`], [`exposure`], [`panel`]: drivers; [`order`]: the way over the slide;
//! - `sim` (feature): a machine made of memory, for tests and for the emulated board;
//! - [`store`]: plan and progress in flash; [`config`]: every constant of a machine.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod config;
pub mod controller;
pub mod exposure;
pub mod findings;
mod log;
pub mod motion;
pub mod order;
pub mod panel;
pub mod progress;
mod scanner;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod store;

pub use diffbulk_link as link;
pub use scanner::Scanner;
