//! The board's cable: bytes between a board and the host, unchanged, and cut on purpose if asked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::serve::{Address, Stream};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// How long the cable stays cut: longer than either end takes to notice.
const CUT: Duration = Duration::from_secs(3);

/// Bytes moved at once.
const BUFFER: usize = 4096;

/// Carries bytes until `stop` is set. The cable is cut for [`CUT`] whenever `results` reaches the
/// next of `cuts`.
pub(super) fn run(
    board: &Address,
    host: &Address,
    cuts: &[u64],
    results: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut cuts = cuts.iter().copied().peekable();
    let mut quiet = false;
    while !stop.load(Ordering::Relaxed) {
        let ends = Stream::connect(board).and_then(|board| Ok((board, Stream::connect(host)?)));
        match ends {
            Ok((board_end, host_end)) => {
                quiet = false;
                tracing::info!(%board, "the board's cable is plugged in");
                let next = cuts.peek().copied();
                if carry(board_end, host_end, next, results, stop) {
                    cuts.next();
                    tracing::warn!(
                        results = next,
                        "the board's cable is cut for {} s",
                        CUT.as_secs()
                    );
                    let end = Instant::now() + CUT;
                    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(RETRY);
                    }
                }
            }
            Err(error) if !quiet => {
                tracing::warn!("{error}; tried again");
                quiet = true;
            }
            Err(_) => {}
        }
        std::thread::sleep(RETRY);
    }
}

/// Carries bytes until an end breaks; true when the cable was cut on purpose.
fn carry(
    board: Stream,
    host: Stream,
    cut_at: Option<u64>,
    results: &AtomicU64,
    stop: &AtomicBool,
) -> bool {
    let broken = AtomicBool::new(false);
    let (Ok(board_in), Ok(host_in)) = (board.try_clone(), host.try_clone()) else { return false };
    let mut was_cut = false;
    std::thread::scope(|scope| {
        scope.spawn(|| pump(board_in, &host, &broken));
        scope.spawn(|| pump(host_in, &board, &broken));
        while !broken.load(Ordering::Relaxed) {
            was_cut = cut_at.is_some_and(|at| results.load(Ordering::Relaxed) >= at);
            if was_cut || stop.load(Ordering::Relaxed) {
                broken.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        board.shutdown();
        host.shutdown();
    });
    was_cut
}

fn pump(mut from: Stream, to: &Stream, broken: &AtomicBool) {
    let Ok(mut to) = to.try_clone() else { return broken.store(true, Ordering::Relaxed) };
    let mut buffer = [0; BUFFER];
    while !broken.load(Ordering::Relaxed) {
        let moved = match from.read(&mut buffer) {
            Ok(None) => continue,
            Ok(Some(0)) | Err(_) => false,
            Ok(Some(count)) => to.write_all(buffer.get(..count).unwrap_or_default()).is_ok(),
        };
        if !moved {
            broken.store(true, Ordering::Relaxed);
        }
    }
}
