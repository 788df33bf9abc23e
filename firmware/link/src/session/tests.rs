use super::*;
use crate::message::{Level, Log, Role};
use std::vec::Vec;

fn hello(role: Role) -> Hello {
    Hello {
        role,
        version: "test".try_into().unwrap(),
        model: None,
        panel: heapless::Vec::new(),
        resume: None,
    }
}

fn board(epoch: u32) -> BoardSession {
    Session::new(Timing::default(), epoch, hello(Role::Board))
}

fn host(epoch: u32) -> HostSession {
    Session::new(Timing::default(), epoch, hello(Role::Host))
}

fn log(n: usize) -> BoardToHost {
    ToHost::Log(Log { level: Level::Info, text: std::format!("{n}").as_str().try_into().unwrap() })
}

fn drain<Tx: Serialize, Rx: DeserializeOwned, const F: usize, const S: usize, const W: usize>(
    end: &mut Session<Tx, Rx, F, S, W>,
    now: u64,
) -> Vec<Vec<u8>> {
    let mut out = std::vec![0; Session::<Tx, Rx, F, S, W>::OUT];
    let mut frames = Vec::new();
    loop {
        match end.transmit(now, &mut out) {
            0 => return frames,
            len => frames.push(out[..len].to_vec()),
        }
        assert!(frames.len() < 100, "an end must not speak without end");
    }
}

fn events<Tx: Serialize, Rx: DeserializeOwned, const F: usize, const S: usize, const W: usize>(
    end: &mut Session<Tx, Rx, F, S, W>,
    now: u64,
    frames: &[Vec<u8>],
) -> Vec<Event<Rx>> {
    let bytes = frames.concat();
    let mut input = &bytes[..];
    core::iter::from_fn(|| end.receive(now, &mut input)).collect()
}

/// Passes frames both ways without loss until both ends are quiet.
fn talk(
    a: &mut BoardSession,
    b: &mut HostSession,
    now: u64,
) -> (Vec<Event<FromHost>>, Vec<Event<ToHost>>) {
    let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let (from_a, from_b) = (drain(a, now), drain(b, now));
        if from_a.is_empty() && from_b.is_empty() {
            return (to_a, to_b);
        }
        to_b.extend(events(b, now, &from_a));
        to_a.extend(events(a, now, &from_b));
    }
    panic!("the ends never fall silent");
}

fn up() -> (BoardSession, HostSession) {
    let (mut a, mut b) = (board(1 << 16), host(7 << 16));
    let (to_a, to_b) = talk(&mut a, &mut b, 0);
    assert_eq!(to_a, [Event::Up(hello(Role::Host))]);
    assert_eq!(to_b, [Event::Up(hello(Role::Board))]);
    (a, b)
}

#[test]
fn ends_with_the_same_epoch_still_meet() {
    let (mut a, mut b) = (board(5), host(5));
    talk(&mut a, &mut b, 0);
    assert!(a.is_up() && b.is_up());
}

#[test]
fn messages_arrive_once_in_order_and_the_window_bounds_them() {
    let (mut a, mut b) = up();
    for n in 0..8 {
        a.send(&log(n)).unwrap();
    }
    assert_eq!(a.send(&log(8)), Err(SendError::Full));
    let (_, to_b) = talk(&mut a, &mut b, 1);
    assert_eq!(to_b, (0..8).map(|n| Event::Message(wide(&log(n)))).collect::<Vec<_>>());
    assert!(a.is_flushed());
    assert_eq!(a.room(), 8);
}

/// A board's message as the host sees it.
fn wide(message: &BoardToHost) -> ToHost {
    postcard::from_bytes(&postcard::to_slice(message, &mut [0; 512]).unwrap()[..]).unwrap()
}

#[test]
fn a_lost_message_is_sent_again_at_once_when_a_later_one_arrives() {
    let (mut a, mut b) = up();
    (0..4).for_each(|n| a.send(&log(n)).unwrap());
    let mut frames = drain(&mut a, 1);
    frames.remove(0);
    assert_eq!(events(&mut b, 1, &frames), []);
    assert_eq!(b.stats().gaps, 3);
    let (_, to_b) = talk(&mut a, &mut b, 2);
    assert_eq!(to_b.len(), 4);
    assert_eq!(a.stats().resent, 4);
}

#[test]
fn a_lost_last_message_is_sent_again_after_the_retry_time() {
    let (mut a, mut b) = up();
    a.send(&log(0)).unwrap();
    drain(&mut a, 10);
    assert_eq!(a.idle_ms(10), 100);
    assert!(drain(&mut a, 109).is_empty());
    let frames = drain(&mut a, 110);
    assert_eq!(events(&mut b, 110, &frames).len(), 1);
    assert!(drain(&mut a, 309).iter().all(|f| f.len() < 30), "the second wait is twice as long");
    assert_eq!(a.stats().resent, 1);
}

