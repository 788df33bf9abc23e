//! Clients that are broken, hostile or many, while a scan goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use diffbulk_link::message::{
    Chunk, Decision, Encoding, Hello, NoPixels, Pixels, PlanStatus, Resume, SURVEY, Shot, Slide,
    Summary, TileEvent, TileId, ToHost,
};
use diffbulk_link::session::{CameraSession, Event, Timing};
use proptest::prelude::*;

use super::lossy::Random;
use super::*;

/// A camera or board that says whatever it is given once it is let in, and then hangs up.
fn say(path: &Path, role: Role, resume: Option<Resume>, messages: &[ToHost]) {
    let Ok(mut stream) = UnixStream::connect(path) else { return };
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let hello =
        Hello { role, version: Default::default(), model: None, panel: Default::default(), resume };
    let epoch = Random::new(messages.len() as u64 + 99).next() as u32;
    let mut session = Box::new(CameraSession::new(Timing::default(), epoch, hello));
    let (start, mut frame, mut buffer) = (Instant::now(), vec![0; CameraSession::OUT], [0; 4096]);
    let mut left = messages.iter();
    let mut next = left.next();
    while start.elapsed() < Duration::from_secs(2) {
        let now = start.elapsed().as_millis() as u64;
        while session.room() > 0 {
            let Some(message) = next else { break };
            let _ = session.send(message);
            next = left.next();
        }
        loop {
            let length = session.transmit(now, &mut frame);
            if length == 0 {
                break;
            }
            if stream.write_all(&frame[..length]).is_err() {
                return;
            }
        }
        if next.is_none() && session.is_up() && session.is_flushed() {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let mut input = &buffer[..count];
                while let Some(event) = session.receive(now, &mut input) {
                    let _: Event<_> = event;
                }
            }
            Err(_) => {}
        }
    }
}

fn shot() -> impl Strategy<Value = Shot> {
    (0u16..70, prop_oneof![Just(0u8), Just(1), Just(SURVEY)])
        .prop_map(|(tile, attempt)| Shot { tile: TileId(tile), attempt })
}

fn message() -> impl Strategy<Value = ToHost> {
    let um = || any::<i32>().prop_map(Um);
    let scale = || prop_oneof![any::<u32>(), Just(500_000), Just(0)].prop_map(UmPerPx);
    let slide = (um(), um(), scale()).prop_map(|(width, height, scale)| {
        let name = heapless::String::try_from("../x").unwrap();
        ToHost::Slide(Slide { name, width, height, scale })
    });
    let small = (1u16..60, 1u16..60, 400_000u32..600_000).prop_map(|(columns, rows, scale)| {
        ToHost::Slide(Slide {
            name: heapless::String::try_from("y").unwrap(),
            width: Um(i32::from(columns) * 4000),
            height: Um(i32::from(rows) * 4000),
            scale: UmPerPx(scale),
        })
    });
    let pixels = (shot(), any::<bool>(), [um(), um()], [0u16..40, 0u16..40], scale(), 0u32..5000)
        .prop_map(|(shot, jpeg, [x, y], [width, height], scale, bytes)| {
            let encoding = if jpeg { Encoding::Jpeg } else { Encoding::Rgb8 };
            let bytes =
                if bytes % 2 == 0 { 3 * u32::from(width) * u32::from(height) } else { bytes };
            ToHost::Pixels(Pixels { shot, encoding, x, y, width, height, scale, bytes })
        });
    let chunk = (shot(), 0u32..3000, proptest::collection::vec(any::<u8>(), 0..1024)).prop_map(
        |(shot, offset, data)| {
            let data = heapless::Vec::from_slice(&data).unwrap();
            ToHost::Chunk(Chunk { shot, offset: offset / 1024 * 1024, data })
        },
    );
    let event = (shot(), um(), um(), scale()).prop_map(|(shot, x, y, scale)| {
        ToHost::Tile(TileEvent { shot, x, y, z: Um(0), scale, time_ms: 0 })
    });
    let decision = (shot(), any::<bool>()).prop_map(|(shot, hot)| {
        let action = diffbulk_link::message::Action::Keep;
        ToHost::Decision(Decision { shot, action, score: None, hot })
    });
    let status = any::<u32>().prop_map(|plan| {
        let reply = diffbulk_link::message::PlanReply::Accepted;
        ToHost::Plan(PlanStatus { plan: diffbulk_link::message::PlanId(plan), reply })
    });
    let summary = any::<u32>().prop_map(|plan| {
        ToHost::Summary(Summary {
            plan: diffbulk_link::message::PlanId(plan),
            reason: diffbulk_link::message::StopReason::Complete,
            kept: 1,
            skipped: 0,
            rescans: 0,
            refocuses: 0,
            best: Default::default(),
            genes: Default::default(),
        })
    });
    let none = shot().prop_map(|shot| {
        let why = diffbulk_link::message::Why::Failed;
        ToHost::NoPixels(NoPixels { shot, why })
    });
    prop_oneof![slide, small, pixels, chunk, event, decision, status, summary, none]
}

