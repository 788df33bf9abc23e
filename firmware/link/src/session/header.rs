//! What stands before a frame's body: fixed, so that it can be read across versions.

use super::Drift;
use crate::schema;

/// Kind, from, to, seq, ack.
pub(super) const BYTES: usize = 1 + 4 * 4;
/// Header, protocol version and schema key.
pub(super) const HELLO_BYTES: usize = BYTES + VERSION_BYTES;
const VERSION_BYTES: usize = 2 + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Says who is there and wants an answer.
    Hello = 1,
    /// The same from an end that is already in this session: no answer.
    HelloUp = 2,
    Data = 3,
    /// Everything before `ack` has arrived. Also the heartbeat.
    Ack = 4,
    /// The same, and something after it has arrived too.
    Gap = 5,
    Bye = 6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Epochs of sender and receiver.
    pub(super) from: u32,
    pub(super) to: u32,
    /// Of this message.
    pub(super) seq: u32,
    /// Of the message the sender expects next.
    pub(super) ack: u32,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [self.kind as u8; BYTES];
        for (to, value) in
            bytes[1..].chunks_exact_mut(4).zip([self.from, self.to, self.seq, self.ack])
        {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn read(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, body) = frame.split_first_chunk::<BYTES>()?;
        let kind = match header[0] {
            1 => Kind::Hello,
            2 => Kind::HelloUp,
            3 => Kind::Data,
            4 => Kind::Ack,
            5 => Kind::Gap,
            6 => Kind::Bye,
            _ => return None,
        };
        let word =
            |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        Some((Self { kind, from: word(1), to: word(5), seq: word(9), ack: word(13) }, body))
    }
}

/// Protocol version and schema key of this build.
pub(super) fn version() -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    bytes[..2].copy_from_slice(&schema::PROTOCOL.to_le_bytes());
    bytes[2..].copy_from_slice(&schema::KEY.to_le_bytes());
    bytes
}

/// How a hello's version differs from this build's, if it does, and the rest of it.
pub(super) fn read_version(body: &[u8]) -> Option<(Option<Drift>, &[u8])> {
    let (version, body) = body.split_first_chunk::<VERSION_BYTES>()?;
    let [p0, p1, key @ ..] = *version;
    let theirs = Drift { protocol: u16::from_le_bytes([p0, p1]), key: u64::from_le_bytes(key) };
    let same = theirs == Drift { protocol: schema::PROTOCOL, key: schema::KEY };
    Some(((!same).then_some(theirs), body))
}
