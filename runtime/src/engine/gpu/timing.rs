//! Times of single dispatches, from the device's own clock.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::adapter::Device;
use super::resident::{Resident, SLOTS};
use crate::bench::engine::median;

impl Resident {
    /// Median time of each dispatch for full batches of `tile`, in microseconds a tile, over
    /// `repetitions` batches; none where the device has no timestamps.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn times(
        &self,
        tile: &[u8],
        repetitions: usize,
    ) -> Result<Option<Vec<f64>>, String> {
        if !self.device.about.timestamps {
            return Ok(None);
        }
        let tiles = vec![tile; self.batch];
        let mut all = vec![Vec::with_capacity(repetitions); self.program.dispatches.len()];
        for _ in 0..=repetitions {
            let spans = {
                let _alone = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
                self.upload(&tiles);
                timestamps(&self.device, self.program.dispatches.len(), |k, pass| {
                    self.encode(pass, &self.program.dispatches[k], &self.bindings[k], tiles.len());
                })?
            };
            for (times, span) in all.iter_mut().zip(spans) {
                times.push(span / tiles.len() as f64);
            }
        }
        // The first one warms up.
        Ok(Some(all.iter_mut().map(|times| median(&mut times[1..])).collect()))
    }
}

/// Where a tile's time goes while batches follow each other, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    /// From one batch's end to the next one's.
    pub(super) wall: f64,
    /// While the device is at the dispatches of a batch.
    pub(super) pass: f64,
    /// While this side hands over images and commands.
    pub(super) submitting: f64,
    /// While this side reads results.
    pub(super) reading: f64,
}

impl Resident {
    /// Medians over `repetitions` full batches of `tile`, each submitted while the one before it runs; none where the
    /// device has no timestamps.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn shares(&self, tile: &[u8], repetitions: usize) -> Result<Option<Shares>, String> {
        if !self.device.about.timestamps {
            return Ok(None);
        }
        let gpu = &self.device.device;
        let tiles = vec![tile; self.batch];
        let spans: [Span; SLOTS] = std::array::from_fn(|_| Span::new(gpu));
        let _alone = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        let submit = |slot: usize| {
            self.device.scoped("timing", || {
                let start = Instant::now();
                let mut encoder = self.record(slot, &tiles, Some(spans[slot].writes()))?;
                spans[slot].resolve(&mut encoder);
                let flight = self.send(slot, tiles.len(), encoder);
                Ok::<_, String>((flight, start.elapsed()))
            })?
        };
        let mut all: [Vec<f64>; 4] = Default::default();
        let each = |duration: Duration| duration.as_secs_f64() * 1e6 / tiles.len() as f64;
        let mut under_way = submit(0)?;
        let mut last = Instant::now();
        // The first ones warm up.
        for k in 0..repetitions + 2 {
            let slot = k % SLOTS;
            let next = submit((slot + 1) % SLOTS)?;
            let (flight, submitting) = std::mem::replace(&mut under_way, next);
            let (_, reading) = self.collect(flight, self.device.deadline())?;
            let wall = last.elapsed();
            last = Instant::now();
            let pass = spans[slot].read(&self.device)? / tiles.len() as f64;
            if k >= 2 {
                let values = [each(wall), pass, each(submitting), each(reading)];
                all.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
            }
        }
        self.collect(under_way.0, self.device.deadline())?;
        let [wall, pass, submitting, reading] = all.map(|mut values| median(&mut values));
        Ok(Some(Shares { wall, pass, submitting, reading }))
    }
}

/// Two timestamps.
struct Span {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    read: wgpu::Buffer,
}

impl Span {
    const BYTES: u64 = 16;

    fn new(gpu: &wgpu::Device) -> Self {
        use wgpu::BufferUsages as Usage;
        let queries = gpu.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let buffer = |usage| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: Self::BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(Usage::QUERY_RESOLVE | Usage::COPY_SRC);
        Self { queries, resolved, read: buffer(Usage::COPY_DST | Usage::MAP_READ) }
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.read, 0, Self::BYTES);
    }

    /// Microseconds between the two, once what writes them has been waited for.
    fn read(&self, device: &Device) -> Result<f64, String> {
        let name = &device.about.name;
        self.read.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        // No submission under way uses it: nothing is waited for.
        let polled = device.device.poll(wgpu::PollType::Poll);
        polled.map_err(|error| format!("adapter {name}: {error}"))?;
        let span = {
            let range = self.read.slice(..).get_mapped_range();
            let range = range.map_err(|error| format!("adapter {name}: {error}"))?;
            span(device, &range)
        };
        self.read.unmap();
        Ok(span)
    }
}

/// Microseconds between two timestamps.
fn span(device: &Device, bytes: &[u8]) -> f64 {
    let (words, _) = bytes.as_chunks::<8>();
    let period = f64::from(device.queue.get_timestamp_period()) / 1e3;
    match words {
        [start, end, ..] => {
            let [start, end] = [*start, *end].map(u64::from_le_bytes);
            end.saturating_sub(start) as f64 * period
        }
        _ => 0.0,
    }
}

/// Runs `count` dispatches in passes of their own, and tells how long each took in microseconds.
pub(super) fn timestamps(
    device: &Device,
    count: usize,
    mut encode: impl FnMut(usize, &mut wgpu::ComputePass),
) -> Result<Vec<f64>, String> {
    // A set holds a limited number of queries.
    const SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
    let gpu = &device.device;
    let mut spans = Vec::with_capacity(count);
    for start in (0..count).step_by(SET) {
        let part = start..(start + SET).min(count);
        let bytes = part.len() as u64 * 16;
        let (read, submission) = device.scoped("timing", || {
            let queries = gpu.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * part.len() as u32,
            });
            let buffer = |usage| {
                gpu.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: bytes,
                    usage,
                    mapped_at_creation: false,
                })
            };
            use wgpu::BufferUsages as Usage;
            let resolved = buffer(Usage::QUERY_RESOLVE | Usage::COPY_SRC);
            let read = buffer(Usage::COPY_DST | Usage::MAP_READ);
            let mut encoder = gpu.create_command_encoder(&Default::default());
            for k in part.clone() {
                let first = 2 * (k - start) as u32;
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(first),
                        end_of_pass_write_index: Some(first + 1),
                    }),
                });
                encode(k, &mut pass);
            }
            encoder.resolve_query_set(&queries, 0..2 * part.len() as u32, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, bytes);
            let submission = device.queue.submit([encoder.finish()]);
            read.slice(..).map_async(wgpu::MapMode::Read, |_| {});
            (read, submission)
        })?;
        let waited = gpu.poll(wgpu::PollType::Wait {
            submission_index: Some(submission),
            timeout: Some(device.deadline()),
        });
        device.check()?;
        let name = &device.about.name;
        waited.map_err(|error| format!("adapter {name}: {error}"))?;
        let range = read
            .slice(..)
            .get_mapped_range()
            .map_err(|error| format!("adapter {name}: {error}"))?;
        spans.extend(range.chunks_exact(16).map(|pair| span(device, pair)));
    }
    Ok(spans)
}
