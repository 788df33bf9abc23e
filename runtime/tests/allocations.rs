//! Nothing is allocated for a tile once a session is warm. A program of its own, as its allocator
//! counts for all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use diffbulk::engine;
use diffbulk::model::Model;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: it is the system's allocator, which is asked every time.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_tile_allocates_nothing_once_its_session_is_warm() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge.onnx");
    let mut model = Model::open(&path).unwrap();
    let bytes: usize = model.input_shape().iter().product();
    let tile: Vec<u8> = (0..bytes).map(|k| (k * k / 251) as u8).collect();
    let engine = engine::load("cpu", &mut model, &engine::Options::default()).unwrap();
    for threads in [1, 2] {
        let mut session = engine.team_session(threads).unwrap();
        let mut values = vec![];
        session.predict_into(&tile, &mut values).unwrap();
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..3 {
            session.predict_into(&tile, &mut values).unwrap();
        }
        let after = ALLOCATIONS.load(Ordering::SeqCst);
        assert_eq!(after - before, 0, "{threads} threads");
    }
}
