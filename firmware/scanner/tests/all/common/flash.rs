//! NOR flash in memory whose power can be cut at any write or erase.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash,
};
use std::cell::RefCell;
use std::rc::Rc;

const WORD: usize = 4;
const PAGE: usize = 4096;

pub struct Memory {
    bytes: Vec<u8>,
    /// Words written and pages erased so far.
    pub changes: u64,
    /// The change at which power goes, half of it done.
    pub cut_at: Option<u64>,
    dead: bool,
    /// Nothing can be written any more, power or not.
    pub broken: bool,
}

impl Memory {
    pub fn new(len: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            bytes: vec![0xff; len],
            changes: 0,
            cut_at: None,
            dead: false,
            broken: false,
        }))
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    pub fn power_on(&mut self) {
        self.dead = false;
        self.cut_at = None;
    }

    /// As it comes from the factory.
    pub fn blank(&mut self) {
        self.fill(|_| 0xff);
        self.changes = 0;
    }

    /// What another firmware left.
    pub fn fill(&mut self, with: impl Fn(usize) -> u8) {
        self.bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = with(i));
    }

    /// Counts a change; whether it is the one that power goes at.
    fn is_cut(&mut self) -> Result<bool, Broken> {
        if self.dead || self.broken {
            return Err(Broken);
        }
        self.changes += 1;
        self.dead = self.cut_at == Some(self.changes);
        Ok(self.dead)
    }
}

pub struct Flash(pub Rc<RefCell<Memory>>);

#[derive(Debug)]
pub struct Broken;

impl NorFlashError for Broken {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

impl ErrorType for Flash {
    type Error = Broken;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Broken> {
        let memory = self.0.borrow();
        if memory.dead {
            return Err(Broken);
        }
        bytes.copy_from_slice(&memory.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.borrow().bytes.len()
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Broken> {
        assert!((from as usize).is_multiple_of(PAGE) && (to as usize).is_multiple_of(PAGE));
        let mut memory = self.0.borrow_mut();
        for page in (from as usize..to as usize).step_by(PAGE) {
            let cut = memory.is_cut()?;
            memory.bytes[page..page + if cut { PAGE / 2 } else { PAGE }].fill(0xff);
            if cut {
                return Err(Broken);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Broken> {
        assert!((offset as usize).is_multiple_of(WORD) && bytes.len().is_multiple_of(WORD));
        let mut memory = self.0.borrow_mut();
        for (word, at) in bytes.chunks(WORD).zip((offset as usize..).step_by(WORD)) {
            let cut = memory.is_cut()?;
            for (i, &byte) in word.iter().take(if cut { WORD / 2 } else { WORD }).enumerate() {
                let cell = &mut memory.bytes[at + i];
                assert_eq!(
                    *cell & byte,
                    byte,
                    "NOR flash cannot set bits: a word was written twice"
                );
                *cell &= byte;
            }
            if cut {
                return Err(Broken);
            }
        }
        Ok(())
    }
}
