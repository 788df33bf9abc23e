//! The stack's end, guarded, and how deep it has been: what it has not touched still has its paint.

use core::ptr;
use cortex_m::peripheral::MPU;

/// Bytes at the stack's end that nothing may touch; a power of two.
const GUARD: usize = 256;

const PAINT: u32 = 0xc5c5_c5c5;

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

fn ends() -> (usize, usize) {
    (&raw const _stack_end as usize + GUARD, &raw const _stack_start as usize)
}

/// Makes a stack that runs over fault, instead of going on below (Armv7-M ARM, B3.5).
pub fn guard(mpu: &mut MPU) {
    let (end, _) = ends();
    let (valid, enable, never_execute, default_map) = (1 << 4, 1, 1 << 28, 1 << 2);
    // SAFETY: region 0 covers the guard alone, where nothing is, and everything else stays as it was by default.
    unsafe {
        mpu.rbar.write((end - GUARD) as u32 | valid);
        mpu.rasr.write(never_execute | (GUARD.trailing_zeros() - 1) << 1 | enable);
        mpu.ctrl.write(enable | default_map);
    }
    cortex_m::asm::dsb();
    cortex_m::asm::isb();
}

/// Paints what lies below this call.
pub fn paint() {
    let (end, _) = ends();
    let here = cortex_m::register::msp::read() as usize;
    for word in (end..here - 256).step_by(4) {
        // SAFETY: between the stack's end and 256 bytes below the stack pointer: RAM that nothing uses yet.
        unsafe { ptr::write_volatile(word as *mut u32, PAINT) };
    }
}

/// Bytes it has.
pub fn size() -> usize {
    let (end, start) = ends();
    start - end
}

/// Bytes it has used at most.
pub fn used() -> usize {
    let (end, start) = ends();
    // SAFETY: the stack's own memory, read only.
    let clean = (end..start)
        .step_by(4)
        .take_while(|&word| unsafe { ptr::read_volatile(word as *const u32) } == PAINT);
    start - end - clean.count() * 4
}