#[test]
fn frames_repeated_and_reordered_change_nothing() {
    let (mut a, mut b) = up();
    (0..5).for_each(|n| a.send(&log(n)).unwrap());
    let mut frames = drain(&mut a, 1);
    frames.extend(frames.clone());
    frames.reverse();
    let mut got = events(&mut b, 1, &frames);
    got.extend(talk(&mut a, &mut b, 150).1);
    assert_eq!(got, (0..5).map(|n| Event::Message(wide(&log(n)))).collect::<Vec<_>>());
}

#[test]
fn a_silent_peer_is_lost_within_the_stated_time_and_a_heartbeat_keeps_it() {
    let (mut a, mut b) = up();
    for now in (0..10_000).step_by(50) {
        assert_eq!(talk(&mut a, &mut b, now), (std::vec![], std::vec![]), "at {now}");
    }
    let silent_since = 9_950 - 250;
    let lost = (silent_since..)
        .find(|&now| events(&mut b, now, &[]) == [Event::Down(Down::Lost)])
        .unwrap();
    assert!(lost - silent_since <= 2000 + 250, "{lost}");
    assert_eq!(b.send(&FromHost::Command(crate::message::Command::Start)), Err(SendError::NotUp));
}

#[test]
fn a_restarted_peer_is_met_again_and_nothing_old_is_taken_for_new() {
    let (mut a, mut b) = up();
    (0..3).for_each(|n| a.send(&log(n)).unwrap());
    let old = drain(&mut a, 1);
    let mut a = board(2 << 16);
    let (_, to_b) = talk(&mut a, &mut b, 2);
    assert_eq!(to_b, [Event::Down(Down::Restarted), Event::Up(hello(Role::Board))]);
    assert_eq!(events(&mut b, 3, &old), []);
    assert!(a.is_up() && b.is_up());
    a.send(&log(9)).unwrap();
    assert_eq!(talk(&mut a, &mut b, 4).1, [Event::Message(wide(&log(9)))]);
    // The dead board's hello, late: asked whether it lives, it does not answer, and the session goes on.
    let ghost = drain(&mut board(1 << 16), 0);
    assert_eq!(events(&mut b, 5, &ghost), []);
    assert_eq!(talk(&mut a, &mut b, 6), (std::vec![], std::vec![]));
    assert!(a.is_up() && b.is_up());
}

#[test]
fn a_restart_survives_the_loss_of_any_one_frame_of_the_handshake() {
    for lost in 0..6 {
        let (_, mut b) = up();
        let mut a = board(2 << 16);
        let (mut n, mut now) = (0, 10);
        while !(a.is_up() && b.is_up() && b.stats().ups == 2) {
            for frame in drain(&mut a, now) {
                n += 1;
                if n != lost + 1 {
                    events(&mut b, now, &[frame]);
                }
            }
            for frame in drain(&mut b, now) {
                n += 1;
                if n != lost + 1 {
                    events(&mut a, now, &[frame]);
                }
            }
            now += 10;
            assert!(now < 1000, "frame {lost} lost: still not met");
        }
    }
}

#[test]
fn goodbye_needs_no_time_out() {
    let (mut a, mut b) = up();
    b.close();
    let frames = drain(&mut b, 5);
    assert_eq!(events(&mut a, 5, &frames), [Event::Down(Down::Closed)]);
    assert!(drain(&mut a, 100).is_empty());
    assert!(!drain(&mut a, 205).is_empty());
}

#[test]
fn drift_is_told_once_and_never_connects() {
    let (mut a, mut b) = (board(1 << 16), host(2 << 16));
    let mut told = 0;
    for now in (0..3000).step_by(100) {
        for frame in drain(&mut a, now) {
            // The board's hello with another key, sealed anew.
            let mut reader = FrameReader::<2048>::new();
            let mut payload = reader.next(&mut &frame[..]).unwrap().unwrap().to_vec();
            payload[header::BYTES + 2] ^= 1;
            let mut sealed = std::vec![0; frame::max_len(payload.len())];
            let len = frame::encode(&[&payload], &mut sealed).unwrap();
            for event in events(&mut b, now, &[sealed[..len].to_vec()]) {
                assert_eq!(
                    event,
                    Event::Incompatible(Drift { protocol: schema::PROTOCOL, key: schema::KEY ^ 1 })
                );
                told += 1;
            }
        }
        drain(&mut b, now);
    }
    assert_eq!(told, 1);
    assert!(!b.is_up());
}

#[test]
fn an_echo_of_its_own_frames_moves_nothing() {
    let mut a = board(1 << 16);
    for now in (0..2000).step_by(20) {
        let frames = drain(&mut a, now);
        assert_eq!(events(&mut a, now, &frames), []);
    }
    assert!(!a.is_up());
}

#[test]
fn the_board_s_end_is_small() {
    // What the board reserves, on a 64-bit machine with its longer pointers; the image's own size is checked there.
    assert!(size_of::<BoardSession>() < 4096, "{}", size_of::<BoardSession>());
}
