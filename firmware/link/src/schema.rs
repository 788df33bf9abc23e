//! The key both ends compare in the handshake.
//!
//! It hashes the shape of every message (names of types, fields and variants included), the handshake's own body, the
//! [limits](crate::limits) and the protocol version, at compile time. Two ends built from different messages
//! therefore never talk past each other: the session ends in [`Event::Incompatible`](crate::session::Event).

use crate::limits;
use crate::message::{FromHost, Hello, ToHost};
use postcard_schema::key::Key;

/// Version of framing and session rules; what the messages look like is in [`KEY`].
pub const PROTOCOL: u16 = 2;

/// The schema key of this build.
pub const KEY: u64 = key(PROTOCOL, &limits::ALL);

const fn key(protocol: u16, limits: &[usize]) -> u64 {
    let mut state =
        u64::from_le_bytes(Key::for_path::<(Hello, ToHost, FromHost)>("diffbulk/link").to_bytes());
    state = fold(state, protocol as u64);
    let mut i = 0;
    while i < limits.len() {
        state = fold(state, limits[i] as u64);
        i += 1;
    }
    state
}

/// One FNV-1a round a byte, as postcard-schema's key goes on.
const fn fold(mut state: u64, value: u64) -> u64 {
    let bytes = value.to_le_bytes();
    let mut i = 0;
    while i < bytes.len() {
        state = (state ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_sees_every_limit_and_the_version() {
        let mut seen = std::vec![KEY, key(PROTOCOL + 1, &limits::ALL)];
        for i in 0..limits::ALL.len() {
            let mut changed = limits::ALL;
            changed[i] += 1;
            seen.push(key(PROTOCOL, &changed));
        }
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }
}
