//! Graphics adapters: which there are, which is used, and opening it.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use serde::Serialize;

use super::shader::{Abilities, Matrices};
use super::tiling::SHARED_BY_MATRICES;

/// Environment variable that chooses an adapter by its number in the list or a part of its name.
pub const CHOICE: &str = "DIFFBULK_GPU";

/// An adapter as `diffbulk info --adapters` tells it.
#[derive(Debug, Clone, Serialize)]
pub struct Adapter {
    /// Name the driver gives.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// Interface: `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Float16 in shaders.
    pub half: bool,
    /// Smallest and largest subgroup, where shaders can use them.
    pub subgroups: Option<[u32; 2]>,
    /// Timestamps, for times of single operators.
    pub timestamps: bool,
    /// Cooperative matrices that the shaders can use.
    pub cooperative_matrices: Vec<CooperativeMatrices>,
    /// Largest buffer that a shader sees, in bytes.
    pub binding_bytes: u64,
    /// Shared memory of a workgroup, in bytes.
    pub workgroup_bytes: u32,
    /// Threads of a workgroup.
    pub workgroup_threads: u32,
}

/// Cooperative matrices: a subgroup multiplies two and adds to a third of float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CooperativeMatrices {
    /// Rows and columns.
    pub side: u32,
    /// What is multiplied is float16, otherwise float32.
    pub half: bool,
}

impl Adapter {
    fn new(adapter: &wgpu::Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let subgroups = features.contains(wgpu::Features::SUBGROUP);
        Self {
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "software",
                wgpu::DeviceType::Other => "other",
            },
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            name: info.name,
            half: features.contains(wgpu::Features::SHADER_F16),
            subgroups: subgroups.then_some([info.subgroup_min_size, info.subgroup_max_size]),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            cooperative_matrices: cooperative_matrices(adapter),
            binding_bytes: limits.max_storage_buffer_binding_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroup_threads: limits.max_compute_invocations_per_workgroup,
        }
    }

    /// True for a program that plays a graphics processor: slower than the `cpu` engine.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

/// The square ones with sums of float32, where the threads of a subgroup (four of which a workgroup has) and the
/// shared memory of a workgroup are what the shaders count on.
fn cooperative_matrices(adapter: &wgpu::Adapter) -> Vec<CooperativeMatrices> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
    if !features.contains(needed)
        || info.subgroup_min_size != info.subgroup_max_size
        || info.subgroup_max_size > 64
        || (limits.max_compute_workgroup_storage_size as usize) < SHARED_BY_MATRICES
    {
        return vec![];
    }
    let mut found = vec![];
    for of in adapter.cooperative_matrix_properties() {
        let is_square = of.m_size == of.n_size && of.n_size == of.k_size;
        let matrices = CooperativeMatrices { side: of.m_size, half: of.ab_type == F16 };
        let known = matches!(of.ab_type, F16 | F32) && of.cr_type == F32;
        if is_square && known && !found.contains(&matrices) {
            found.push(matrices);
        }
    }
    found
}

/// All adapters, the preferred first.
pub fn adapters() -> Vec<Adapter> {
    all().iter().map(Adapter::new).collect()
}

fn all() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(descriptor);
    let mut all = block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    // Stable: the system's own order decides among equals.
    all.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    all
}

/// An open adapter.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) about: Adapter,
    /// Shaders may use its cooperative matrices.
    cooperative: bool,
    /// What went wrong outside of any call.
    failure: Arc<Mutex<Option<String>>>,
}

impl Device {
    /// Opens the preferred adapter, or the one that [`CHOICE`] names; with its cooperative matrices, where it has
    /// some and they are asked for.
    ///
    /// # Errors
    /// When there is none, or its driver refuses.
    pub(super) fn open(cooperative: bool) -> Result<Self, String> {
        let mut all = all();
        let Some(choice) = std::env::var(CHOICE).ok().filter(|choice| !choice.is_empty()) else {
            if all.is_empty() {
                return Err(
                    "this machine has no graphics adapter with a Vulkan, Metal or DX12 driver; \
                            install the driver, or use --engine cpu"
                        .into(),
                );
            }
            return Self::of(&all.swap_remove(0), cooperative);
        };
        let named = |adapter: &wgpu::Adapter| {
            adapter.get_info().name.to_lowercase().contains(&choice.to_lowercase())
        };
        let number = choice.parse().ok().filter(|&at: &usize| at < all.len());
        let at = number.or_else(|| all.iter().position(named)).ok_or_else(|| {
            format!(
                "{CHOICE}={choice} is no adapter of this machine; `diffbulk info --adapters` lists {}",
                all.len()
            )
        })?;
        Self::of(&all.swap_remove(at), cooperative)
    }

