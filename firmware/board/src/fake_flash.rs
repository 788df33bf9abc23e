//! NOR flash for plan and progress, in the board's memory beyond what the image may use. It survives a reset, and, as
//! it is not flash, not the end of the emulation.

use core::ptr;
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

/// In the board's 4 MiB of code memory, which is RAM.
const BASE: usize = 0x0010_0000;
/// Eight pages.
pub const LEN: usize = 32 * 1024;

/// The one there is.
pub struct FakeFlash(());

impl FakeFlash {
    /// Taken once, by the machine.
    pub fn new() -> Self {
        Self(())
    }
}

fn set(at: usize, byte: u8) {
    // SAFETY: `at` was checked to lie below LEN; the range is RAM of this board, outside of what memory.x gives the
    // image, and only this module knows it.
    unsafe { ptr::write_volatile((BASE + at) as *mut u8, byte) }
}

fn get(at: usize) -> u8 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile((BASE + at) as *const u8) }
}

impl ErrorType for FakeFlash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for FakeFlash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        check_read(self, offset, bytes.len())?;
        bytes.iter_mut().zip(offset as usize..).for_each(|(byte, at)| *byte = get(at));
        Ok(())
    }

    fn capacity(&self) -> usize {
        LEN
    }
}

impl NorFlash for FakeFlash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = 4096;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        check_erase(self, from, to)?;
        (from as usize..to as usize).for_each(|at| set(at, 0xff));
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        check_write(self, offset, bytes.len())?;
        // Bits can be cleared and not set.
        bytes.iter().zip(offset as usize..).for_each(|(&byte, at)| set(at, get(at) & byte));
        Ok(())
    }
}
