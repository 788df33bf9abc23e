//! A cable that loses, damages, repeats, delays and reorders frames.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A small generator: the same faults for the same seed and the same frames.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// True once in `many`.
    fn once_in(&mut self, many: u64) -> bool {
        self.next().is_multiple_of(many)
    }
}

/// What was done to the frames.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) frames: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) repeated: AtomicU64,
    pub(super) delayed: AtomicU64,
}

/// Joins whoever connects to `from` with the socket `to`, frame by frame, once in `rate` frames
/// with each of the faults, until `stop` is set.
pub(super) fn cable(
    from: &Path,
    to: &Path,
    rate: u64,
    faults: &Arc<Faults>,
    stop: &Arc<AtomicBool>,
) {
    let listener = UnixListener::bind(from).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut seed = 1;
    while !stop.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        near.set_nonblocking(false).unwrap();
        let Ok(far) = UnixStream::connect(to) else { continue };
        for (from, to) in [
            (near.try_clone().unwrap(), far.try_clone().unwrap()),
            (far.try_clone().unwrap(), near.try_clone().unwrap()),
        ] {
            seed += 1;
            let (faults, random) = (Arc::clone(faults), Random::new(seed));
            std::thread::spawn(move || carry(from, to, rate, &faults, random));
        }
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream, rate: u64, faults: &Faults, mut random: Random) {
    let (mut buffer, mut frame) = ([0; 4096], Vec::new());
    // Frames that wait, with how many others they let pass.
    let mut held: Vec<(u64, Vec<u8>)> = Vec::new();
    let tell = |number: &AtomicU64| number.fetch_add(1, Ordering::Relaxed);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut out = Vec::new();
        for &byte in &buffer[..count] {
            frame.push(byte);
            if byte != 0 {
                continue;
            }
            tell(&faults.frames);
            let mut whole = std::mem::take(&mut frame);
            for (left, waiting) in &mut held {
                *left -= 1;
                if *left == 0 {
                    out.append(waiting);
                }
            }
            held.retain(|(left, _)| *left > 0);
            if random.once_in(rate) {
                tell(&faults.dropped);
                continue;
            }
            if random.once_in(rate) {
                tell(&faults.damaged);
                let at = random.next() as usize % whole.len();
                whole[at] ^= 1 << (random.next() % 8);
            }
            if random.once_in(rate) {
                tell(&faults.repeated);
                out.extend_from_slice(&whole);
            }
            if random.once_in(rate) {
                tell(&faults.delayed);
                held.push((1 + random.next() % 6, whole));
            } else {
                out.append(&mut whole);
            }
        }
        if to.write_all(&out).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
