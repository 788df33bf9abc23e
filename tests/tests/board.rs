//! The firmware's image under QEMU against a host of this test's own: handshake, a small plan, and what can go wrong
//! on the way.

use diffbulk_link::message::*;
use diffbulk_link::session::{Down, Event, HostSession, Timing};
use diffbulk_link::units::{Fraction, Um, UmPerPx};
use diffbulk_tests::board::{Board, accept};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Predicts from the tile's number, and remembers.
struct Host {
    listener: TcpListener,
    stream: TcpStream,
    session: HostSession,
    begin: Instant,
    results: BTreeMap<Shot, TileResult>,
    events: Vec<TileEvent>,
    hellos: Vec<Hello>,
    decisions: BTreeMap<Shot, Decision>,
    downs: Vec<Down>,
    replies: Vec<PlanStatus>,
    faults: Vec<Fault>,
    summary: Option<Summary>,
}

impl Host {
    fn new(listener: TcpListener, stream: TcpStream) -> Self {
        let hello = Hello {
            role: Role::Host,
            version: text(env!("CARGO_PKG_VERSION")),
            model: Some(Model { name: text("a test"), sha256: [7; 32] }),
            panel: ["ERBB2", "CD74"].iter().map(text).collect(),
            resume: None,
        };
        Self {
            listener,
            stream,
            session: HostSession::new(Timing::default(), 77 << 16, hello),
            begin: Instant::now(),
            results: BTreeMap::new(),
            events: Vec::new(),
            hellos: Vec::new(),
            decisions: BTreeMap::new(),
            downs: Vec::new(),
            replies: Vec::new(),
            faults: Vec::new(),
            summary: None,
        }
    }

