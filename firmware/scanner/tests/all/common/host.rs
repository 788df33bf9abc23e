//! The host's end: keeps a record of results, as `diffbulk serve` does, and predicts from the tile's number.

use super::config;
use diffbulk_link::message::*;
use diffbulk_link::session::{Event, HostSession};
use diffbulk_link::units::Fraction;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub type Predict = fn(Shot) -> FromHost;

/// What a host keeps on disk: survives its restart.
#[derive(Default, Clone)]
pub struct Record {
    pub results: BTreeMap<Shot, FromHost>,
    /// In the order they came, each once.
    pub decisions: Vec<Decision>,
    decided: BTreeSet<Shot>,
    pub summary: Option<Summary>,
}

pub struct Host {
    pub session: HostSession,
    pub plan: (Plan, Vec<u8>),
    pub record: Record,
    pub predict: Predict,
    pub events: Vec<TileEvent>,
    pub faults: Vec<Fault>,
    pub replies: Vec<PlanStatus>,
    pub ups: u32,
    pub downs: u32,
    pub telemetry: Option<Telemetry>,
    /// Start the plan as soon as it is accepted.
    pub auto: bool,
    queue: VecDeque<FromHost>,
}

impl Host {
    pub fn new(epoch: u32, plan: (Plan, Vec<u8>), predict: Predict, record: Record) -> Self {
        let hello = Hello {
            role: Role::Host,
            version: "test".try_into().unwrap(),
            model: None,
            panel: [hgene("A"), hgene("B")].into_iter().collect(),
            resume: None,
        };
        Self {
            session: HostSession::new(config().link, epoch << 16, hello),
            plan,
            record,
            predict,
            events: Vec::new(),
            faults: Vec::new(),
            replies: Vec::new(),
            ups: 0,
            downs: 0,
            telemetry: None,
            auto: true,
            queue: VecDeque::new(),
        }
    }

    pub fn say(&mut self, message: FromHost) {
        self.queue.push_back(message);
    }

    pub fn send_plan(&mut self) {
        let (plan, map) = self.plan.clone();
        let id = plan.id;
        self.say(FromHost::Plan(plan));
        for (chunk, offset) in map.chunks(128).zip((0..).step_by(128)) {
            let map = chunk.iter().copied().collect();
            self.say(FromHost::Cells(Cells { plan: id, offset, map }));
        }
    }

    pub fn poll(&mut self, now_ms: u64, mut input: &[u8]) {
        while let Some(event) = self.session.receive(now_ms, &mut input) {
            match event {
                Event::Up(hello) => {
                    self.ups += 1;
                    self.queue.clear();
                    let kept = hello.resume.filter(|resume| resume.plan == self.plan.0.id);
                    if self.auto && kept.is_some_and(|resume| resume.next.is_some()) {
                        // Harmless to repeat, and it may not have been kept.
                        self.say(FromHost::Command(Command::Start));
                    } else if self.auto && kept.is_none() {
                        self.send_plan();
                    }
                }
                Event::Down(_) => self.downs += 1,
                Event::Message(message) => self.take(message),
                other => panic!("{other:?}"),
            }
        }
        while let Some(message) = self.queue.front() {
            if self.session.send(message).is_err() {
                break;
            }
            self.queue.pop_front();
        }
    }

    fn take(&mut self, message: ToHost) {
        match message {
            ToHost::Tile(event) => {
                self.events.push(event);
                // Kept before it is sent.
                let result = self
                    .record
                    .results
                    .entry(event.shot)
                    .or_insert_with(|| (self.predict)(event.shot))
                    .clone();
                self.say(result);
            }
            ToHost::Decision(decision) => {
                if self.record.decided.insert(decision.shot) {
                    self.record.decisions.push(decision);
                }
            }
            ToHost::Plan(status) => {
                self.replies.push(status);
                if status.reply == PlanReply::Accepted && self.auto {
                    self.say(FromHost::Command(Command::Start));
                }
            }
            ToHost::Summary(summary) => self.record.summary = Some(summary),
            ToHost::Fault(fault) => self.faults.push(fault),
            ToHost::Telemetry(telemetry) => self.telemetry = Some(telemetry),
            ToHost::Log(_) => {}
            other => panic!("not a board's: {other:?}"),
        }
    }
}

fn hgene(name: &str) -> diffbulk_link::heapless::String<16> {
    name.try_into().unwrap()
}

pub fn result(shot: Shot, values: &[f32], confidence: f64, tissue: f64) -> FromHost {
    FromHost::Result(TileResult {
        shot,
        expression: Expression::half(values).unwrap(),
        confidence: Fraction::new(confidence).unwrap(),
        tissue: Fraction::new(tissue).unwrap(),
        latency_us: 1000,
    })
}

/// Two genes from the tile's number: hot in every seventh tile or so, blurred at first in every fifth, glass in every
/// eleventh.
pub fn typical(shot: Shot) -> FromHost {
    let tile = shot.tile.0;
    let hot = if tile % 7 == 3 { 4.0 } else { 0.0 };
    let confidence = if tile % 5 == 2 && shot.attempt == 0 { 0.1 } else { 0.9 };
    let tissue = if tile % 11 == 10 { 0.1 } else { 0.8 };
    result(shot, &[hot + f32::from(tile % 4) * 0.25, 1.0], confidence, tissue)
}
