//! Ctrl-C: the first one finishes cleanly, the second one ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// A flag that the first Ctrl-C (or termination signal) sets; a second one ends the process.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(super::INTERRUPTED));
        }
    })
    .map_err(|error| Error::Request(format!("Ctrl-C cannot be handled here: {error}")))?;
    Ok(flag)
}
