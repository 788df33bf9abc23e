//! Microseconds since the start, from SysTick.

use core::cell::RefCell;
use cortex_m::interrupt::Mutex;
use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::exception;

/// The board's clock.
const CORE_HZ: u32 = 25_000_000;
const TICKS_PER_US: u32 = CORE_HZ / 1_000_000;
/// SysTick goes round every millisecond.
const ROUND: u32 = CORE_HZ / 1000;

static MILLIS: Mutex<RefCell<u64>> = Mutex::new(RefCell::new(0));

/// Begins to count.
pub fn start(syst: &mut SYST) {
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(ROUND - 1);
    syst.clear_current();
    syst.enable_counter();
    syst.enable_interrupt();
}

/// Microseconds since [`start`]. Never goes back.
pub fn now_us() -> u64 {
    cortex_m::interrupt::free(|token| {
        let mut millis = *MILLIS.borrow(token).borrow();
        let mut left = SYST::get_current();
        // The counter may have gone round with the interrupt still waiting: then it is read again, after that.
        if cortex_m::peripheral::SCB::is_pendst_pending() {
            left = SYST::get_current();
            millis += 1;
        }
        millis * 1000 + u64::from((ROUND - 1 - left.min(ROUND - 1)) / TICKS_PER_US)
    })
}

#[exception]
fn SysTick() {
    cortex_m::interrupt::free(|token| *MILLIS.borrow(token).borrow_mut() += 1);
}
