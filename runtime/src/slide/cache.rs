//! A cache of decoded chunks shared by all threads that read one slide.
//!
//! Neighbouring tiles of the model touch the same chunks of the file. A chunk is decoded once,
//! by the first thread that asks; threads that ask meanwhile wait for that one result instead of
//! decoding it again. The least recently used chunks go when the byte budget is exceeded.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which chunk: level and index within the level.
pub(super) type Key = (usize, usize);

/// Decoded RGB pixels of one chunk.
#[derive(Debug)]
pub(super) struct Pixels {
    /// Width in pixels.
    pub(super) width: usize,
    /// Height in pixels.
    pub(super) height: usize,
    /// Row-major RGB bytes, `3 * width * height` of them.
    pub(super) rgb: Vec<u8>,
}

type Slot = Arc<Mutex<Option<Arc<Pixels>>>>;

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Entry>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    used: u64,
    bytes: usize,
}

/// Least-recently-used cache with a byte budget.
#[derive(Debug)]
pub(super) struct Cache {
    state: Mutex<State>,
    budget: usize,
}

/// A panic while a lock is held leaves these maps consistent (every update is complete before
/// anything that can fail), so a poisoned lock is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// An empty cache that keeps about `budget` bytes of pixels (and at least the newest chunk).
    pub(super) fn new(budget: usize) -> Self {
        Self { state: Mutex::default(), budget }
    }

    /// The chunk `key`, decoded by `decode` where it is not here yet. A failure is not kept.
    pub(super) fn get<E>(
        &self,
        key: Key,
        decode: impl FnOnce() -> Result<Pixels, E>,
    ) -> Result<Arc<Pixels>, E> {
        let slot = lock(&self.state).touch(key);
        let mut content = lock(&slot);
        if let Some(pixels) = &*content {
            return Ok(pixels.clone());
        }
        match decode() {
            Ok(pixels) => {
                let pixels = Arc::new(pixels);
                *content = Some(pixels.clone());
                drop(content);
                lock(&self.state).account(key, &slot, pixels.rgb.len(), self.budget);
                Ok(pixels)
            }
            Err(problem) => {
                drop(content);
                lock(&self.state).forget(key, &slot);
                Err(problem)
            }
        }
    }
}

impl State {
    /// The slot of `key`, made where there is none, now the most recently used.
    fn touch(&mut self, key: Key) -> Slot {
        self.clock += 1;
        let now = self.clock;
        let entry = self.slots.entry(key).or_insert_with(|| Entry {
            slot: Slot::default(),
            used: now,
            bytes: 0,
        });
        self.by_age.remove(&entry.used);
        entry.used = now;
        self.by_age.insert(now, key);
        entry.slot.clone()
    }

    /// Notes the size of a freshly decoded chunk and drops the oldest ones beyond the budget.
    fn account(&mut self, key: Key, slot: &Slot, bytes: usize, budget: usize) {
        if let Some(entry) = self.slots.get_mut(&key)
            && Arc::ptr_eq(&entry.slot, slot)
        {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
        }
        while self.bytes > budget && self.slots.len() > 1 {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if oldest == key {
                // Only chunks that are still being decoded are newer; keep this one.
                if let Some(entry) = self.slots.get(&key) {
                    self.by_age.insert(entry.used, key);
                }
                break;
            }
            if let Some(entry) = self.slots.remove(&oldest) {
                self.bytes -= entry.bytes;
            }
        }
    }

    /// Removes a chunk whose decoding failed.
    fn forget(&mut self, key: Key, slot: &Slot) {
        if self.slots.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.slot, slot))
            && let Some(entry) = self.slots.remove(&key)
        {
            self.by_age.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn pixels(side: usize) -> Pixels {
        Pixels { width: side, height: side, rgb: vec![7; 3 * side * side] }
    }

    #[test]
    fn a_chunk_is_decoded_once_even_when_threads_ask_together() {
        let cache = Cache::new(1 << 20);
        let decoded = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    cache
                        .get((0, 3), || {
                            decoded.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_millis(20));
                            Ok::<_, ()>(pixels(4))
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(decoded.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_least_recently_used_chunk_goes_first() {
        let chunk = 3 * 16 * 16;
        let cache = Cache::new(2 * chunk);
        let decoded = AtomicUsize::new(0);
        let ask = |index| {
            cache
                .get((0, index), || {
                    decoded.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, ()>(pixels(16))
                })
                .unwrap();
        };
        ask(1);
        ask(2);
        ask(1);
        ask(3); // drops 2
        ask(1);
        assert_eq!(decoded.load(Ordering::SeqCst), 3);
        ask(2);
        assert_eq!(decoded.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_failure_is_not_remembered_and_a_big_chunk_still_serves() {
        let cache = Cache::new(10);
        assert!(cache.get((0, 0), || Err("broken")).is_err());
        assert_eq!(cache.get((0, 0), || Ok::<_, ()>(pixels(32))).unwrap().width, 32);
        assert_eq!(cache.get((0, 0), || Err("asked again")).unwrap().width, 32);
        assert_eq!(lock(&cache.state).bytes, 3 * 32 * 32);
        cache.get((1, 0), || Ok::<_, ()>(pixels(2))).unwrap();
        assert_eq!(lock(&cache.state).slots.len(), 1);
    }
}
