//! Plan and progress in flash, so that a power cut at any moment loses at most the shot at hand.
//!
//! [sequential_storage]'s map keeps each item whole: what is read back is an item as it was written last, or as it was
//! before. A plan spans several items, so it counts only once its id, written after all the rest, names it; and it is
//! checked against that id when it is read.

use crate::progress::Progress;
use core::future::Future;
use core::ops::Range;
use core::task::{Context, Poll, Waker};
use diffbulk_link::limits::{PLAN_CELLS, PLAN_CHUNK};
use diffbulk_link::message::{Plan, PlanId, PlanReply};
use embedded_storage::nor_flash::NorFlash;
use heapless::Vec;
use postcard::experimental::max_size::MaxSize;
use sequential_storage::cache::Cache;
use sequential_storage::map::{MapConfig, MapStorage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes of the longest bit map.
pub const MAP_BYTES: usize = PLAN_CELLS / 8;
/// A plan's bit map.
pub type Map = Vec<u8, MAP_BYTES>;

/// Why flash did not keep or give something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum StoreError {
    /// The range given for storage is not one the flash can have.
    #[error(
        "the flash range for plan and progress must be whole pages, at least two of them, within the flash"
    )]
    Range,
    /// Reading, writing or erasing failed.
    #[error(
        "flash failed, plan and progress are not kept: power the board off and on, send the plan again"
    )]
    Flash,
    /// The range holds something else, or nothing that can be made sense of.
    #[error(
        "the flash range for plan and progress holds something else: it is erased at the next start"
    )]
    Foreign,
    /// There is no room.
    #[error("the flash range for plan and progress is too small: give it 16 KiB or more")]
    Full,
}

mod key {
    pub(super) const STARTS: u8 = 0;
    pub(super) const CURRENT: u8 = 1;
    pub(super) const PLAN: u8 = 2;
    pub(super) const PROGRESS: u8 = 3;
    /// And up, one a chunk of the bit map.
    pub(super) const MAP: u8 = 16;
}

/// Key, item and the padding of the largest flash word.
const BUFFER: usize = 1 + largest() + 31;

const fn largest() -> usize {
    let (plan, progress) = (Plan::POSTCARD_MAX_SIZE, Progress::POSTCARD_MAX_SIZE);
    let larger = if plan > progress { plan } else { progress };
    if larger > PLAN_CHUNK { larger } else { PLAN_CHUNK }
}

/// Plan and progress in a NOR flash.
pub struct Store<F: NorFlash> {
    map: MapStorage<u8, Blocking<F>, Uncached>,
}

type Uncached = Cache<
    sequential_storage::cache::Uncached,
    sequential_storage::cache::Uncached,
    sequential_storage::cache::Uncached,
    u8,
>;

impl<F: NorFlash> Store<F> {
    /// In these bytes of the flash: whole pages, at least two, 16 KiB or more.
    pub fn new(flash: F, range: Range<u32>) -> Result<Self, StoreError> {
        if range.end as usize > flash.capacity() || range.start >= range.end {
            return Err(StoreError::Range);
        }
        let config = MapConfig::try_new(range).map_err(|_| StoreError::Range)?;
        Ok(Self { map: MapStorage::new(Blocking(flash), config, Cache::new_uncached()) })
    }

    /// Counts this start and returns how many there were before. Erases a range that holds something else, or nothing
    /// that can be made sense of.
    pub fn count_start(&mut self) -> Result<u32, StoreError> {
        let count = self.count();
        if count == Err(StoreError::Foreign) {
            wait(self.map.erase_all()).map_err(reason)?;
            return self.count();
        }
        count
    }

    fn count(&mut self) -> Result<u32, StoreError> {
        let starts = self.get::<u32>(key::STARTS)?.unwrap_or(0);
        self.put(key::STARTS, &starts.wrapping_add(1))?;
        Ok(starts)
    }

