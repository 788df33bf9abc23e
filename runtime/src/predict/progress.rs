//! How a run tells what it is doing.

/// Told by [`super::run`] what it is doing, always from one thread at a time.
pub trait Progress: Sync {
    /// A stage begins whose length is not known.
    fn stage(&self, what: &str);

    /// The tiles begin: `total` to predict, of which `done` were taken over from an earlier run.
    fn tiles(&self, total: u64, done: u64);

    /// `done` tiles are predicted now.
    fn predicted(&self, done: u64);

    /// The run was asked to stop and finishes what is under way.
    fn stopping(&self);

    /// Everything is written.
    fn done(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn stage(&self, _what: &str) {}
    fn tiles(&self, _total: u64, _done: u64) {}
    fn predicted(&self, _done: u64) {}
    fn stopping(&self) {}
    fn done(&self) {}
}
