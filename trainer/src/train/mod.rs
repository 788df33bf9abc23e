//! Training loops and what they share.
//!
//! [`pretrain`] is stage 1: it walks through [`tiles`] of a [`source`] in a reproducible order,
//! lets [`step`] compute gradients, [`optimizer`] and [`schedule`] apply them, [`ema`] average the
//! parameters, and [`checkpoint`] store it all.

pub mod atomic;
pub mod checkpoint;
pub mod device;
pub mod ema;
pub mod finetune;
pub mod grid;
pub mod interrupt;
pub mod metrics;
pub mod optimizer;
pub mod pretrain;
pub mod random;
pub mod schedule;
pub mod settings;
pub mod source;
pub mod step;
pub mod tiles;
