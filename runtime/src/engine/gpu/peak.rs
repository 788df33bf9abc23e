//! What a device can do at best, measured: multiply-adds from registers, and bytes through memory.

use wgpu::util::{BufferInitDescriptor, DeviceExt};

use super::adapter::Device;
use super::resident::pipeline;
use super::timing::timestamps;
use crate::engine::DevicePeak;

/// Threads of a workgroup of both probes.
const THREADS: u64 = 256;

/// Multiply-adds of a step of the first probe: eight chains of four.
const STEP: u64 = 8 * 4;

/// Bytes of a step of the second: one element read and written.
const ELEMENT: u64 = 2 * 16;

/// Times of which the best counts.
const REPETITIONS: usize = 3;

/// Measures; none where the device has no timestamps.
///
/// # Errors
/// When the device fails.
pub(super) fn measure(device: &Device) -> Result<Option<DevicePeak>, String> {
    if !device.about.timestamps {
        return Ok(None);
    }
    let software = device.about.is_software();
    // Long enough for the device's clock, short enough for software.
    let (groups, steps) = if software { (8, 256) } else { (2048, 2048) };
    let elements: u64 = if software { 1 << 18 } else { 1 << 22 };
    let flops = groups * THREADS * steps * STEP * 2;
    let bytes = elements * ELEMENT;
    let gpu = &device.device;
    let (pipelines, binding) = device.scoped("a probe", || {
        let storage = |binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: false },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = gpu.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("probe"),
            entries: &[storage(0), storage(1)],
        });
        let pipeline_layout = gpu.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("probe"),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let pipelines = [flops_shader(steps), copy_shader()]
            .map(|source| pipeline(gpu, &pipeline_layout, &source));
        let zeros = vec![0; elements as usize * 16];
        let buffers = [0, 1].map(|_| {
            gpu.create_buffer_init(&BufferInitDescriptor {
                label: Some("probe"),
                contents: &zeros,
                usage: wgpu::BufferUsages::STORAGE,
            })
        });
        let entries = [0, 1].map(|k| wgpu::BindGroupEntry {
            binding: k as u32,
            resource: buffers[k].as_entire_binding(),
        });
        let binding = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &entries,
        });
        (pipelines, binding)
    })?;
    let spans = timestamps(device, 2 * REPETITIONS, |k, pass| {
        pass.set_pipeline(&pipelines[k % 2]);
        pass.set_bind_group(0, &binding, &[]);
        pass.dispatch_workgroups([groups, elements / THREADS][k % 2] as u32, 1, 1);
    })?;
    let best = |which: usize| {
        let times = spans.iter().skip(which).step_by(2);
        times.fold(f64::INFINITY, |best, time| best.min(*time)).max(1e-3)
    };
    Ok(Some(DevicePeak {
        gflops: flops as f64 / best(0) / 1e3,
        gbytes: bytes as f64 / best(1) / 1e3,
    }))
}

const BINDINGS: &str = "
@group(0) @binding(0) var<storage, read_write> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<f32>>;
";

fn flops_shader(steps: u64) -> String {
    let each = |line: &dyn Fn(u32) -> String| (0..8).map(line).collect::<String>();
    format!(
        "{BINDINGS}
@compute @workgroup_size({THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
  // Not known to the compiler, so that nothing is left out.
  let x = a[0] + 0.5;
  let y = a[1] + f32(id.x);
{}  for (var i = 0u; i < {steps}u; i++) {{
{}  }}
  a[id.x % arrayLength(&a)] = {};
}}",
        each(&|k| format!("  var s{k} = y + {k}.0;\n")),
        each(&|k| format!("    s{k} = fma(s{k}, x, y);\n")),
        (0..8).map(|k| format!("s{k}")).collect::<Vec<_>>().join(" + ")
    )
}

fn copy_shader() -> String {
    format!(
        "{BINDINGS}
@compute @workgroup_size({THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
  b[id.x] = a[id.x] + 1.0;
}}"
    )
}