    /// The plan kept, whole and checked, with its bit map in `map`. `None`, and an empty map, if there is none.
    pub fn plan(&mut self, map: &mut Map) -> Result<Option<Plan>, StoreError> {
        map.clear();
        let current = self.get::<Option<PlanId>>(key::CURRENT)?.flatten();
        let plan = self.get::<Plan>(key::PLAN)?;
        let Some(plan) = plan.filter(|plan| Some(plan.id) == current) else { return Ok(None) };
        let mut buffer = [0; BUFFER];
        for chunk in key::MAP..key::MAP + plan.grid.bytes().unwrap_or(0).div_ceil(PLAN_CHUNK) as u8
        {
            let bytes = wait(self.map.fetch_item::<&[u8]>(&mut buffer, &chunk)).map_err(reason)?;
            if map.extend_from_slice(bytes.unwrap_or_default()).is_err() {
                break;
            }
        }
        let whole = plan.check(map) == PlanReply::Accepted;
        if !whole {
            map.clear();
        }
        Ok(whole.then_some(plan))
    }

    /// Keeps a plan in the place of any other.
    pub fn keep_plan(&mut self, plan: &Plan, map: &Map) -> Result<(), StoreError> {
        self.put(key::CURRENT, &None::<PlanId>)?;
        let mut buffer = [0; BUFFER];
        for (chunk, bytes) in (key::MAP..).zip(map.chunks(PLAN_CHUNK)) {
            wait(self.map.store_item(&mut buffer, &chunk, &bytes)).map_err(reason)?;
        }
        self.put(key::PLAN, plan)?;
        self.put(key::CURRENT, &Some(plan.id))
    }

    /// The progress of this plan; `None` if none was kept.
    pub fn progress(&mut self, plan: PlanId) -> Result<Option<Progress>, StoreError> {
        Ok(self.get::<Progress>(key::PROGRESS)?.filter(|progress| progress.plan() == plan))
    }

    /// Keeps progress in the place of any other.
    pub fn keep_progress(&mut self, progress: &Progress) -> Result<(), StoreError> {
        self.put(key::PROGRESS, progress)
    }

    fn get<T: DeserializeOwned>(&mut self, key: u8) -> Result<Option<T>, StoreError> {
        let mut buffer = [0; BUFFER];
        let bytes = wait(self.map.fetch_item::<&[u8]>(&mut buffer, &key)).map_err(reason)?;
        // What another firmware wrote and this one cannot read counts as absent.
        Ok(bytes.and_then(|bytes| postcard::from_bytes(bytes).ok()))
    }

    fn put<T: Serialize>(&mut self, key: u8, value: &T) -> Result<(), StoreError> {
        let (mut bytes, mut buffer) = ([0; largest()], [0; BUFFER]);
        let bytes = &*postcard::to_slice(value, &mut bytes).map_err(|_| StoreError::Full)?;
        wait(self.map.store_item(&mut buffer, &key, &bytes)).map_err(reason)
    }
}

fn reason<E>(error: sequential_storage::Error<E>) -> StoreError {
    match error {
        sequential_storage::Error::FullStorage | sequential_storage::Error::ItemTooBig => {
            StoreError::Full
        }
        sequential_storage::Error::Corrupted { .. } => StoreError::Foreign,
        _ => StoreError::Flash,
    }
}

/// A flash whose calls return when they are done, for a map that awaits them.
struct Blocking<F>(F);

impl<F: NorFlash> embedded_storage_async::nor_flash::ErrorType for Blocking<F> {
    type Error = F::Error;
}

impl<F: NorFlash> embedded_storage_async::nor_flash::ReadNorFlash for Blocking<F> {
    const READ_SIZE: usize = F::READ_SIZE;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.read(offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl<F: NorFlash> embedded_storage_async::nor_flash::NorFlash for Blocking<F> {
    const WRITE_SIZE: usize = F::WRITE_SIZE;
    const ERASE_SIZE: usize = F::ERASE_SIZE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        self.0.erase(from, to)
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.write(offset, bytes)
    }
}

/// Runs a future that never waits, as all over [`Blocking`] do.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = core::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
