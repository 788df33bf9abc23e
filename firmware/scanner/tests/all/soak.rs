//! 100,000 tile events over a link that corrupts, drops, doubles and delays: in bounded time, nothing lost, nothing
//! double, memory flat.

use crate::common::host::{Host, Record, typical};
use crate::common::pipe::Damage;
use crate::common::{Rig, objective, plan};
use diffbulk_link::message::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts the bytes that this thread has in use: other tests run beside it.
struct Counting;

thread_local! {
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

/// Bytes may be given back by another thread than took them: the count wraps, a difference does not.
fn count(change: impl FnOnce(usize) -> usize) {
    // A thread that is ending counts no more.
    let _ = IN_USE.try_with(|in_use| in_use.set(change(in_use.get())));
}

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|in_use| in_use.wrapping_add(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(|in_use| in_use.wrapping_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn scan(number: i32) -> (Plan, Vec<u8>) {
    let (mut plan, map) = plan(64, 64, Objective { rescan: None, ..objective() }, |_| true);
    // Another focus makes another plan.
    plan.z.0 += number * 1000;
    plan.id = plan.identify(&map);
    (plan, map)
}

#[test]
fn a_hundred_thousand_tile_events_over_a_bad_link() {
    const EVENTS: usize = 100_000;
    let mut rig = Rig::new(Host::new(1, scan(0), typical, Record::default()), Damage::BAD, 2026);
    let (mut events, mut scans) = (0, 0);
    let mut in_use = None;
    while events < EVENTS {
        // A tile takes 10 to 30 ms of the machine's time; the link may cost it several retries more.
        rig.until(4096 * 200, "a scan", |rig| rig.host().record.summary.is_some());
        let host = rig.host();
        let summary = host.record.summary.clone().unwrap();
        assert_eq!(summary.reason, StopReason::Complete);
        assert_eq!(summary.kept + summary.skipped, 4096, "scan {scans}");
        // Every shot has one result and one decision; none was lost, none counted twice.
        assert_eq!(host.record.decisions.len(), host.record.results.len());
        assert_eq!(host.record.results.len(), 4096 + usize::from(summary.refocuses));
        assert_eq!(
            host.record.decisions.iter().filter(|d| d.action == Action::Keep).count(),
            summary.kept.into()
        );
        events += host.record.results.len();
        scans += 1;
        host.record = Record::default();
        host.events = Vec::new();
        host.faults = Vec::new();
        host.replies = Vec::new();
        host.plan = scan(scans);
        let now = IN_USE.get();
        let first = *in_use.get_or_insert(now);
        assert!(
            now < first + 16 * 1024,
            "memory grows: {first} bytes after the first scan, {now} after {scans}"
        );
        host.send_plan();
    }
    let (board, host) = (rig.scanner().stats(), rig.host().session.stats());
    println!("{events} events in {scans} scans, {} s of machine time", rig.now_us / 1_000_000);
    println!("board {board:?}\nhost {host:?}");
    for stats in [board, host] {
        assert!(
            stats.bad_frames > 1000 && stats.duplicates > 1000 && stats.resent > 1000,
            "{stats:?}"
        );
    }
}
