//! A stored slide as the camera over the stage sees it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use diffbulk_link::heapless;
use diffbulk_link::limits::{PIXEL_CHUNK, PIXELS};
use diffbulk_link::message::{
    Action, Chunk, Encoding, FromHost, Hello, NoPixels, Pixels, Reason, Role, SURVEY, Shot,
    Slide as SlideMessage, Summary, Survey, TileEvent, ToHost, Why,
};
use diffbulk_link::session::{CameraSession, Event, Timing};
use diffbulk_link::units::{Um, UmPerPx};
use image::RgbImage;

use super::endpoint::Endpoint;
use super::{Report, Settings};
use crate::serve::Latencies;
use crate::slide::{Slide, best_level, overview_at};
use crate::{Error, Result};

/// Longest wait for something to happen.
const WAIT: Duration = Duration::from_millis(20);

/// Quality of pictures that are sent as JPEG.
const JPEG_QUALITY: u8 = 90;

/// The optics: what a picture covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Optics {
    /// Side of the square that has to be on every picture, um.
    pub(super) field_um: f64,
    /// um/px at which the model looks: decides the margin that resampling needs.
    pub(super) model_um_per_px: f64,
    /// How pictures are sent.
    pub(super) jpeg: bool,
}

struct Outgoing {
    header: Pixels,
    bytes: Vec<u8>,
    /// Next byte to send; `None` before the header.
    at: Option<usize>,
}

/// What the lens is asked for.
enum Ask {
    Survey(Survey),
    Capture(TileEvent),
}

/// What it gives: a picture, or that there is none.
type Given = std::result::Result<Outgoing, NoPixels>;

/// Makes pictures from the slide, on a thread of its own: the link must not fall silent over a
/// slow disk.
struct Lens<'a> {
    slide: &'a dyn Slide,
    um_per_px: f64,
    optics: Optics,
    surveys: BTreeMap<u64, RgbImage>,
}

/// The camera's side of the scan.
pub(super) struct Camera<'a> {
    slide: &'a dyn Slide,
    um_per_px: f64,
    optics: Optics,
    /// Time between two pictures.
    period: Duration,
    outgoing: VecDeque<Outgoing>,
    captures: VecDeque<TileEvent>,
    /// Pictures the lens has still to give.
    developing: usize,
    last: Option<Instant>,
    none: VecDeque<NoPixels>,
    latency: Latencies,
    report: Report,
}

impl<'a> Camera<'a> {
    pub(super) fn new(slide: &'a dyn Slide, um_per_px: f64, settings: &Settings) -> Result<Self> {
        let period = match settings.rate {
            Some(rate) if rate.is_finite() && rate > 0.0 => Duration::from_secs_f64(1.0 / rate),
            Some(rate) => {
                return Err(Error::Request(format!("{rate} tiles a second is no rate")));
            }
            None => Duration::ZERO,
        };
        Ok(Self {
            slide,
            um_per_px,
            optics: settings.optics,
            period,
            outgoing: VecDeque::new(),
            captures: VecDeque::new(),
            developing: 0,
            last: None,
            none: VecDeque::new(),
            latency: Latencies::default(),
            report: Report::default(),
        })
    }

