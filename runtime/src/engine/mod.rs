//! Run the fused predictor. Every engine is one [`Engine`] implementation, asked for by name.

use crate::Result;

/// An engine that has a model loaded. Shared between worker threads; each worker runs its own
/// [`Session`].
pub trait Engine: Send + Sync {
    /// Registered name, for example `tract`.
    fn name(&self) -> &'static str;

    /// A session for one worker thread, with its own scratch memory.
    fn session(&self) -> Result<Box<dyn Session>>;
}

/// One worker's running state.
pub trait Session: Send {
    /// Predicts one tile: `image` is `tile_px` x `tile_px` x 3 RGB bytes (row-major HWC); returns
    /// one value per panel gene.
    fn predict(&mut self, image: &[u8]) -> Result<Vec<f32>>;
}
