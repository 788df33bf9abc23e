//! The scanner's firmware on an emulated board: QEMU's `mps2-an386`, a Cortex-M4F.
//!
//! The link to the host is the board's first UART, real as far as the emulation goes: registers, interrupt, lost bytes
//! and all. Stage, switches, light and camera are simulated behind embedded-hal pins; its second UART is the bench, by
//! which a test presses the emergency stop. `defmt` goes out over semihosting. See `PORTING.md` for a board with a
//! stage on it.

#![no_std]
#![no_main]

mod clock;
mod fake_flash;
mod machine;
mod stack;
mod uart;
mod watchdog;

use cortex_m_rt::{entry, exception};
use defmt_semihosting as _;
use diffbulk_scanner::Scanner;
use diffbulk_scanner::store::Map;
use machine::{Simulated, World};
use uart::{Bench, Link};

defmt::timestamp!("{=u64:us}", clock::now_us());

#[entry]
fn main() -> ! {
    let Some(mut core) = cortex_m::Peripherals::take() else { restart() };
    stack::guard(&mut core.MPU);
    stack::paint();
    clock::start(&mut core.SYST);
    let (mut link, mut bench) = (Link::open(), Bench::open());

    let world = World::new();
    let machine = match world.machine(watchdog::Dog::start(machine::CONFIG.watchdog_ms)) {
        Ok(machine) => machine,
        Err(error) => {
            defmt::error!("{}", error);
            restart()
        }
    };
    let mut map = Map::new();
    let mut scanner: Scanner<Simulated> =
        match Scanner::new(machine::CONFIG, machine, &mut map, env!("CARGO_PKG_VERSION")) {
            Ok(scanner) => scanner,
            Err(error) => {
                defmt::error!("{}", error);
                restart()
            }
        };

    let mut out = [0; Scanner::<Simulated>::OUT];
    let (mut begin, mut end) = (0, 0);
    let (mut deepest, mut look_us) = (0, 0);
    loop {
        let now_us = clock::now_us();
        let mut input = [0; 64];
        let received = link.read(&mut input);
        if let Some(command) = bench.read() {
            world.obey(command);
        }
        scanner.poll(now_us, received);
        if begin == end {
            (begin, end) = (0, scanner.transmit(now_us, &mut out));
        }
        // As much as the UART takes, and back to the stage.
        begin += link.write(&out[begin..end]);

        // Now and then: it reads all of the stack's clean part.
        if now_us >= look_us {
            look_us = now_us + 1_000_000;
            let used = stack::used();
            if used > deepest {
                deepest = used;
                defmt::info!("stack {=usize} of {=usize} bytes", used, stack::size());
            }
        }
    }
}

/// Nothing moves any more and the light is off, because reset leaves every pin so; then the next start.
fn restart() -> ! {
    cortex_m::peripheral::SCB::sys_reset()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    if let Some(place) = info.location() {
        defmt::error!("panic at {=str}:{=u32}", place.file(), place.line());
    }
    restart()
}

#[exception]
unsafe fn HardFault(_frame: &cortex_m_rt::ExceptionFrame) -> ! {
    // The stack may be what failed: nothing is called that needs much of it.
    restart()
}

/// The watchdog's bark.
#[exception]
unsafe fn NonMaskableInt() {
    defmt::error!("watchdog");
    restart()
}

/// Device interrupts, which have no names without a device crate.
#[exception]
unsafe fn DefaultHandler(number: i16) {
    match number {
        uart::LINK_RECEIVE => uart::on_receive(),
        _ => restart(),
    }
}
