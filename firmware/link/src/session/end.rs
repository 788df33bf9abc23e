//! The state of one end: who is there, what was heard, what is owed.

use super::header::{self, Header, Kind};
use super::window::Window;
use super::{Down, Drift, Event, Stats, Timing};
use crate::frame::{self, FrameError};
use crate::message::{Hello, Role};
use postcard::experimental::max_size::MaxSize;
use serde::de::DeserializeOwned;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Saying hello; to `peer`, if it has just said it.
    Connecting,
    /// `peer` and this end know each other's epoch.
    Up,
}

/// All but the reader, whose buffer a frame under work is borrowed from.
#[derive(Debug)]
pub(super) struct End<const SLOT: usize, const WINDOW: usize> {
    pub(super) timing: Timing,
    pub(super) hello: Hello,
    phase: Phase,
    /// This end's epoch, and the other's (0: none heard).
    local: u32,
    peer: u32,
    /// In a session: another epoch that said hello and has yet to show that it is alive.
    candidate: u32,
    pub(super) window: Window<SLOT, WINDOW>,
    /// Sequence number of the next message to take.
    expected: u32,
    owe_hello: bool,
    owe_ack: bool,
    /// The acknowledgement owed shall say that a message is missing.
    gap: bool,
    pub(super) bye: bool,
    pub(super) heard_at: u64,
    spoke_at: Option<u64>,
    drifted: Option<(u32, Drift)>,
    /// The second event of a frame that means two.
    pub(super) up_next: Option<Hello>,
    pub(super) stats: Stats,
}