    /// Talks to the board until this holds, for two minutes at most.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        self.stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let (mut bytes, mut out) = ([0; 1024], [0; HostSession::OUT]);
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}: not within two minutes; {} events, replies {:?}, faults {:?}, {:?}",
                self.events.len(),
                self.replies,
                self.faults,
                self.session.stats()
            );
            let len = match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.stream = accept(&self.listener);
                    self.stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                    0
                }
                Ok(len) => len,
                Err(_) => 0,
            };
            let now = self.now();
            let mut input = &bytes[..len];
            while let Some(event) = self.session.receive(now, &mut input) {
                self.take(event);
            }
            loop {
                match self.session.transmit(now, &mut out) {
                    0 => break,
                    len => drop(self.stream.write_all(&out[..len])),
                }
            }
        }
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    fn say(&mut self, message: FromHost) {
        self.session.send(&message).unwrap();
    }

    fn take(&mut self, event: Event<ToHost>) {
        match event {
            Event::Up(hello) => self.hellos.push(hello),
            Event::Down(why) => self.downs.push(why),
            Event::Message(ToHost::Tile(event)) => {
                let result =
                    self.results.entry(event.shot).or_insert_with(|| predict(event.shot)).clone();
                self.events.push(event);
                self.say(FromHost::Result(result));
            }
            Event::Message(ToHost::Decision(decision)) => {
                let before = self.decisions.insert(decision.shot, decision);
                assert!(before.is_none_or(|before| before == decision), "{before:?} {decision:?}");
            }
            Event::Message(ToHost::Plan(status)) => self.replies.push(status),
            Event::Message(ToHost::Fault(fault)) => self.faults.push(fault),
            Event::Message(ToHost::Summary(summary)) => self.summary = Some(summary),
            Event::Message(ToHost::Telemetry(_) | ToHost::Log(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Hot in tile 2.
fn predict(shot: Shot) -> TileResult {
    let value = if shot.tile.0 == 2 { 5.0 } else { f32::from(shot.tile.0) * 0.125 };
    TileResult {
        shot,
        expression: Expression::half(&[value, 1.0]).unwrap(),
        confidence: Fraction::ONE,
        tissue: Fraction::ONE,
        latency_us: 1234,
    }
}

fn plan() -> (Plan, Vec<u8>) {
    let grid = Grid { columns: 4, rows: 3, x: Um(500_000), y: Um(400_000), pitch: Um(112_000) };
    let map = vec![0b1110_1111, 0b1111];
    let objective = Objective {
        weights: [1.0, 0.0].into_iter().collect(),
        enter: 3.0,
        leave: 2.0,
        best: 2,
        tissue: Fraction::ZERO,
        rescan: Some(Rescan { scale: UmPerPx(250_000), most: 5 }),
        refocus: None,
        stop: None,
    };
    let plan = Plan {
        id: PlanId(0),
        grid,
        tiles: 11,
        order: Order::Serpentine,
        scale: UmPerPx(500_000),
        z: Um(300_000),
        objective,
    };
    (Plan { id: plan.identify(&map), ..plan }, map)
}

#[test]
fn the_image_scans_a_small_plan_and_survives_what_can_go_wrong() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut board = Board::start(listener.local_addr().unwrap());
    let stream = accept(&listener);
    let mut host = Host::new(listener, stream);

    host.until("handshake", |host| !host.hellos.is_empty());
    assert_eq!((host.hellos[0].role, host.hellos[0].resume), (Role::Board, None));

    let (plan, map) = plan();
    let id = plan.id;
    host.say(FromHost::Plan(plan));
    host.say(FromHost::Cells(Cells { plan: id, offset: 0, map: map.iter().copied().collect() }));
    host.until("the plan's acceptance", |host| !host.replies.is_empty());
    assert_eq!(host.replies, [PlanStatus { plan: id, reply: PlanReply::Accepted }]);
    host.say(FromHost::Command(Command::Start));
    host.until("three tiles", |host| host.decisions.len() >= 3);

    // The emergency stop, pressed and released.
    board.bench(b's');
    host.until("the emergency stop", |host| {
        host.faults.iter().any(|f| f.code == FaultCode::EmergencyStop)
    });
    board.bench(b'r');
    std::thread::sleep(Duration::from_millis(50));
    host.say(FromHost::Command(Command::ClearFault));
    host.until("tiles after the stop", |host| host.decisions.len() >= 5);

    // The line is cut and joined: no session need end by that.
    host.stream.shutdown(std::net::Shutdown::Both).unwrap();
    host.until("tiles after the cut", |host| host.decisions.len() >= 7);

    // The program hangs: the watchdog restarts it, and it goes on where it was.
    let decided = host.decisions.values().filter(|d| d.action == Action::Keep).count() as u16;
    let ups = host.hellos.len();
    board.bench(b'h');
    host.until("the restart", |host| host.hellos.len() > ups);
    let resume = host.hellos.last().unwrap().resume.expect("the plan is in flash");
    assert_eq!(resume.plan, id);
    assert!(resume.decided >= decided && resume.decided <= decided + 1, "{resume:?} {decided}");
    host.until("the end", |host| host.summary.is_some());

    let summary = host.summary.clone().unwrap();
    assert_eq!((summary.reason, summary.kept, summary.skipped), (StopReason::Complete, 11, 0));
    assert_eq!(summary.rescans, 1);
    assert_eq!(summary.best.iter().map(|best| best.tile.0).collect::<Vec<_>>(), [2, 11]);
    let mean = (5.0 + [0, 1, 3, 5, 6, 7, 8, 9, 10, 11].iter().sum::<i32>() as f32 * 0.125) / 11.0;
    assert!((summary.genes[0].mean - mean).abs() < 1e-4, "{:?} {mean}", summary.genes);
    // Serpentine, each shot once in the record, the hot tile twice.
    let mut order: Vec<u16> = Vec::new();
    for event in host.events.iter().filter(|event| event.shot.attempt == 0) {
        if order.last() != Some(&event.shot.tile.0) {
            order.push(event.shot.tile.0);
        }
    }
    assert_eq!(order, [0, 1, 2, 3, 7, 6, 5, 8, 9, 10, 11]);
    assert_eq!(host.decisions.len(), 12);
    assert_eq!(
        host.decisions[&Shot { tile: TileId(2), attempt: 0 }].action,
        Action::Rescan(UmPerPx(250_000))
    );
    for event in &host.events {
        let (column, row) = (i32::from(event.shot.tile.0 % 4), i32::from(event.shot.tile.0 / 4));
        assert_eq!(
            (event.x, event.y),
            (Um(500_000 + 112_000 * column), Um(400_000 + 112_000 * row))
        );
    }
    // The host falls silent, and the board notices.
    let end = Instant::now() + Duration::from_secs(60);
    while !board.log().contains("warn  host gone: Lost") {
        assert!(Instant::now() < end, "a silent host is not noticed\n{}", board.log());
        std::thread::sleep(Duration::from_millis(500));
    }
    check_log(&board.log(), &summary);
}

/// The log, decoded: every start, the states in their order, what the bench did, and each line with
/// its level, time and place.
fn check_log(log: &str, summary: &Summary) {
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    for (text, times) in [
        ("info  start 0 (diffbulk_scanner::scanner::", 1),
        ("info  start 1 (diffbulk_scanner::scanner::", 1),
        ("error watchdog (diffbulk_board::", 1),
        ("warn  fault EmergencyStop: release the emergency stop, then clear the fault (", 1),
        ("info  plan done (diffbulk_scanner::controller::", 1),
    ] {
        assert_eq!(count(text), times, "{text:?} in\n{log}");
    }
    let host = format!("info  host {} (diffbulk_scanner::scanner::", env!("CARGO_PKG_VERSION"));
    // At the start and after the restart; the cut may be mended before either end calls it lost.
    assert!(count(&host) >= 2, "{host:?} in\n{log}");
    assert!(count("warn  host gone: Lost") >= 1, "{log}");
    // Homed at the start, after the emergency stop and after the restart.
    assert!(count("Idle -> Homing") >= 3, "{log}");
    let taken = usize::from(summary.kept + summary.rescans);
    assert!(count("Waiting -> Deciding") >= taken, "{taken} in\n{log}");
    let states: Vec<&str> = log.lines().filter(|line| line.contains(" -> ")).collect();
    for pair in states.windows(2) {
        let of = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
        let to = |line: &str| line.split_whitespace().nth(4).map(str::to_owned);
        // A restart begins at rest.
        let restart = of(pair[1]).is_some_and(|state| state == "Idle" || state == "Done");
        assert!(to(pair[0]) == of(pair[1]) || restart, "{pair:?}");
    }
    for line in log.lines() {
        let time = line.split_whitespace().next().unwrap_or_default();
        assert!(time.parse::<f64>().is_ok(), "no time in {line:?}");
    }
}
