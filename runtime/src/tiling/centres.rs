//! Tile centres from a user's file.
