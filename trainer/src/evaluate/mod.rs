//! Held-out figures: splits, metrics, baselines, and the tables and pictures made of them.

pub mod baselines;
pub mod metrics;
pub mod regression;
pub mod report;
pub mod splits;