impl<const SLOT: usize, const WINDOW: usize> End<SLOT, WINDOW> {
    pub(super) fn new(timing: Timing, epoch: u32, hello: Hello) -> Self {
        // Two ends must never have the same epoch, so what an end is stands in the low bits.
        let role = match hello.role {
            Role::Board => 1,
            Role::Host => 2,
            Role::Camera => 3,
        };
        Self {
            timing,
            hello,
            phase: Phase::Connecting,
            local: epoch & !3 | role,
            peer: 0,
            candidate: 0,
            window: Window::new(),
            expected: 0,
            owe_hello: false,
            owe_ack: false,
            gap: false,
            bye: false,
            heard_at: 0,
            spoke_at: None,
            drifted: None,
            up_next: None,
            stats: Stats::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    pub(super) fn transmit(&mut self, now_ms: u64, out: &mut [u8]) -> usize {
        let owe_ack = self.owe_ack || self.due(now_ms, self.timing.heartbeat_ms);
        let len = match self.phase {
            _ if self.bye => {
                self.bye = false;
                let len = self.plain(Kind::Bye, out);
                self.disconnect();
                // Nothing is said until the other end calls or a hello is due.
                self.spoke_at = Some(now_ms);
                return len;
            }
            _ if self.owe_hello => self.say_hello(out),
            Phase::Connecting if self.due(now_ms, self.timing.hello_ms) => self.say_hello(out),
            Phase::Connecting => 0,
            Phase::Up => match self.window.next(now_ms, &self.timing) {
                Some((seq, again, message)) => {
                    let header = Header {
                        kind: Kind::Data,
                        from: self.local,
                        to: self.peer,
                        seq,
                        ack: self.expected,
                    };
                    let len = frame::encode(&[&header.to_bytes(), message], out).unwrap_or(0);
                    if len > 0 {
                        self.window.sent(now_ms);
                        self.stats.resent = self.stats.resent.wrapping_add(again.into());
                        self.owe_ack &= self.gap;
                    }
                    len
                }
                None if owe_ack => {
                    let kind = if self.gap { Kind::Gap } else { Kind::Ack };
                    let len = self.plain(kind, out);
                    if len > 0 {
                        (self.owe_ack, self.gap) = (false, false);
                    }
                    len
                }
                None => 0,
            },
        };
        if len > 0 {
            self.spoke_at = Some(now_ms);
        }
        len
    }

    pub(super) fn idle_ms(&self, now_ms: u64) -> u32 {
        let after = |since: u64, ms: u32| {
            u32::try_from((since + u64::from(ms)).saturating_sub(now_ms)).unwrap_or(ms)
        };
        if self.bye || self.owe_hello || self.owe_ack || self.up_next.is_some() {
            return 0;
        }
        let spoke = |ms| self.spoke_at.map_or(0, |at| after(at, ms));
        match self.phase {
            Phase::Connecting => spoke(self.timing.hello_ms),
            Phase::Up => spoke(self.timing.heartbeat_ms)
                .min(after(self.heard_at, self.timing.lost_ms))
                .min(self.window.idle_ms(now_ms).unwrap_or(u32::MAX)),
        }
    }

    fn due(&self, now_ms: u64, interval_ms: u32) -> bool {
        self.spoke_at.is_none_or(|at| now_ms.saturating_sub(at) >= u64::from(interval_ms))
    }

    fn plain(&self, kind: Kind, out: &mut [u8]) -> usize {
        let header = Header { kind, from: self.local, to: self.peer, seq: 0, ack: self.expected };
        frame::encode(&[&header.to_bytes()], out).unwrap_or(0)
    }

    fn say_hello(&mut self, out: &mut [u8]) -> usize {
        // A candidate is offered the epoch this end would go on with: that it comes back shows that it is alive.
        let (from, to) = match self.candidate {
            0 => (self.local, self.peer),
            candidate => (next_epoch(self.local), candidate),
        };
        let up = self.is_up() && self.candidate == 0;
        let header =
            Header { kind: if up { Kind::HelloUp } else { Kind::Hello }, from, to, seq: 0, ack: 0 };
        let mut body = [0; Hello::POSTCARD_MAX_SIZE];
        // The buffer holds the longest hello there is.
        let body =
            postcard::to_slice(&self.hello, &mut body).map(|body| &*body).unwrap_or_default();
        let len = frame::encode(&[&header.to_bytes(), &header::version(), body], out).unwrap_or(0);
        if len > 0 {
            (self.owe_hello, self.candidate) = (false, 0);
            if !self.is_up() {
                // An answer goes to whom it is for; the next hello is for everybody again.
                self.peer = 0;
            }
        }
        len
    }

    pub(super) fn frame<Rx: DeserializeOwned>(
        &mut self,
        now_ms: u64,
        frame: Result<&[u8], FrameError>,
    ) -> Option<Event<Rx>> {
        let Some((header, body)) = frame.ok().and_then(Header::read) else {
            self.stats.bad_frames = self.stats.bad_frames.wrapping_add(1);
            return None;
        };
        self.stats.frames = self.stats.frames.wrapping_add(1);
        if header.from == 0 || header.from == self.local {
            // Nobody's, or this end's own: an echo.
            self.stats.stale_frames = self.stats.stale_frames.wrapping_add(1);
            return None;
        }
        match header.kind {
            Kind::Hello | Kind::HelloUp => self.hello(now_ms, &header, body),
            _ if !self.is_up() || header.from != self.peer || header.to != self.local => {
                self.stats.stale_frames = self.stats.stale_frames.wrapping_add(1);
                // Whoever speaks in a session this end does not know shall learn how it stands. One that took up
                // this end's offer is in such a session, too, if the hello that said so was lost.
                let offered = self.is_up() && header.to == next_epoch(self.local);
                if header.kind != Kind::Bye && (!self.is_up() || offered) {
                    self.candidate = if offered { header.from } else { 0 };
                    self.owe_hello = true;
                }
                None
            }
            Kind::Bye => {
                self.disconnect();
                self.spoke_at = Some(now_ms);
                Some(Event::Down(Down::Closed))
            }
            Kind::Ack | Kind::Gap | Kind::Data => {
                self.heard_at = now_ms;
                self.window.acknowledge(header.ack, header.kind == Kind::Gap, now_ms, &self.timing);
                if header.kind == Kind::Data { self.data(header.seq, body) } else { None }
            }
        }
    }

    fn data<Rx: DeserializeOwned>(&mut self, seq: u32, body: &[u8]) -> Option<Event<Rx>> {
        self.owe_ack = true;
        // Sequence numbers wrap; what is ahead lies within half of their range.
        match seq.wrapping_sub(self.expected) {
            0 => {}
            ahead if ahead < u32::MAX / 2 => {
                self.stats.gaps = self.stats.gaps.wrapping_add(1);
                self.gap = true;
                return None;
            }
            _ => {
                self.stats.duplicates = self.stats.duplicates.wrapping_add(1);
                return None;
            }
        }
        self.expected = self.expected.wrapping_add(1);
        self.gap = false;
        self.stats.delivered = self.stats.delivered.wrapping_add(1);
        Some(match postcard::take_from_bytes(body) {
            Ok((message, [])) => Event::Message(message),
            _ => Event::Malformed,
        })
    }

    fn hello<Rx>(&mut self, now_ms: u64, header: &Header, body: &[u8]) -> Option<Event<Rx>> {
        let (drift, body) = header::read_version(body)?;
        if let Some(drift) = drift {
            // No answer: hellos are said while there is no session, and answering would never end.
            let known = self.drifted.replace((header.from, drift));
            return (known != self.drifted).then_some(Event::Incompatible(drift));
        }
        let Ok((hello, [])) = postcard::take_from_bytes::<Hello>(body) else {
            self.stats.bad_frames = self.stats.bad_frames.wrapping_add(1);
            return None;
        };
        match self.phase {
            Phase::Connecting => {
                self.peer = header.from;
                self.owe_hello |= header.to != self.local || header.kind == Kind::Hello;
                (header.to == self.local).then(|| Event::Up(self.connect(now_ms, hello)))
            }
            Phase::Up if header.from == self.peer => {
                if header.to == self.local {
                    self.heard_at = now_ms;
                }
                self.owe_hello |= header.kind == Kind::Hello;
                None
            }
            Phase::Up if header.to == next_epoch(self.local) => {
                self.disconnect();
                self.peer = header.from;
                self.owe_hello |= header.kind == Kind::Hello;
                let hello = self.connect(now_ms, hello);
                self.up_next = Some(hello);
                Some(Event::Down(Down::Restarted))
            }
            Phase::Up if header.to == 0 || header.to == self.local => {
                self.candidate = header.from;
                self.owe_hello = true;
                None
            }
            Phase::Up => {
                // The other end answers one that is no more.
                self.stats.stale_frames = self.stats.stale_frames.wrapping_add(1);
                None
            }
        }
    }

    fn connect(&mut self, now_ms: u64, hello: Hello) -> Hello {
        self.phase = Phase::Up;
        self.heard_at = now_ms;
        self.stats.ups = self.stats.ups.wrapping_add(1);
        hello
    }

    pub(super) fn disconnect(&mut self) {
        self.phase = Phase::Connecting;
        self.local = next_epoch(self.local);
        (self.peer, self.candidate, self.expected) = (0, 0, 0);
        (self.owe_hello, self.owe_ack, self.gap, self.bye) = (false, false, false, false);
        self.window = Window::new();
        self.spoke_at = None;
    }
}

/// Of the same end, for its next session. Never 0, which means none.
fn next_epoch(epoch: u32) -> u32 {
    epoch.wrapping_add(4)
}
