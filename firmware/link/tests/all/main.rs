//! Frames, messages and sessions: one program, so that what the tests share is compiled once.

mod common;
mod frames;
mod messages;
mod sessions;
