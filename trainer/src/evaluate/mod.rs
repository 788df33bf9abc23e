//! Splits, metrics, baselines, tables and plots.
