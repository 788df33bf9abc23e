//! A program on a device: pipelines, buffers and bind groups, made once; and running a batch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tract_onnx::tract_core::internal::f16;
use wgpu::util::{BufferInitDescriptor, DeviceExt};

use super::adapter::Device;
use super::program::{Dispatch, Program};

/// Bytes of maps beyond which a batch is not made larger.
const MOST_BYTES: usize = 256 << 20;

/// Batches under way: one that runs, one that is being prepared or read.
pub(super) const SLOTS: usize = 2;

/// See the module.
pub(super) struct Resident {
    pub(super) device: Arc<Device>,
    pub(super) program: Arc<Program>,
    /// Tiles that fit a batch.
    pub(super) batch: usize,
    pipelines: Vec<wgpu::ComputePipeline>,
    /// One for each dispatch.
    pub(super) bindings: Vec<wgpu::BindGroup>,
    pub(super) arena: wgpu::Buffer,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look into it"))]
    pub(super) words: wgpu::Buffer,
    images: wgpu::Buffer,
    /// Where images are handed over, one for each batch under way; open to this side while none is.
    uploads: [wgpu::Buffer; SLOTS],
    /// Where results are read from, likewise.
    results: [wgpu::Buffer; SLOTS],
    /// Held while images are uploaded and the batch that reads them is submitted.
    pub(super) submitting: Mutex<()>,
}

/// A batch that was submitted.
pub(super) struct Flight {
    slot: usize,
    tiles: usize,
    submission: wgpu::SubmissionIndex,
    mapped: mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// Shaders compiled for one device, by their text.
pub(super) type Compiled = HashMap<String, wgpu::ComputePipeline>;

impl Resident {
    /// Uploads `program`, for at most `batch` tiles at a time.
    ///
    /// # Errors
    /// When the device has not the memory, or its limits are too small.
    pub(super) fn new(
        device: Arc<Device>,
        program: Arc<Program>,
        batch: usize,
    ) -> Result<Self, String> {
        Self::sharing(device, program, batch, &mut Compiled::new())
    }

    /// The same; shaders that other programs of the device have in common with it are not compiled again.
    ///
    /// # Errors
    /// As [`Resident::new`].
    pub(super) fn sharing(
        device: Arc<Device>,
        program: Arc<Program>,
        batch: usize,
        compiled: &mut Compiled,
    ) -> Result<Self, String> {
        let limits = device.device.limits();
        let tile = program.arena_bytes().max(program.image[1] * 4).max(program.words * 4);
        let binding = limits.max_storage_buffer_binding_size as usize;
        let batch = batch.min(MOST_BYTES.max(tile) / tile).min(binding / tile);
        let largest = program.dispatches.iter().map(|d| d.weights.len().max(d.factors.len())).max();
        let buffer = usize::try_from(limits.max_buffer_size).unwrap_or(usize::MAX);
        let needed = largest.unwrap_or(0);
        if batch == 0 || needed > binding || program.constants.len() > buffer {
            return Err(format!(
                "adapter {} lets shaders see {} MiB at a time and keeps {} MiB in a buffer; this \
                 model needs {} MiB for a tile, {} MiB for an operator's weights and {} MiB for all; \
                 use --engine cpu",
                device.about.name,
                binding >> 20,
                buffer >> 20,
                tile.div_ceil(1 << 20),
                needed.div_ceil(1 << 20),
                program.constants.len().div_ceil(1 << 20)
            ));
        }
        device.scoped("loading the model", || Self::make(&device, &program, batch, compiled)).map(
            |parts| {
                let Parts { pipelines, bindings, arena, words, images, uploads, results } = parts;
                let submitting = Mutex::default();
                Self {
                    device,
                    program,
                    batch,
                    pipelines,
                    bindings,
                    arena,
                    words,
                    images,
                    uploads,
                    results,
                    submitting,
                }
            },
        )
    }

