//! Light and camera.

use crate::config::ExposureConfig;
use embedded_hal::digital::{InputPin, OutputPin};
use thiserror::Error;

/// Why an exposure failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CameraFault {
    /// The camera was not ready in time.
    #[error("the camera was not ready in time: check its power and cable")]
    NotReady,
    /// A pin failed.
    #[error("a pin of light or camera could not be read or set")]
    Pin,
}

/// Takes a picture. Nothing here blocks.
pub trait Camera {
    /// Begins an exposure.
    fn expose(&mut self, now_us: u64);
    /// Goes on with it; true once it is done.
    fn poll(&mut self, now_us: u64) -> Result<bool, CameraFault>;
    /// Ends whatever is going on, light first.
    fn dark(&mut self);
}

/// A camera with a trigger input and a ready output, and a light that shines while its pin is high.
///
/// The flash is as exact as polls are apart. Where that is not enough, drive trigger and light from a timer's
/// one-shot outputs and implement [`Camera`] over it.
#[derive(Debug)]
pub struct StrobeCamera<Trigger, Light, Ready> {
    config: ExposureConfig,
    trigger: Trigger,
    light: Light,
    ready: Ready,
    phase: Phase,
    since_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Until the camera can take a picture.
    Before,
    /// Triggered, dark.
    Lead,
    Flash,
    /// Until the camera can take the next.
    After,
}

impl<Trigger: OutputPin, Light: OutputPin, Ready: InputPin> StrobeCamera<Trigger, Light, Ready> {
    /// Idle and dark.
    pub fn new(config: ExposureConfig, trigger: Trigger, light: Light, ready: Ready) -> Self {
        Self { config, trigger, light, ready, phase: Phase::Idle, since_us: 0 }
    }

    fn enter(&mut self, phase: Phase, now_us: u64) {
        (self.phase, self.since_us) = (phase, now_us);
    }

    fn advance(&mut self, now_us: u64) -> Result<bool, CameraFault> {
        let passed = now_us.saturating_sub(self.since_us);
        let late = passed > u64::from(self.config.ready_ms) * 1000;
        match self.phase {
            Phase::Idle => return Ok(true),
            Phase::Before => {
                if self.ready.is_high().map_err(|_| CameraFault::Pin)? {
                    self.trigger.set_high().map_err(|_| CameraFault::Pin)?;
                    self.enter(Phase::Lead, now_us);
                } else if late {
                    return Err(CameraFault::NotReady);
                }
            }
            Phase::Lead if passed >= u64::from(self.config.lead_us) => {
                self.light.set_high().map_err(|_| CameraFault::Pin)?;
                self.enter(Phase::Flash, now_us);
            }
            Phase::Flash if passed >= u64::from(self.config.flash_us) => {
                self.light.set_low().map_err(|_| CameraFault::Pin)?;
                self.trigger.set_low().map_err(|_| CameraFault::Pin)?;
                self.enter(Phase::After, now_us);
            }
            Phase::After => {
                if self.ready.is_high().map_err(|_| CameraFault::Pin)? {
                    self.phase = Phase::Idle;
                    return Ok(true);
                } else if late {
                    return Err(CameraFault::NotReady);
                }
            }
            Phase::Lead | Phase::Flash => {}
        }
        Ok(false)
    }
}

impl<Trigger: OutputPin, Light: OutputPin, Ready: InputPin> Camera
    for StrobeCamera<Trigger, Light, Ready>
{
    fn expose(&mut self, now_us: u64) {
        self.enter(Phase::Before, now_us);
    }

    fn poll(&mut self, now_us: u64) -> Result<bool, CameraFault> {
        let done = self.advance(now_us);
        if done.is_err() {
            self.dark();
        }
        done
    }

    fn dark(&mut self) {
        // Both are tried whatever becomes of the other; a pin that fails is told at the next exposure.
        let _ = self.light.set_low();
        let _ = self.trigger.set_low();
        self.phase = Phase::Idle;
    }
}
