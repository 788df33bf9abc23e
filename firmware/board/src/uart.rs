//! The board's CMSDK UARTs (Arm DDI 0479D, 4.3): the first is the link, the second the bench.

use core::cell::RefCell;
use core::ptr;
use cortex_m::interrupt::Mutex;
use heapless::Deque;

/// Receive interrupt of the link's UART.
pub const LINK_RECEIVE: i16 = 0;

const LINK: Uart = Uart { base: 0x4000_4000 };
const BENCH: Uart = Uart { base: 0x4000_5000 };

/// Bytes received and not yet read: the most the host sends at once, and some.
static RECEIVED: Mutex<RefCell<Deque<u8, 1024>>> = Mutex::new(RefCell::new(Deque::new()));

#[derive(Clone, Copy)]
struct Uart {
    base: usize,
}

impl Uart {
    const DATA: usize = 0x0;
    const STATE: usize = 0x4;
    const CTRL: usize = 0x8;
    const INTCLEAR: usize = 0xc;
    const BAUDDIV: usize = 0x10;

    const TX_FULL: u32 = 1 << 0;
    const RX_FULL: u32 = 1 << 1;
    const TX_ENABLE: u32 = 1 << 0;
    const RX_ENABLE: u32 = 1 << 1;
    const RX_INTERRUPT: u32 = 1 << 3;
    const RX_PENDING: u32 = 1 << 1;

    fn read(self, register: usize) -> u32 {
        // SAFETY: `base` is that of a UART of this board and `register` one of its registers; reading is free of
        // effects but for DATA, which gives the byte received.
        unsafe { ptr::read_volatile((self.base + register) as *const u32) }
    }

    fn write(self, register: usize, value: u32) {
        // SAFETY: as above; no register of a UART makes it touch memory.
        unsafe { ptr::write_volatile((self.base + register) as *mut u32, value) }
    }

    fn open(self, control: u32) {
        // 25 MHz / 217 = 115,207 baud.
        self.write(Self::BAUDDIV, 217);
        self.write(Self::CTRL, control);
    }

    fn take(self) -> Option<u8> {
        (self.read(Self::STATE) & Self::RX_FULL != 0).then(|| self.read(Self::DATA) as u8)
    }
}

/// The link to the host.
pub struct Link(());

impl Link {
    const CONTROL: u32 = Uart::TX_ENABLE | Uart::RX_ENABLE | Uart::RX_INTERRUPT;

    /// Opens it, once.
    pub fn open() -> Self {
        LINK.open(Self::CONTROL);
        // SAFETY: interrupt 0 is the link's receive interrupt, whose handler is in place, and nothing here relies on
        // interrupts being masked.
        unsafe { cortex_m::peripheral::NVIC::unmask(Number(LINK_RECEIVE as u16)) };
        Self(())
    }

    /// Bytes received, up to the room there is.
    pub fn read<'a>(&mut self, room: &'a mut [u8]) -> &'a [u8] {
        let mut len = 0;
        cortex_m::interrupt::free(|token| {
            let mut received = RECEIVED.borrow(token).borrow_mut();
            while let Some(slot) = room.get_mut(len)
                && let Some(byte) = received.pop_front()
            {
                *slot = byte;
                len += 1;
            }
        });
        // It was turned off if there was no room.
        LINK.write(Uart::CTRL, Self::CONTROL);
        &room[..len]
    }

    /// Sends as many of these bytes as the UART takes now, and returns how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        for &byte in bytes {
            if LINK.read(Uart::STATE) & Uart::TX_FULL != 0 {
                break;
            }
            LINK.write(Uart::DATA, byte.into());
            sent += 1;
        }
        sent
    }
}

/// Takes what the link's UART has received. Without room the interrupt is turned off and the UART holds its byte;
/// what comes after that is lost, as on any UART, and the session sends it again.
pub fn on_receive() {
    LINK.write(Uart::INTCLEAR, Uart::RX_PENDING);
    cortex_m::interrupt::free(|token| {
        let mut received = RECEIVED.borrow(token).borrow_mut();
        while !received.is_full() {
            let Some(byte) = LINK.take() else { return };
            // There is room: it was just looked at.
            let _ = received.push_back(byte);
        }
        LINK.write(Uart::CTRL, Link::CONTROL & !Uart::RX_INTERRUPT);
    });
}

/// The bench: what a person does to a real machine.
pub struct Bench(());

impl Bench {
    /// Opens it, once.
    pub fn open() -> Self {
        BENCH.open(Uart::RX_ENABLE);
        Self(())
    }

    /// The next command, if there is one.
    pub fn read(&mut self) -> Option<u8> {
        BENCH.take()
    }
}

#[derive(Clone, Copy)]
struct Number(u16);

// SAFETY: the number is one of this board's interrupts and does not change.
unsafe impl cortex_m::interrupt::InterruptNumber for Number {
    fn number(self) -> u16 {
        self.0
    }
}