    /// Plays until the host says that the scan is done, or `stop` is set. `results` is told how
    /// many results have come.
    pub(super) fn run(
        self,
        settings: &Settings,
        stop: &AtomicBool,
        results: &AtomicU64,
    ) -> Result<Report> {
        let (ask, asked) = unbounded::<Ask>();
        let (give, given) = unbounded::<Result<Given>>();
        let mut lens = Lens {
            slide: self.slide,
            um_per_px: self.um_per_px,
            optics: self.optics,
            surveys: BTreeMap::new(),
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for ask in asked {
                    let given = match ask {
                        Ask::Survey(survey) => lens.survey(&survey),
                        Ask::Capture(event) => lens.picture(&event),
                    };
                    if give.send(given).is_err() {
                        return;
                    }
                }
            });
            self.play(settings, stop, results, ask, &given)
        })
    }

    fn play(
        mut self,
        settings: &Settings,
        stop: &AtomicBool,
        results: &AtomicU64,
        ask: Sender<Ask>,
        given: &Receiver<Result<Given>>,
    ) -> Result<Report> {
        let hello = Hello {
            role: Role::Camera,
            version: crate::VERSION.try_into().unwrap_or_default(),
            model: None,
            panel: heapless::Vec::new(),
            resume: None,
        };
        let session = CameraSession::new(Timing::default(), super::epoch()?, hello);
        let mut link = Endpoint::new(session, settings.host.clone(), settings.token.clone());
        let about = self.about()?;
        let start = Instant::now();
        let mut summary = None;
        while summary.is_none() && !stop.load(Ordering::Relaxed) {
            let event = link.poll(self.patience());
            match event {
                None => {}
                Some(Event::Up(hello)) => {
                    tracing::info!(
                        model = hello.model.as_ref().map(|model| model.name.as_str()),
                        "the host is there"
                    );
                    (self.outgoing, self.captures) = Default::default();
                    // A session that is new has room.
                    let _ = link.send(&ToHost::Slide(about.clone()));
                }
                Some(Event::Down(why)) => tracing::warn!(?why, "the host is gone"),
                Some(Event::Incompatible(drift)) => return Err(Error::Request(drift.to_string())),
                Some(Event::Malformed) => tracing::warn!("the host sent a message that is none"),
                Some(Event::Message(message)) => summary = self.take(message, &ask),
            }
            results.store(self.report.results, Ordering::Relaxed);
            self.expose(&ask);
            while let Ok(given) = given.try_recv() {
                self.developing -= 1;
                match given? {
                    Ok(outgoing) => self.outgoing.push_back(outgoing),
                    Err(none) => self.none.push_back(none),
                }
            }
            while link.is_up() && link.room() > 0 {
                let Some(message) = self.next_message() else { break };
                if link.send(&message).is_err() {
                    break;
                }
            }
        }
        self.report.connections = link.connections;
        link.close();
        self.report.summary = summary;
        self.report.seconds = start.elapsed().as_secs_f64();
        self.report.p50_ms = self.latency.quantile(0.5).map(|s| s * 1e3);
        self.report.p99_ms = self.latency.quantile(0.99).map(|s| s * 1e3);
        Ok(self.report)
    }

    fn about(&self) -> Result<SlideMessage> {
        let base = &self.slide.info().levels[0];
        let um = |pixels: u32| {
            Um::new(f64::from(pixels) * self.um_per_px)
                .ok_or_else(|| Error::slide(self.slide.path(), "it is larger than any stage"))
        };
        let name = self.slide.path().file_name().unwrap_or_default().to_string_lossy();
        let mut short = heapless::String::new();
        for c in name.chars() {
            // A longer name is cut.
            if short.push(c).is_err() {
                break;
            }
        }
        Ok(SlideMessage {
            name: short,
            width: um(base.width)?,
            height: um(base.height)?,
            scale: UmPerPx::new(self.um_per_px)
                .ok_or_else(|| Error::Request(format!("{} um/px is no scale", self.um_per_px)))?,
        })
    }

    /// How long there is nothing to do of itself.
    fn patience(&self) -> Duration {
        if !self.outgoing.is_empty() || !self.none.is_empty() || self.developing > 0 {
            return Duration::from_millis(1);
        }
        match (self.captures.is_empty(), self.last) {
            (false, Some(last)) => WAIT.min(self.period.saturating_sub(last.elapsed())),
            (false, None) => Duration::ZERO,
            (true, _) => WAIT,
        }
    }

    fn take(&mut self, message: FromHost, ask: &Sender<Ask>) -> Option<Summary> {
        match message {
            // The lens ends after this.
            FromHost::Survey(survey) => {
                self.developing += usize::from(ask.send(Ask::Survey(survey)).is_ok());
            }
            FromHost::Capture(event) => self.captures.push_back(event),
            FromHost::Result(result) => {
                self.report.results += 1;
                self.latency.push(Duration::from_micros(result.latency_us.into()));
            }
            FromHost::NoResult(none) => match none.reason {
                Reason::Overload => self.report.put_off += 1,
                _ => self.report.failed += 1,
            },
            FromHost::Decision(decision) => match decision.action {
                Action::Rescan(_) => self.report.rescans += 1,
                Action::Refocus(_) => self.report.refocuses += 1,
                Action::Skip => self.report.skipped += 1,
                Action::Keep | Action::Stop(_) => {}
            },
            FromHost::Summary(summary) => return Some(summary),
            // The board's.
            FromHost::Plan(_) | FromHost::Cells(_) | FromHost::Command(_) => {}
        }
        None
    }

    /// Takes the next picture when it is time.
    fn expose(&mut self, ask: &Sender<Ask>) {
        if self.last.is_some_and(|last| last.elapsed() < self.period) {
            return;
        }
        let Some(event) = self.captures.pop_front() else { return };
        self.last = Some(Instant::now());
        self.report.pictures += 1;
        // The lens ends after this.
        self.developing += usize::from(ask.send(Ask::Capture(event)).is_ok());
    }

    fn next_message(&mut self) -> Option<ToHost> {
        if let Some(none) = self.none.pop_front() {
            return Some(ToHost::NoPixels(none));
        }
        let outgoing = self.outgoing.front_mut()?;
        let Some(at) = outgoing.at else {
            outgoing.at = Some(0);
            return Some(ToHost::Pixels(outgoing.header));
        };
        let end = (at + PIXEL_CHUNK).min(outgoing.bytes.len());
        let data = heapless::Vec::from_slice(outgoing.bytes.get(at..end)?).ok()?;
        let message = ToHost::Chunk(Chunk { shot: outgoing.header.shot, offset: at as u32, data });
        outgoing.at = Some(end);
        if end == outgoing.bytes.len() {
            self.outgoing.pop_front();
        }
        Some(message)
    }
}

