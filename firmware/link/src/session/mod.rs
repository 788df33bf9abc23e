//! A reliable session over a link that loses, damages, repeats, delays and reorders.
//!
//! Bytes in, events out; messages in, bytes out; the caller tells the time. Neither end blocks or allocates.
//!
//! - **Order**: every message carries a sequence number; the receiver takes the next one only, so each is delivered
//!   once and in order, whatever the link repeats or reorders. The sender keeps a message until it is acknowledged
//!   and sends from the oldest again after a time-out that doubles, or at once when the receiver reports a gap.
//! - **Presence**: an end that has nothing to say sends a heartbeat every [`Timing::heartbeat_ms`]. One that hears
//!   nothing for [`Timing::lost_ms`] (2 s unless told) gives [`Event::Down`] and tries to get hold of the other again.
//! - **Restarts**: each end has an epoch, each frame names both. A peer that restarted comes with another epoch; the
//!   session goes down and up again, and no frame of before, however late, is taken for one of after.
//! - **Resuming**: what was not acknowledged when a session went down may or may not have arrived. [`Event::Up`]
//!   carries the peer's [`Hello`], which says where a board goes on; all messages can be repeated safely.
//! - **Back-pressure**: [`Session::send`] refuses when the window is full. A receiver that stops calling
//!   [`Session::receive`] acknowledges nothing, and so stops the sender.
//! - **Drift**: protocol version and schema key are compared before anything is decoded: [`Event::Incompatible`].

mod end;
mod header;
#[cfg(test)]
mod tests;
mod window;

use crate::frame::{self, FrameReader};
use crate::limits::PIXEL_CHUNK;
use crate::message::{BoardToHost, FromHost, Hello, ToHost};
use crate::schema;
use core::marker::PhantomData;
use end::End;
use postcard::experimental::max_size::MaxSize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A session's times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between hellos while there is no session.
    pub hello_ms: u32,
    /// Silence after which an end says that it is there.
    pub heartbeat_ms: u32,
    /// Silence of the other end after which it is lost. A few heartbeats, so that some may be lost.
    pub lost_ms: u32,
    /// Until an unacknowledged message is sent again, the first time; doubles up to `retry_most_ms`.
    pub retry_ms: u32,
    /// Longest wait between retries.
    pub retry_most_ms: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { hello_ms: 200, heartbeat_ms: 250, lost_ms: 2000, retry_ms: 100, retry_most_ms: 800 }
    }
}

/// Why a session is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Down {
    /// Nothing heard for [`Timing::lost_ms`].
    Lost,
    /// The other end restarted; a new session follows at once.
    Restarted,
    /// The other end said goodbye.
    Closed,
}

/// The other end was built from other messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[error(
    "the other end speaks protocol {protocol} with schema key {key:016x}, this one {} with {:016x}: build both from one version",
    schema::PROTOCOL,
    schema::KEY
)]
pub struct Drift {
    /// Its protocol version.
    pub protocol: u16,
    /// Its schema key.
    pub key: u64,
}

/// What a session has to tell.
// Events are moved once and there is no allocator to box the large ones.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Event<M> {
    /// The other end is there and this is it. Queues are empty.
    Up(Hello),
    /// The other end's next message.
    Message(M),
    /// The other end is gone; what was queued is forgotten.
    Down(Down),
    /// The other end cannot be understood; said once for each of its starts.
    Incompatible(Drift),
    /// The next message arrived whole and is none of ours, which a matching schema key rules out unless the other
    /// end is faulty. It counts as delivered.
    Malformed,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SendError {
    /// There is no session.
    #[error("the other end is not there: wait for it, then send what it still needs")]
    NotUp,
    /// As many messages as fit await acknowledgement.
    #[error("too many messages await acknowledgement: wait until some are acknowledged")]
    Full,
    /// The message is larger than this session's slots.
    #[error("the message is larger than this end sends: use a session type with larger slots")]
    TooLarge,
}

/// What has happened on a link since the session was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stats {
    /// Frames with a good CRC.
    pub frames: u32,
    /// Frames thrown away: lost bytes, damage, unknown kinds.
    pub bad_frames: u32,
    /// Frames of an earlier session or for another end.
    pub stale_frames: u32,
    /// Messages that had been delivered already.
    pub duplicates: u32,
    /// Messages that came before an earlier one.
    pub gaps: u32,
    /// Messages sent again.
    pub resent: u32,
    /// Messages delivered.
    pub delivered: u32,
    /// Times the session came up.
    pub ups: u32,
}

/// One end of a session that sends `Tx` and receives `Rx`.
///
/// `FRAME` bounds what a frame received holds, `SLOT` a message sent, `WINDOW` the messages under way. The aliases
/// [`BoardSession`], [`HostSession`] and [`CameraSession`] have them right.
#[derive(Debug)]
pub struct Session<Tx, Rx, const FRAME: usize, const SLOT: usize, const WINDOW: usize> {
    reader: FrameReader<FRAME>,
    end: End<SLOT, WINDOW>,
    messages: PhantomData<fn(Tx) -> Rx>,
}

