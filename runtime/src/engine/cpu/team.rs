//! Threads that work on one tile together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often a thread looks whether the others have arrived before it goes to sleep: some tens of
/// microseconds, which is longer than threads of one tile usually wait for each other.
const SPINS: u32 = 2_000;

/// Lets a fixed number of threads wait for each other, again and again.
struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    asleep: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Barrier {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // It guards nothing that a panic could leave half done.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let round = self.round.load(Ordering::SeqCst);
        if self.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.threads {
            self.arrived.store(0, Ordering::SeqCst);
            self.round.store(round.wrapping_add(1), Ordering::SeqCst);
            if self.asleep.load(Ordering::SeqCst) > 0 {
                let _guard = self.lock();
                self.wake.notify_all();
            }
            return;
        }
        for _ in 0..SPINS {
            if self.round.load(Ordering::Acquire) != round {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while self.round.load(Ordering::SeqCst) == round {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the threads of a team share.
struct Shared {
    barrier: Barrier,
    stop: AtomicBool,
}

/// One thread's way to wait for the others of its team.
#[derive(Clone)]
pub(super) struct Member {
    shared: Arc<Shared>,
}

impl Member {
    /// Waits until all threads of the team are here.
    pub(super) fn wait(&self) {
        self.shared.barrier.wait();
    }
}

/// A caller's thread and its helpers.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `threads` threads, the caller's one of them. For every [`Team::start`] each helper
    /// does `work` with its number, from 1 on; `work` must call [`Member::wait`] as often as the
    /// caller does.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(
        threads: usize,
        mut work: impl FnMut(usize) -> Box<dyn FnMut(&Member) + Send>,
    ) -> std::io::Result<Self> {
        let shared =
            Arc::new(Shared { barrier: Barrier::new(threads), stop: AtomicBool::new(false) });
        let mut bodies: Vec<_> = (1..threads).map(&mut work).collect();
        // All threads exist before the first waits, so that a team that cannot be made whole ends.
        let mut helpers = vec![];
        let (ready, start) = std::sync::mpsc::channel::<()>();
        let start = Arc::new(Mutex::new(start));
        for (k, mut body) in bodies.drain(..).enumerate() {
            let member = Member { shared: Arc::clone(&shared) };
            let start = Arc::clone(&start);
            let run = move || {
                let go = start.lock().unwrap_or_else(PoisonError::into_inner).recv();
                if go.is_err() {
                    return;
                }
                loop {
                    member.wait();
                    if member.shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    body(&member);
                }
            };
            helpers.push(std::thread::Builder::new().name(format!("tile-{}", k + 1)).spawn(run)?);
        }
        for _ in &helpers {
            // The receiver lives as long as a helper waits on it.
            let _ = ready.send(());
        }
        Ok(Self { shared, helpers })
    }

    /// The caller's membership.
    pub(super) fn member(&self) -> Member {
        Member { shared: Arc::clone(&self.shared) }
    }

    /// Sets the helpers to work.
    pub(super) fn start(&self) {
        self.shared.barrier.wait();
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.barrier.wait();
        for helper in self.helpers.drain(..) {
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_before_all_are_there() {
        let count = Arc::new(AtomicUsize::new(0));
        let rounds = 300;
        for threads in [1, 2, 3] {
            count.store(0, Ordering::SeqCst);
            let team = Team::new(threads, |_| {
                let count = Arc::clone(&count);
                Box::new(move |member| {
                    count.fetch_add(1, Ordering::SeqCst);
                    member.wait();
                })
            })
            .unwrap();
            let member = team.member();
            for round in 1..=rounds {
                team.start();
                count.fetch_add(1, Ordering::SeqCst);
                member.wait();
                assert!(count.load(Ordering::SeqCst) >= round * threads);
                if round == 5 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
            drop(team);
            assert_eq!(count.load(Ordering::SeqCst), rounds * threads);
        }
    }
}
