//! Held-out figures: what a model is worth on sections it has not seen.
//!
//! [`splits`] says which sections train and which test and refuses leaks; [`metrics`] measures;
//! [`baselines`] are what a model has to beat, made of the closed-form [`regression`]s; [`run`]
//! puts every model through every fold and [`report`], [`chart`] and [`spatial`] show the result.

pub mod baselines;
pub mod chart;
pub mod metrics;
pub mod regression;
pub mod report;
pub mod run;
pub mod spatial;
pub mod splits;
