//! One direction of a link that drops, damages, repeats and delays.

use std::collections::BTreeMap;

/// Out of a thousand frames; delays up to so many microseconds, by which frames overtake each other.
#[derive(Clone, Copy, Default)]
pub struct Damage {
    pub drop: u64,
    pub corrupt: u64,
    pub double: u64,
    pub delay: u64,
    pub delay_us: u64,
}

impl Damage {
    pub const NONE: Self = Self { drop: 0, corrupt: 0, double: 0, delay: 0, delay_us: 0 };
    pub const BAD: Self = Self { drop: 50, corrupt: 50, double: 50, delay: 100, delay_us: 20_000 };
}

pub struct Pipe {
    damage: Damage,
    random: u64,
    /// By the time of arrival and a running number.
    frames: BTreeMap<(u64, u64), Vec<u8>>,
    given: u64,
    /// Nothing gets through.
    pub cut: bool,
}

impl Pipe {
    pub fn new(damage: Damage, seed: u64) -> Self {
        Self { damage, random: seed | 1, frames: BTreeMap::new(), given: 0, cut: false }
    }

    /// xorshift64*.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    pub fn give(&mut self, now_us: u64, frame: &[u8]) {
        let copies = if self.random(1000) < self.damage.double { 2 } else { 1 };
        for _ in 0..copies {
            if self.random(1000) < self.damage.drop || self.cut {
                continue;
            }
            let mut frame = frame.to_vec();
            if self.random(1000) < self.damage.corrupt {
                for _ in 0..=self.random(3) {
                    let at = self.random(frame.len() as u64) as usize;
                    match self.random(3) {
                        0 => frame[at] ^= 1 << self.random(8),
                        1 => frame[at] = self.random(256) as u8,
                        _ => drop(frame.remove(at)),
                    }
                    if frame.is_empty() {
                        break;
                    }
                }
            }
            let late = if self.random(1000) < self.damage.delay {
                self.random(self.damage.delay_us)
            } else {
                0
            };
            self.given += 1;
            self.frames.insert((now_us + late, self.given), frame);
        }
    }

    pub fn take(&mut self, now_us: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(entry) = self.frames.first_entry()
            && entry.key().0 <= now_us
        {
            let frame = entry.remove();
            if !self.cut {
                bytes.extend(frame);
            }
        }
        bytes
    }
}
