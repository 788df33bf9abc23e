//! The board's CMSDK watchdog (Arm DDI 0479D, 4.5): counts down, barks with an NMI, and resets if nobody answers.

use core::ptr;
use diffbulk_scanner::panel::Watchdog;

const BASE: usize = 0x4000_8000;
const LOAD: usize = 0x0;
const CONTROL: usize = 0x8;
const LOCK: usize = 0xc00;
const UNLOCK: u32 = 0x1acc_e551;
const INTERRUPT: u32 = 1;
const RESET: u32 = 2;
const TICKS_PER_MS: u32 = 25_000;

/// Bites unless fed.
pub struct Dog {
    ticks: u32,
}

impl Dog {
    /// Begins to count; it cannot be stopped again.
    pub fn start(ms: u32) -> Self {
        let dog = Self { ticks: ms.saturating_mul(TICKS_PER_MS) };
        write(LOCK, UNLOCK);
        write(LOAD, dog.ticks);
        write(CONTROL, INTERRUPT | RESET);
        write(LOCK, 0);
        dog
    }
}

impl Watchdog for Dog {
    fn feed(&mut self) {
        write(LOCK, UNLOCK);
        write(LOAD, self.ticks);
        write(LOCK, 0);
    }
}

fn write(register: usize, value: u32) {
    // SAFETY: these are the registers of this board's watchdog, which touch no memory.
    unsafe { ptr::write_volatile((BASE + register) as *mut u32, value) }
}
