//! Reads tensors from PyTorch weight files (`.pth`, `.pt`) without running any code.
//!
//! A weight file is a pickle, which can name any Python function; [`pickle`] knows only the few
//! opcodes and the few names that rebuild a dictionary of tensors and refuses everything else. Both containers
//! are read: a zip archive of stored entries (since PyTorch 1.6) and the older plain stream.

mod pickle;
mod state;
mod zip;

pub use state::read;