/// Cases of the property tests here; `DIFFBULK_FUZZ_CASES` for at length.
fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("DIFFBULK_FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(usual))
}

/// One daemon for all cases: what one of them breaks, the next ones find broken.
fn shared() -> &'static (tempfile::TempDir, Running) {
    static DAEMON: std::sync::OnceLock<(tempfile::TempDir, Running)> = std::sync::OnceLock::new();
    DAEMON.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        // The fuzzed scanner, and one that works meanwhile.
        options.stations.push(vec![Address::Unix(directory.path().join("t"))]);
        options.sessions = 64;
        let running = start(options, &Fake::default());
        (directory, running)
    })
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn no_messages_take_the_daemon_down(
        board in proptest::collection::vec(message(), 0..30),
        camera in proptest::collection::vec(message(), 0..60),
        next in proptest::option::of(shot()), plan in any::<u32>(),
    ) {
        let (directory, daemon) = shared();
        let path = directory.path().join("s");
        let resume = Some(Resume { plan: diffbulk_link::message::PlanId(plan), decided: 3, next });
        std::thread::scope(|scope| {
            scope.spawn(|| say(&path, Role::Board, resume, &board));
            scope.spawn(|| say(&path, Role::Camera, None, &camera));
        });
        prop_assert!(!daemon.thread.is_finished());
        prop_assert_eq!(daemon.metric("panics_total"), 0.0);
    }

    #[test]
    fn no_bytes_take_the_daemon_down(
        bytes in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(0u8)], 0..5000),
    ) {
        let (directory, daemon) = shared();
        if let Ok(mut stream) = UnixStream::connect(directory.path().join("s")) {
            let _ = stream.write_all(&bytes);
        }
        prop_assert!(!daemon.thread.is_finished());
        prop_assert_eq!(daemon.metric("panics_total"), 0.0);
    }
}

#[test]
fn a_scan_goes_on_beside_clients_that_misbehave() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { takes: Duration::from_millis(1), ..Fake::default() };
    let mut options = options(directory.path());
    options.stations.push(vec![Address::Unix(directory.path().join("t"))]);
    options.sessions = 6;
    let daemon = start(options, &engine);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let noise: Vec<u8> = (0..100_000u32).map(|k| ((k * 7919) >> 3) as u8).collect();
            let mut open = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                // Noise, silence, and more links than are allowed.
                if let Ok(mut stream) = UnixStream::connect(directory.path().join("t")) {
                    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                    let _ = stream.write_all(&noise);
                    open.push(stream);
                }
                if open.len() > 12 {
                    open.clear();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let report = play(&slide(16, 16), &settings(daemon.socket(), 4));
        stop.store(true, Ordering::Relaxed);
        assert!(report.summary.is_some());
    });
    assert!(daemon.metric("bad_frames_total") > 0.0);
    assert!(daemon.metric("sessions_refused_total") > 0.0);
    assert_eq!(daemon.metric("panics_total"), 0.0);
    daemon.end().unwrap();
    check_rows(directory.path(), 16, 256);
}

#[test]
fn other_machines_need_a_token_and_loopback_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut open = options(directory.path());
    open.stations = vec![vec!["tcp:0.0.0.0:0".parse().unwrap()]];
    let refused = start(open.clone(), &Fake::default());
    assert!(refused.addresses.is_empty());
    let error = refused.end().unwrap_err().to_string();
    assert!(error.contains("--token-file"), "{error}");

    let file = directory.path().join("token");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    open.token = Some(Token::read(&file).unwrap());
    let daemon = start(open, &Fake::default());
    let port = daemon.addresses[0].rsplit_once(':').unwrap().1.to_owned();
    let host: Address = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    let mut settings = settings(host, 2);
    settings.token = Some(Token::read(&file).unwrap());
    let report = play(&slide(3, 3), &settings);
    assert_eq!(report.results, 9);
    // Without the token nothing is said.
    settings.token = None;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| scan_sim::run(&slide(3, 3), 0.5, &settings, &stop));
        std::thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        let report = tried.join().unwrap().unwrap();
        assert_eq!((report.pictures, report.results), (0, 0));
    });
    daemon.end().unwrap();
}
