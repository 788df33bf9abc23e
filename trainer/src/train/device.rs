//! The device to compute on, chosen at run time among those compiled in.

use burn::tensor::Device;

use crate::{Error, Result};

/// Name of a device on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum DeviceName {
    /// The processor
    #[default]
    Cpu,
    /// A graphics processor through Vulkan, Metal or DirectX 12
    Wgpu,
    /// An NVIDIA graphics processor
    Cuda,
}

impl DeviceName {
    /// Opens the device, or tells how to build with it.
    pub fn open(self) -> Result<Device> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(0)),
            #[allow(unreachable_patterns, reason = "reached only without every device compiled in")]
            other => Err(Error::Request(format!(
                "this program was built without the {other} device; build it with `--features \
                 {other}`"
            ))),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        })
    }
}
