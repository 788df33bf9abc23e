//! Links of every kind at once, and ends that come and go as cables do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use diffbulk_link::message::Hello;
use diffbulk_link::session::{BoardSession, Event, Timing};
use nix::fcntl::OFlag;
use nix::pty::PtyMaster;

use super::*;

/// A board that is only there.
pub(super) struct Client {
    stream: UnixStream,
    session: Box<BoardSession>,
    started: Instant,
    /// The host's introductions.
    pub(super) ups: Vec<Hello>,
    /// Whether the connection stands.
    pub(super) open: bool,
}

impl Client {
    pub(super) fn board(path: &Path) -> Self {
        static EPOCHS: AtomicUsize = AtomicUsize::new(1);
        let hello = Hello {
            role: Role::Board,
            version: Default::default(),
            model: None,
            panel: Default::default(),
            resume: None,
        };
        let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed) as u32 * 4096;
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        Self {
            stream,
            session: Box::new(BoardSession::new(Timing::default(), epoch, hello)),
            started: Instant::now(),
            ups: Vec::new(),
            open: true,
        }
    }

    /// SHA-256 of the model that the host introduced itself with.
    pub(super) fn model(&self, introduction: usize) -> [u8; 32] {
        self.ups[introduction].model.as_ref().unwrap().sha256
    }

    /// Keeps the session alive until this holds.
    pub(super) fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        wait_for(what, || {
            self.turn();
            is(self)
        });
    }

    fn turn(&mut self) {
        let now = self.started.elapsed().as_millis() as u64;
        let (mut frame, mut buffer) = (vec![0; BoardSession::OUT], [0; 4096]);
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.open = false;
                0
            }
            Ok(count) => count,
            Err(_) => 0,
        };
        let mut input = &buffer[..count];
        while let Some(event) = self.session.receive(now, &mut input) {
            if let Event::Up(hello) = event {
                self.ups.push(hello);
            }
        }
        loop {
            match self.session.transmit(now, &mut frame) {
                0 => return,
                length => self.open &= self.stream.write_all(&frame[..length]).is_ok(),
            }
        }
    }
}

/// A serial cable: two ports, and what carries bytes between them until it is unplugged.
struct Cable {
    ports: [PathBuf; 2],
    unplugged: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Cable {
    fn plug() -> Self {
        let open = || {
            let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
            let master = nix::pty::posix_openpt(flags).unwrap();
            nix::pty::grantpt(&master).unwrap();
            nix::pty::unlockpt(&master).unwrap();
            let path = PathBuf::from(nix::pty::ptsname_r(&master).unwrap());
            (path, Arc::new(master))
        };
        let ((a, near), (b, far)) = (open(), open());
        let unplugged = Arc::new(AtomicBool::new(false));
        let carry = |from: &Arc<PtyMaster>, to: &Arc<PtyMaster>| {
            let (from, to, unplugged) = (Arc::clone(from), Arc::clone(to), Arc::clone(&unplugged));
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while !unplugged.load(Ordering::Relaxed) {
                    match (&*from).read(&mut buffer) {
                        // What does not fit is lost, as on a wire.
                        Ok(count) => drop((&*to).write(&buffer[..count])),
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            })
        };
        let threads = vec![carry(&near, &far), carry(&far, &near)];
        Self { ports: [a, b], unplugged, threads }
    }

    fn unplug(self) {
        self.unplugged.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn serial_tcp_and_unix_links_work_at_once_and_a_serial_cable_may_be_unplugged() {
    let directory = tempfile::tempdir().unwrap();
    // Names that stay, as udev makes them.
    let names = ["host", "board"].map(|name| directory.path().join(name));
    let plug = || {
        let cable = Cable::plug();
        for (name, port) in names.iter().zip(&cable.ports) {
            let _ = std::fs::remove_file(name);
            std::os::unix::fs::symlink(port, name).unwrap();
        }
        cable
    };
    let cable = plug();
    let serial = |end: usize| Address::Serial { path: names[end].clone(), baud: 921_600 };
    let engine = Fake { takes: Duration::from_millis(4), ..Fake::default() };
    let mut options = options(directory.path());
    options.stations =
        vec![vec!["tcp:127.0.0.1:0".parse().unwrap(), serial(0)], options.stations[0].clone()];
    let daemon = start(options, &engine);
    let tcp: Address = daemon.addresses[0].parse().unwrap();
    let mut camera = settings(tcp, 4);
    camera.host_board = serial(1);
    let mut other = slide(12, 12);
    other.set_path(Path::new("other.svs"));
    let (report, beside) = std::thread::scope(|scope| {
        let beside = scope.spawn(|| play(&other, &settings(daemon.socket(), 3)));
        let playing = scope.spawn(|| play(&slide(16, 16), &camera));
        let first = || rows_kept(directory.path()) > 60;
        wait_for("the first tiles", first);
        cable.unplug();
        std::thread::sleep(Duration::from_millis(500));
        let cable = plug();
        let reports = (playing.join().unwrap(), beside.join().unwrap());
        cable.unplug();
        reports
    });
    assert!(report.summary.is_some() && report.results == 256, "{report:?}");
    assert_eq!(beside.results, 144);
    daemon.end().unwrap();
    check_rows(directory.path(), 16, 256);
    assert_eq!(engine.predicted.load(Ordering::Relaxed), 256 + 144, "predicted twice");
}

/// Tiles in the journal of the scan of `tiles.svs`, about.
fn rows_kept(directory: &Path) -> u64 {
    let journal = directory.join("tiles-diffbulk/.tiles.scan.partial");
    std::fs::metadata(journal).map_or(0, |found| found.len() / 120)
}

#[test]
fn a_second_board_does_not_take_the_place_of_one_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(options(directory.path()), &Fake::default());
    let path = directory.path().join("s");
    let mut first = Client::board(&path);
    first.until("the first board", |client| client.ups.len() == 1);
    let mut second = Client::board(&path);
    second.until("the second board's refusal", |client| !client.open);
    first.until("a moment", |client| client.started.elapsed() > Duration::from_secs(1));
    assert!(first.open && first.ups.len() == 1 && first.session.is_up());
    // Once the first one is gone there is a place.
    drop(first);
    let mut third = Client::board(&path);
    third.until("the third board", |client| client.ups.len() == 1);
    third.until("a moment", |client| client.started.elapsed() > Duration::from_millis(500));
    assert!(third.open && third.session.is_up());
    daemon.end().unwrap();
}

#[test]
fn links_on_which_nobody_speaks_make_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options(directory.path());
    options.sessions = 2;
    let daemon = start(options, &Fake::default());
    let silent: Vec<UnixStream> =
        (0..2).map(|_| UnixStream::connect(directory.path().join("s")).unwrap()).collect();
    wait_for("both links", || daemon.metric("sessions") == 2.0);
    assert_eq!(play(&slide(3, 3), &settings(daemon.socket(), 2)).results, 9);
    drop(silent);
    daemon.end().unwrap();
}