    /// The same, but none where nobody names an adapter and there is only software.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub(super) fn open_hardware(cooperative: bool) -> Result<Option<Self>, String> {
        let named = std::env::var_os(CHOICE).is_some_and(|choice| !choice.is_empty());
        let worth = named || all().iter().any(|adapter| !Adapter::new(adapter).is_software());
        if worth { Self::open(cooperative).map(Some) } else { Ok(None) }
    }

    fn of(adapter: &wgpu::Adapter, cooperative: bool) -> Result<Self, String> {
        let about = Adapter::new(adapter);
        let cooperative = cooperative && !about.cooperative_matrices.is_empty();
        let mut wanted =
            wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let offered = adapter.limits();
        let mut shared = wgpu::Limits::defaults().max_compute_workgroup_storage_size;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if cooperative {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            shared = SHARED_BY_MATRICES as u32;
            // SAFETY: wgpu asks to accept that what is experimental may hold undefined behaviour, and does not
            // check where cooperative matrices are read and written. The shaders that have some (see
            // `Product::cooperative`) read and write them in arrays of their own workgroup alone, at places that
            // are constants of the shader but for the number of a subgroup, which is held below their number;
            // nothing of a model file decides them.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        // Core limits, but as large buffers as there are.
        let limits = wgpu::Limits {
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            max_compute_workgroup_storage_size: shared,
            ..wgpu::Limits::defaults()
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("diffbulk"),
            required_features: adapter.features() & wanted,
            required_limits: limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: experimental,
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&descriptor))
            .map_err(|error| format!("adapter {} cannot be opened: {error}", about.name))?;
        let failure = Arc::new(Mutex::new(None));
        let note = {
            let failure = Arc::clone(&failure);
            move |problem: String| {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(problem);
            }
        };
        device.on_uncaptured_error(Arc::new({
            let note = note.clone();
            move |error: wgpu::Error| note(error.to_string())
        }));
        device.set_device_lost_callback(move |reason, message| {
            note(format!("the device is lost ({reason:?}): {message}"));
        });
        Ok(Self { device, queue, about, cooperative, failure })
    }

    /// What its shaders may use; `half` asks for float16 where there is.
    pub(super) fn abilities(&self, half: bool) -> Abilities {
        let half = half && self.about.half;
        let matrices = |subgroup: u32| {
            let mut offered = self.about.cooperative_matrices.iter().filter(|_| self.cooperative);
            let of = offered.find(|of| of.half == half)?;
            Some(Matrices { side: of.side as usize, subgroup: subgroup as usize })
        };
        Abilities {
            half,
            subgroups: self.about.subgroups.is_some(),
            shared: !self.about.is_software(),
            matrices: self.about.subgroups.and_then(|[_, most]| matrices(most)),
        }
    }

    /// # Errors
    /// When something has gone wrong outside of any call.
    pub(super) fn check(&self) -> Result<(), String> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => Err(format!("adapter {}: {problem}", self.about.name)),
            None => Ok(()),
        }
    }

    /// Does `work`, and catches what the driver says to it.
    ///
    /// # Errors
    /// What it says.
    pub(super) fn scoped<T>(&self, what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Validation,
        ];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let made = work();
        let mut problem = None;
        // The last one pushed is the first to go.
        for scope in scopes.into_iter().rev() {
            problem = problem.or(block_on(scope.pop()));
        }
        match problem {
            Some(wgpu::Error::OutOfMemory { .. }) => Err(format!(
                "adapter {} has no memory left for {what}; use --engine cpu",
                self.about.name
            )),
            Some(error) => Err(format!("adapter {}, {what}: {error}", self.about.name)),
            None => Ok(made),
        }
    }

    /// How long a batch may take before the driver is taken to hang.
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs(if self.about.is_software() { 600 } else { 30 })
    }
}

/// Waits for a future of wgpu's; natively they are ready at once.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
