//! The `auto` engine: the graphics processor where there is one, the processor's cores otherwise.
//!
//! A device that fails (lost, out of memory, a driver that hangs) is left for the rest of the run: the
//! tile it failed on and all after it are predicted by the `cpu` engine. Sessions tell which engine
//! each tile came from, so that results are never mixed silently.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{DevicePeak, DeviceShares, Engine, OperatorTime, Options, Session, cpu};
use crate::Result;
use crate::model::{Model, pb::ModelProto};

/// Registered name.
pub(crate) const NAME: &str = "auto";

struct AutoEngine {
    device: Box<dyn Engine>,
    cores: Arc<dyn Engine>,
    /// The device has failed.
    failed: Arc<AtomicBool>,
}

/// Loads `model` on a graphics processor, with the cores behind it, or on the cores alone.
pub(crate) fn open(
    model: &Model,
    proto: Cow<ModelProto>,
    options: &Options,
) -> Result<Box<dyn Engine>> {
    #[cfg(feature = "wgpu")]
    match super::gpu::open_hardware(model, Cow::Borrowed(&proto), options) {
        Ok(Some(device)) => return Ok(pair(device, cpu::open(model, proto)?)),
        Ok(None) => tracing::info!("no graphics processor; the cpu engine runs the model"),
        Err(why) => tracing::warn!("{why}; the cpu engine runs the model"),
    }
    #[cfg(not(feature = "wgpu"))]
    let _ = options;
    cpu::open(model, proto)
}

/// `device` with `cores` behind it.
pub(crate) fn pair(device: Box<dyn Engine>, cores: Box<dyn Engine>) -> Box<dyn Engine> {
    Box::new(AutoEngine { device, cores: cores.into(), failed: Arc::default() })
}

impl Engine for AutoEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn session(&self) -> Result<Box<dyn Session>> {
        Ok(Box::new(AutoSession {
            device: Some(self.device.session()?),
            device_name: self.device.name(),
            cores: Arc::clone(&self.cores),
            on_cores: None,
            failed: Arc::clone(&self.failed),
            ran_on: None,
        }))
    }

    fn sessions(&self, threads: usize) -> usize {
        self.device.sessions(threads)
    }

    fn instructions(&self) -> Option<String> {
        self.device.instructions()
    }

    fn cooperative_matrices(&self) -> bool {
        self.device.cooperative_matrices()
    }

    fn list(&self) -> Option<String> {
        self.device.list()
    }

    fn operator_times(&self, image: &[u8], repetitions: usize) -> Result<Vec<OperatorTime>> {
        self.device.operator_times(image, repetitions)
    }

    fn operator_bytes(&self) -> Vec<u64> {
        self.device.operator_bytes()
    }

    fn device_peak(&self) -> Result<Option<DevicePeak>> {
        self.device.device_peak()
    }

    fn device_shares(&self, image: &[u8], repetitions: usize) -> Result<Option<DeviceShares>> {
        self.device.device_shares(image, repetitions)
    }
}

struct AutoSession {
    device: Option<Box<dyn Session>>,
    device_name: &'static str,
    cores: Arc<dyn Engine>,
    /// Made when it is needed.
    on_cores: Option<Box<dyn Session>>,
    failed: Arc<AtomicBool>,
    ran_on: Option<&'static str>,
}

impl Session for AutoSession {
    fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            self.device = None;
        }
        if let Some(device) = &mut self.device {
            match device.predict_into(image, values) {
                Ok(()) => {
                    self.ran_on = Some(self.device_name);
                    return Ok(());
                }
                Err(why) => {
                    if !self.failed.swap(true, Ordering::Relaxed) {
                        tracing::warn!("{why}; the cpu engine goes on with the same tile");
                    }
                    self.device = None;
                }
            }
        }
        let session = match &mut self.on_cores {
            Some(session) => session,
            none => none.insert(self.cores.session()?),
        };
        session.predict_into(image, values)?;
        self.ran_on = Some(self.cores.name());
        Ok(())
    }

    fn ran_on(&self) -> Option<&'static str> {
        self.ran_on
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::Error;

    /// Gives its number, and fails from the tile after `good` on.
    struct Fake {
        name: &'static str,
        good: usize,
        done: Arc<AtomicUsize>,
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn session(&self) -> Result<Box<dyn Session>> {
            let Self { name, good, ref done } = *self;
            Ok(Box::new(Fake { name, good, done: Arc::clone(done) }))
        }
    }

    impl Session for Fake {
        fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
            if self.done.fetch_add(1, Ordering::SeqCst) >= self.good {
                return Err(Error::Engine {
                    engine: self.name,
                    problem: "the device is lost".into(),
                });
            }
            *values = vec![f32::from(image[0])];
            Ok(())
        }
    }

    #[test]
    fn a_lost_device_is_left_and_the_same_tile_goes_on_elsewhere() {
        let fake = |name, good| Box::new(Fake { name, good, done: Arc::default() });
        let engine = pair(fake("device", 2), fake("cores", usize::MAX));
        let mut sessions = [engine.session().unwrap(), engine.session().unwrap()];
        let mut ran_on = vec![];
        for tile in 0..6u8 {
            let session = &mut sessions[usize::from(tile % 2)];
            assert_eq!(session.predict(&[tile]).unwrap(), [f32::from(tile)]);
            ran_on.push(session.ran_on().unwrap());
        }
        assert_eq!(ran_on, ["device", "device", "cores", "cores", "cores", "cores"]);
    }
}
