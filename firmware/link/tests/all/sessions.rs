//! Two ends over any link: whatever it loses, damages, doubles, delays and reorders, messages arrive once and in
//! order; and bytes that no end of ours sent move nothing.

use diffbulk_link::message::{BoardToHost, FromHost, Hello, Level, Log, Role, ToHost, text};
use diffbulk_link::session::{BoardSession, Event, HostSession, Timing};
use proptest::collection::vec;
use proptest::prelude::*;

fn hello(role: Role) -> Hello {
    Hello { role, version: text("test"), model: None, panel: Default::default(), resume: None }
}

fn ends() -> (BoardSession, HostSession) {
    let timing = Timing::default();
    (
        BoardSession::new(timing, 1 << 16, hello(Role::Board)),
        HostSession::new(timing, 9 << 16, hello(Role::Host)),
    )
}

/// What becomes of the next frame.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    IsLost,
    ArrivesTwice,
    /// After the frames of so many later rounds.
    IsLate(u8),
    IsHit(u16, u8),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Arrives),
        1 => Just(Fate::IsLost),
        1 => Just(Fate::ArrivesTwice),
        1 => (1..20u8).prop_map(Fate::IsLate),
        1 => (any::<u16>(), 1..=255u8).prop_map(|(at, flip)| Fate::IsHit(at, flip)),
    ]
}

/// Frames on their way, with the round they arrive in.
#[derive(Default)]
struct Way(Vec<(usize, Vec<u8>)>);

impl Way {
    fn put(&mut self, round: usize, mut frame: Vec<u8>, fate: Fate) {
        match fate {
            Fate::Arrives => self.0.push((round, frame)),
            Fate::IsLost => {}
            Fate::ArrivesTwice => self.0.extend([(round, frame.clone()), (round, frame)]),
            Fate::IsLate(by) => self.0.push((round + usize::from(by), frame)),
            Fate::IsHit(at, flip) => {
                let at = usize::from(at) % frame.len();
                frame[at] ^= flip;
                self.0.push((round, frame));
            }
        }
    }

    fn take(&mut self, round: usize) -> Vec<u8> {
        let (now, later) =
            std::mem::take(&mut self.0).into_iter().partition(|(due, _)| *due <= round);
        self.0 = later;
        let now: Vec<(usize, Vec<u8>)> = now;
        now.into_iter().flat_map(|(_, frame)| frame).collect()
    }
}

fn line(number: usize) -> BoardToHost {
    ToHost::Log(Log { level: Level::Info, text: text(&number) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases))]

    #[test]
    fn messages_arrive_once_and_in_order(fates in vec(fate(), 50..300)) {
        let (mut board, mut host) = ends();
        let (mut to_host, mut to_board) = (Way::default(), Way::default());
        // Bad for as long as there are fates, good afterwards.
        let mut fates = fates.into_iter().chain(std::iter::repeat(Fate::Arrives));
        let mut out = vec![0; HostSession::OUT.max(BoardSession::OUT)];
        let (mut sent, mut got, mut ups) = (0, Vec::new(), 0);
        for round in 0..2000 {
            let now = round as u64 * 5;
            while sent < 60 && board.send(&line(sent)).is_ok() {
                sent += 1;
            }
            loop {
                match board.transmit(now, &mut out) {
                    0 => break,
                    len => to_host.put(round, out[..len].to_vec(), fates.next().unwrap()),
                }
            }
            loop {
                match host.transmit(now, &mut out) {
                    0 => break,
                    len => to_board.put(round, out[..len].to_vec(), fates.next().unwrap()),
                }
            }
            let bytes = to_host.take(round);
            let mut input = &bytes[..];
            while let Some(event) = host.receive(now, &mut input) {
                match event {
                    Event::Message(ToHost::Log(log)) => got.push(log.text.parse::<usize>().unwrap()),
                    Event::Up(_) => ups += 1,
                    Event::Down(_) => {}
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let bytes = to_board.take(round);
            let mut input = &bytes[..];
            while let Some(event) = board.receive(now, &mut input) {
                prop_assert!(matches!(event, Event::Up(_) | Event::Down(_)), "{:?}", event);
            }
            if got.len() == 60 {
                break;
            }
        }
        // One that never went down delivered all; each that did lost at most what was under way.
        prop_assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", got);
        prop_assert_eq!(got.last(), Some(&59));
        if ups == 1 {
            prop_assert_eq!(got.len(), 60);
        } else {
            prop_assert!(got.len() + 8 * (ups - 1) >= 60, "{} of 60, {} sessions", got.len(), ups);
        }
    }

    #[test]
    fn bytes_that_no_end_sent_move_nothing(noise in vec(vec(any::<u8>(), 0..200), 1..40), sealed in any::<bool>()) {
        let (mut board, mut host) = ends();
        let mut out = vec![0; HostSession::OUT.max(BoardSession::OUT)];
        for now in 0..10 {
            let len = board.transmit(now, &mut out);
            let mut input = &out[..len];
            while host.receive(now, &mut input).is_some() {}
            let len = host.transmit(now, &mut out);
            let mut input = &out[..len];
            while board.receive(now, &mut input).is_some() {}
        }
        prop_assert!(board.is_up() && host.is_up());
        for payload in &noise {
            let mut frame = payload.clone();
            if sealed {
                // A good frame around it: what a stranger with our framing could send.
                frame = vec![0; diffbulk_link::frame::max_len(payload.len())];
                let len = diffbulk_link::frame::encode(&[payload], &mut frame).unwrap();
                frame.truncate(len);
            }
            let mut input = &frame[..];
            while let Some(event) = host.receive(11, &mut input) {
                prop_assert!(matches!(event, Event::Incompatible(_)), "{:?}", event);
            }
            let mut input = &frame[..];
            while let Some(event) = board.receive(11, &mut input) {
                prop_assert!(matches!(event, Event::<FromHost>::Incompatible(_)), "{:?}", event);
            }
        }
        prop_assert!(board.is_up() && host.is_up());
        // And the session still works, once the noise has ended.
        host.receive(12, &mut &[0u8][..]);
        board.send(&line(7)).unwrap();
        let len = board.transmit(12, &mut out);
        let mut got = false;
        let mut input = &out[..len];
        while let Some(event) = host.receive(12, &mut input) {
            got |= matches!(event, Event::Message(ToHost::Log(_)));
        }
        prop_assert!(got);
    }
}
