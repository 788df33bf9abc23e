//! Signals: Ctrl-C and the like end a command cleanly, SIGHUP asks the daemon for a newer model.

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

/// A flag that every SIGHUP sets, where there is one. To be called before any other thread is
/// started: the signal is kept from all threads but one that waits for it, which is how it does not
/// count as a termination signal.
pub(super) fn reload() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        hangup
            .thread_block()
            .map_err(|error| Error::Request(format!("SIGHUP cannot be handled here: {error}")))?;
        let set = Arc::clone(&flag);
        std::thread::spawn(move || {
            while hangup.wait().is_ok() {
                set.store(true, Ordering::Relaxed);
            }
        });
    }
    Ok(flag)
}