    fn make(device: &Device, program: &Program, batch: usize, compiled: &mut Compiled) -> Parts {
        let gpu = &device.device;
        let storage = |binding: u32, read_only: bool| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match binding {
                    2 => wgpu::BufferBindingType::Uniform,
                    _ => wgpu::BufferBindingType::Storage { read_only },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = gpu.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("operator"),
            entries: &[
                storage(0, false),
                storage(1, true),
                storage(2, true),
                storage(3, true),
                storage(4, true),
                storage(5, false),
            ],
        });
        let pipeline_layout = gpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("operator"),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let compile = |source: &String| {
            let known = compiled.entry(source.clone());
            known.or_insert_with(|| pipeline(gpu, &pipeline_layout, source)).clone()
        };
        let pipelines = program.sources.iter().map(compile).collect();
        let buffer = |label, size: usize, usage| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: size as u64,
                usage,
                mapped_at_creation: false,
            })
        };
        let (storage, copied) = (wgpu::BufferUsages::STORAGE, wgpu::BufferUsages::COPY_DST);
        let read = storage | wgpu::BufferUsages::COPY_SRC;
        let arena = buffer("maps", batch * program.arena_bytes(), read);
        let images = buffer("images", batch * program.image[1] * 4, storage | copied);
        let words = buffer("words", batch * program.words * 4, read);
        let uploads = std::array::from_fn(|_| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some("uploads"),
                size: (batch * program.image[1] * 4) as u64,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            })
        });
        let results = std::array::from_fn(|_| {
            let size = batch * result_bytes(program);
            buffer("results", size, copied | wgpu::BufferUsages::MAP_READ)
        });
        let upload = |label, contents, usage| {
            gpu.create_buffer_init(&BufferInitDescriptor { label: Some(label), contents, usage })
        };
        let constants = upload("constants", &program.constants, storage);
        let params = upload("numbers", &program.params, wgpu::BufferUsages::UNIFORM);
        let part = |buffer, range: &std::ops::Range<usize>| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: range.start as u64,
                size: wgpu::BufferSize::new(range.len() as u64),
            })
        };
        let bindings = program
            .dispatches
            .iter()
            .map(|dispatch| {
                let resources = [
                    arena.as_entire_binding(),
                    part(&constants, &dispatch.weights),
                    part(&params, &dispatch.params),
                    images.as_entire_binding(),
                    part(&constants, &dispatch.factors),
                    words.as_entire_binding(),
                ];
                let mut number = 0..;
                let entries = resources.map(|resource| wgpu::BindGroupEntry {
                    binding: number.next().unwrap_or_default(),
                    resource,
                });
                gpu.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: None,
                    layout: &layout,
                    entries: &entries,
                })
            })
            .collect();
        Parts { pipelines, bindings, arena, words, images, uploads, results }
    }

    /// Submits `tiles` as a batch that leaves its results in `slot`, whose last batch was read.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn submit(&self, slot: usize, tiles: &[&[u8]]) -> Result<Flight, String> {
        self.device.check()?;
        let _alone = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.scoped("submitting a batch", || {
            let encoder = self.record(slot, tiles, None)?;
            Ok(self.send(slot, tiles.len(), encoder))
        })?
    }

    /// The commands of a batch; `timestamps` are written around its dispatches.
    ///
    /// # Errors
    /// When the slot's last batch was not waited for, or the device is lost.
    pub(super) fn record(
        &self,
        slot: usize,
        tiles: &[&[u8]],
        timestamps: Option<wgpu::ComputePassTimestampWrites>,
    ) -> Result<wgpu::CommandEncoder, String> {
        let padded = self.program.image[1] * 4;
        let upload = &self.uploads[slot];
        {
            let mut open = upload.slice(..).get_mapped_range_mut().map_err(|error| {
                format!("adapter {}: images cannot be handed over: {error}", self.device.about.name)
            })?;
            for (k, tile) in tiles.iter().enumerate() {
                open.slice(k * padded..k * padded + tile.len()).copy_from_slice(tile);
            }
        }
        upload.unmap();
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        let bytes = (tiles.len() * padded) as u64;
        encoder.copy_buffer_to_buffer(upload, 0, &self.images, 0, bytes);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: timestamps,
            });
            for (dispatch, binding) in self.program.dispatches.iter().zip(&self.bindings) {
                self.encode(&mut pass, dispatch, binding, tiles.len());
            }
        }
        let (size, output) = (result_bytes(&self.program), self.program.output);
        let element = self.program.arena_bytes() / self.program.arena;
        for k in 0..tiles.len() {
            let from = (k * self.program.arena_bytes() + output.offset * element) as u64;
            let (results, to) = (&self.results[slot], (k * size) as u64);
            encoder.copy_buffer_to_buffer(&self.arena, from, results, to, size as u64);
        }
        Ok(encoder)
    }

    /// Hands the commands of a batch of `tiles` tiles in `slot` to the device.
    pub(super) fn send(&self, slot: usize, tiles: usize, encoder: wgpu::CommandEncoder) -> Flight {
        let submission = self.device.queue.submit([encoder.finish()]);
        let (sender, mapped) = mpsc::channel();
        let size = (tiles * result_bytes(&self.program)) as u64;
        self.results[slot].slice(..size).map_async(wgpu::MapMode::Read, move |done| {
            // Nobody waits any more where an earlier batch failed.
            let _ = sender.send(done);
        });
        self.uploads[slot].slice(..).map_async(wgpu::MapMode::Write, |_| {});
        Flight { slot, tiles, submission, mapped }
    }

    /// Waits for a batch; every tile's predictions.
    ///
    /// # Errors
    /// When the device fails or takes longer than `deadline`.
    pub(super) fn wait(&self, flight: Flight, deadline: Duration) -> Result<Vec<Vec<f32>>, String> {
        self.collect(flight, deadline).map(|(values, _)| values)
    }

    /// The same, with the time that reading took.
    pub(super) fn collect(
        &self,
        flight: Flight,
        deadline: Duration,
    ) -> Result<(Vec<Vec<f32>>, Duration), String> {
        let polled = self.device.device.poll(wgpu::PollType::Wait {
            submission_index: Some(flight.submission),
            timeout: Some(deadline),
        });
        self.device.check()?;
        let name = &self.device.about.name;
        polled.map_err(|error| match error {
            wgpu::PollError::Timeout => format!(
                "adapter {name} has not finished a batch of {} tiles in {} s; its driver hangs",
                flight.tiles,
                deadline.as_secs()
            ),
            error => format!("adapter {name}: {error}"),
        })?;
        let start = Instant::now();
        match flight.mapped.recv_timeout(deadline) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("adapter {name}: {error}")),
            Err(_) => return Err(format!("adapter {name} does not hand out its results")),
        }
        let size = result_bytes(&self.program);
        let slice = self.results[flight.slot].slice(..(flight.tiles * size) as u64);
        let values = {
            let bytes =
                slice.get_mapped_range().map_err(|error| format!("adapter {name}: {error}"))?;
            bytes.chunks_exact(size).map(|tile| self.values(tile)).collect()
        };
        self.results[flight.slot].unmap();
        self.device.check()?;
        Ok((values, start.elapsed()))
    }

    /// One tile's predictions from its bytes: the channels of each pixel.
    fn values(&self, bytes: &[u8]) -> Vec<f32> {
        let output = self.program.output;
        let pixels = bytes.chunks_exact(bytes.len() / output.pixels());
        let mut values = Vec::with_capacity(output.pixels() * output.channels);
        for pixel in pixels {
            if self.program.abilities.half {
                let halves = pixel.chunks_exact(2).take(output.channels);
                values.extend(halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()));
            } else {
                let reals = pixel.chunks_exact(4).take(output.channels);
                values.extend(reals.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        values
    }

    pub(super) fn upload(&self, tiles: &[&[u8]]) {
        let (bytes, padded) = (self.program.image[0], self.program.image[1] * 4);
        for (k, tile) in tiles.iter().enumerate() {
            let at = (k * padded) as u64;
            if bytes == padded {
                self.device.queue.write_buffer(&self.images, at, tile);
            } else {
                let mut whole = tile.to_vec();
                whole.resize(padded, 0);
                self.device.queue.write_buffer(&self.images, at, &whole);
            }
        }
    }

    pub(super) fn encode(
        &self,
        pass: &mut wgpu::ComputePass,
        dispatch: &Dispatch,
        binding: &wgpu::BindGroup,
        tiles: usize,
    ) {
        let [x, y] = dispatch.groups;
        pass.set_pipeline(&self.pipelines[dispatch.source]);
        pass.set_bind_group(0, binding, &[]);
        pass.dispatch_workgroups(x, y, tiles as u32);
    }
}

struct Parts {
    pipelines: Vec<wgpu::ComputePipeline>,
    bindings: Vec<wgpu::BindGroup>,
    arena: wgpu::Buffer,
    words: wgpu::Buffer,
    images: wgpu::Buffer,
    uploads: [wgpu::Buffer; SLOTS],
    results: [wgpu::Buffer; SLOTS],
}

fn result_bytes(program: &Program) -> usize {
    program.output.pixels() * program.output.c4() * if program.abilities.half { 8 } else { 16 }
}

pub(super) fn pipeline(
    device: &wgpu::Device,
    layout: &wgpu::PipelineLayout,
    source: &str,
) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // Every shader writes shared memory before it reads it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    })
}
