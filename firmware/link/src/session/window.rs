//! The sender's side: messages under way, oldest first, and when to send them again.

use super::{SendError, Timing};
use heapless::{Deque, Vec};
use serde::Serialize;

#[derive(Debug)]
pub(super) struct Window<const SLOT: usize, const N: usize> {
    queue: Deque<Vec<u8, SLOT>, N>,
    /// Sequence number of the oldest.
    base: u32,
    /// How many of them have been sent in this round.
    sent: usize,
    /// How many have ever been sent: what lies below is sent again.
    ever: usize,
    /// When something was last sent or acknowledged, and how long to wait from then.
    since: u64,
    wait_ms: u32,
    /// The gap at this sequence number has been answered: later reports of it are echoes.
    answered: Option<u32>,
}

impl<const SLOT: usize, const N: usize> Window<SLOT, N> {
    pub(super) fn new() -> Self {
        Self {
            queue: Deque::new(),
            base: 0,
            sent: 0,
            ever: 0,
            since: 0,
            wait_ms: 0,
            answered: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn push(&mut self, message: &impl Serialize) -> Result<(), SendError> {
        if self.queue.is_full() {
            return Err(SendError::Full);
        }
        let mut slot = Vec::new();
        slot.resize(SLOT, 0).map_err(|_| SendError::TooLarge)?;
        let len = postcard::to_slice(message, &mut slot).map_err(|_| SendError::TooLarge)?.len();
        slot.truncate(len);
        self.queue.push_back(slot).map_err(|_| SendError::Full)
    }

    /// The message to send now: its number, whether it was sent before, its bytes.
    pub(super) fn next(&mut self, now_ms: u64, timing: &Timing) -> Option<(u32, bool, &[u8])> {
        let waited = now_ms.saturating_sub(self.since) >= u64::from(self.wait_ms);
        if self.sent > 0 && self.sent == self.ever && waited {
            self.sent = 0;
            self.answered = None;
            self.wait_ms = self.wait_ms.saturating_mul(2).min(timing.retry_most_ms);
        }
        if self.sent == 0 && self.ever == 0 {
            self.wait_ms = timing.retry_ms;
        }
        let message = self.queue.iter().nth(self.sent)?;
        Some((self.base.wrapping_add(self.sent as u32), self.sent < self.ever, message))
    }

    /// What [`next`](Self::next) gave has gone out.
    pub(super) fn sent(&mut self, now_ms: u64) {
        self.since = now_ms;
        self.sent += 1;
        self.ever = self.ever.max(self.sent);
    }

    /// Everything before `ack` has arrived; with `gap`, something later too.
    pub(super) fn acknowledge(&mut self, ack: u32, gap: bool, now_ms: u64, timing: &Timing) {
        let arrived = ack.wrapping_sub(self.base) as usize;
        if arrived > self.ever {
            // An acknowledgement from before, or of something never sent.
            return;
        }
        for _ in 0..arrived {
            self.queue.pop_front();
        }
        self.base = ack;
        self.ever -= arrived;
        self.sent = self.sent.saturating_sub(arrived);
        if arrived > 0 {
            (self.since, self.wait_ms) = (now_ms, timing.retry_ms);
        }
        if gap && self.ever > 0 && self.answered != Some(ack) {
            self.answered = Some(ack);
            self.sent = 0;
        }
    }

    /// Milliseconds until [`next`](Self::next) has something.
    pub(super) fn idle_ms(&self, now_ms: u64) -> Option<u32> {
        if self.sent < self.queue.len() {
            return Some(0);
        }
        let due = self.since + u64::from(self.wait_ms);
        (!self.queue.is_empty())
            .then(|| u32::try_from(due.saturating_sub(now_ms)).unwrap_or(self.wait_ms))
    }
}