impl Lens<'_> {
    fn survey(&mut self, survey: &Survey) -> Result<Given> {
        let key = survey.downsample.to_bits();
        if !self.surveys.contains_key(&key) {
            let (picture, _) = overview_at(self.slide, survey.downsample)?;
            self.surveys.insert(key, picture);
        }
        let none =
            NoPixels { shot: Shot { tile: survey.part, attempt: SURVEY }, why: Why::Outside };
        let Some(picture) = self.surveys.get(&key) else { return Ok(Err(none)) };
        let (width, height) = picture.dimensions();
        let (row, rows) = (u32::from(survey.row), u32::from(survey.rows));
        if row + rows > height {
            tracing::warn!("the host asks for more of the slide than there is");
            return Ok(Err(none));
        }
        let line = 3 * width as usize;
        let bytes = picture.as_raw()[row as usize * line..(row + rows) as usize * line].to_vec();
        let scale = self.um_per_px * survey.downsample;
        let header = Pixels {
            shot: Shot { tile: survey.part, attempt: SURVEY },
            encoding: Encoding::Rgb8,
            x: Um(0),
            y: Um::new(f64::from(row) * scale).unwrap_or_default(),
            width: width as u16,
            height: survey.rows,
            scale: UmPerPx::new(scale).unwrap_or_default(),
            bytes: bytes.len() as u32,
        };
        Ok(Ok(Outgoing { header, bytes, at: None }))
    }

    /// The picture of a tile from the coarsest level that is fine enough; none where it is larger
    /// than the link carries.
    fn picture(&self, event: &TileEvent) -> Result<Given> {
        let none = NoPixels { shot: event.shot, why: Why::Failed };
        let level = best_level(self.slide, event.scale.get() / self.um_per_px);
        let downsample = self.slide.info().levels[level].downsample;
        let scale = self.um_per_px * downsample;
        let side = self.optics.field_um / scale;
        let margin = (3.0 * (self.optics.model_um_per_px / scale).max(1.0)).ceil() + 2.0;
        let edge = |centre: Um| (centre.get() / scale - side / 2.0 - margin).floor();
        let (left, top) = (edge(event.x), edge(event.y));
        let size = (side + 2.0 * margin).ceil() as u32 + 1;
        if 3 * u64::from(size) * u64::from(size) > u64::from(PIXELS) || size > u16::MAX.into() {
            return Ok(Err(none));
        }
        let region = self.slide.read_region(level, left as i64, top as i64, size, size)?;
        let (Some(x), Some(y), Some(told)) =
            (Um::new(left * scale), Um::new(top * scale), UmPerPx::new(scale))
        else {
            return Ok(Err(none));
        };
        let (encoding, bytes) = if self.optics.jpeg {
            let mut bytes = Vec::new();
            let mut encoder =
                image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
            encoder
                .encode(&region, size, size, image::ExtendedColorType::Rgb8)
                .map_err(|error| Error::Request(format!("a picture cannot be coded: {error}")))?;
            (Encoding::Jpeg, bytes)
        } else {
            (Encoding::Rgb8, region.into_raw())
        };
        let header = Pixels {
            shot: event.shot,
            encoding,
            x,
            y,
            width: size as u16,
            height: size as u16,
            scale: told,
            bytes: bytes.len() as u32,
        };
        Ok(Ok(Outgoing { header, bytes, at: None }))
    }
}