/// Payload and CRC of the largest frame with messages of `message` bytes or a hello.
const fn frame_bytes(message: usize) -> usize {
    let hello = header::HELLO_BYTES + Hello::POSTCARD_MAX_SIZE;
    let message = header::BYTES + message;
    4 + if hello > message { hello } else { message }
}

/// The board's end: few and small buffers.
pub type BoardSession = Session<
    BoardToHost,
    FromHost,
    { frame_bytes(FromHost::POSTCARD_MAX_SIZE) },
    { BoardToHost::POSTCARD_MAX_SIZE },
    8,
>;

/// The host's end, towards board and camera.
pub type HostSession = Session<
    FromHost,
    ToHost,
    { frame_bytes(ToHost::<PIXEL_CHUNK>::POSTCARD_MAX_SIZE) },
    { FromHost::POSTCARD_MAX_SIZE },
    32,
>;

/// A camera's end, or that of whoever sends pixels to the host.
pub type CameraSession = Session<
    ToHost,
    FromHost,
    { frame_bytes(FromHost::POSTCARD_MAX_SIZE) },
    { ToHost::<PIXEL_CHUNK>::POSTCARD_MAX_SIZE },
    32,
>;

impl<
    Tx: Serialize,
    Rx: DeserializeOwned,
    const FRAME: usize,
    const SLOT: usize,
    const WINDOW: usize,
> Session<Tx, Rx, FRAME, SLOT, WINDOW>
{
    /// Room that [`transmit`](Self::transmit) needs.
    pub const OUT: usize = frame::max_len(frame_bytes(SLOT));

    /// An end that begins to say hello.
    ///
    /// `epoch` must differ from that of this end's earlier starts, by more than four times the sessions each has had:
    /// the time, a random number, or a count of starts kept in flash times 65,536.
    pub fn new(timing: Timing, epoch: u32, hello: Hello) -> Self {
        Self {
            reader: FrameReader::new(),
            end: End::new(timing, epoch, hello),
            messages: PhantomData,
        }
    }

    /// Whether there is a session.
    pub fn is_up(&self) -> bool {
        self.end.is_up()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.end.stats
    }

    /// What the next handshake says about this end.
    pub fn hello_mut(&mut self) -> &mut Hello {
        &mut self.end.hello
    }

    /// Messages that [`send`](Self::send) would take now.
    pub fn room(&self) -> usize {
        if self.is_up() { WINDOW - self.end.window.len() } else { 0 }
    }

    /// Whether everything sent has been acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.end.window.len() == 0
    }

    /// Queues a message. It is delivered once unless the session goes down first.
    pub fn send(&mut self, message: &Tx) -> Result<(), SendError> {
        if !self.is_up() {
            return Err(SendError::NotUp);
        }
        self.end.window.push(message)
    }

    /// Ends the session: the next [`transmit`](Self::transmit) tells the other end, which needs no time-out then.
    /// What is not yet acknowledged is forgotten; see [`is_flushed`](Self::is_flushed).
    pub fn close(&mut self) {
        self.end.bye = self.is_up();
    }

    /// Forgets a half-received frame: for a transport that was connected anew. The session itself goes on.
    pub fn reconnected(&mut self) {
        self.reader.reset();
    }

    /// Looks at the time and then at bytes from the front of `input`, up to the first event.
    /// `None`: nothing more to tell, `input` is used up. Call it with empty input, too, as time goes by.
    pub fn receive(&mut self, now_ms: u64, input: &mut &[u8]) -> Option<Event<Rx>> {
        if let Some(hello) = self.end.up_next.take() {
            return Some(Event::Up(hello));
        }
        if self.is_up()
            && now_ms.saturating_sub(self.end.heard_at) >= u64::from(self.end.timing.lost_ms)
        {
            self.end.disconnect();
            return Some(Event::Down(Down::Lost));
        }
        while let Some(frame) = self.reader.next(input) {
            let event = self.end.frame(now_ms, frame);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Writes one frame, if there is one to send now, and returns its length. `out` must hold [`Self::OUT`] bytes;
    /// with less, larger frames are kept back. Call it until it returns 0.
    pub fn transmit(&mut self, now_ms: u64, out: &mut [u8]) -> usize {
        self.end.transmit(now_ms, out)
    }

    /// Milliseconds until [`receive`](Self::receive) or [`transmit`](Self::transmit) has something to do even if
    /// nothing arrives and nothing is sent; 0: now.
    pub fn idle_ms(&self, now_ms: u64) -> u32 {
        self.end.idle_ms(now_ms)
    }
}
