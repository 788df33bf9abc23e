//! Times of single dispatches, from the device's own clock.

use std::sync::PoisonError;

use super::adapter::Device;
use super::resident::Resident;
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
        let period = f64::from(device.queue.get_timestamp_period()) / 1e3;
        let (words, _) = range.as_chunks::<8>();
        spans.extend(words.chunks_exact(2).map(|pair| {
            let [start, end] = [pair[0], pair[1]].map(u64::from_le_bytes);
            end.saturating_sub(start) as f64 * period
        }));
    }
    Ok(spans)
}
