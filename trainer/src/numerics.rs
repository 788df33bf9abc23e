//! `verify`: this crate against directories of reference tensors.
