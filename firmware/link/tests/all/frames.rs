//! The frame reader against any bytes at all.

use diffbulk_link::frame::{FrameError, FrameReader, encode, max_len};
use proptest::collection::vec;
use proptest::prelude::*;

const ROOM: usize = 320;

fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; max_len(payload.len())];
    let len = encode(&[payload], &mut frame).unwrap();
    frame.truncate(len);
    frame
}

/// What a reader makes of bytes that come in these pieces.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut reader = FrameReader::<ROOM>::new();
    let mut all = Vec::new();
    for mut piece in pieces {
        while let Some(frame) = reader.next(&mut piece) {
            all.push(frame.map(<[u8]>::to_vec));
        }
        assert!(piece.is_empty());
    }
    all
}

/// Long runs without a zero and of zeros, where COBS has its corners.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..=ROOM - 4),
        vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..=ROOM - 4),
        (250..=ROOM - 4).prop_map(|n| vec![7; n]),
    ]
}

proptest! {
    // PROPTEST_CASES makes it as long as one likes.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    #[test]
    fn any_bytes_give_no_panic_and_at_most_one_outcome_a_frame(bytes in vec(any::<u8>(), 0..2000)) {
        let outcomes = read([&bytes[..]]);
        // A frame too long is told when its room is full; its zero then tells nothing.
        prop_assert!(outcomes.len() <= bytes.iter().filter(|&&b| b == 0).count() + 1);
    }

    #[test]
    fn any_bytes_between_zeros_cost_nothing_but_themselves(
        noise in vec(prop_oneof![1 => Just(0u8), 40 => any::<u8>()], 0..1500),
        payload in payload(),
    ) {
        let mut bytes = noise;
        bytes.push(0);
        bytes.extend(sealed(&payload));
        prop_assert_eq!(read([&bytes[..]]).pop(), Some(Ok(payload)));
    }

    #[test]
    fn a_frame_split_anywhere_decodes(payload in payload(), cuts in vec(any::<prop::sample::Index>(), 0..6)) {
        let frame = sealed(&payload);
        prop_assert!(frame[..frame.len() - 1].iter().all(|&b| b != 0));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(frame.len() + 1)).collect();
        cuts.extend([0, frame.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|w| &frame[w[0]..w[1]]);
        prop_assert_eq!(read(pieces), [Ok(payload)]);
    }

    #[test]
    fn a_frame_sealed_in_parts_is_the_same_frame(payload in payload(), cut in any::<prop::sample::Index>()) {
        let (a, b) = payload.split_at(cut.index(payload.len() + 1));
        let mut frame = vec![0; max_len(payload.len())];
        let len = encode(&[a, b], &mut frame).unwrap();
        prop_assert_eq!(&frame[..len], &sealed(&payload)[..]);
    }

    #[test]
    fn a_damaged_frame_is_refused_and_the_next_is_read(
        first in payload(),
        second in payload(),
        at in any::<prop::sample::Index>(),
        burst in vec(1..=255u8, 1..=4),
    ) {
        let mut frame = sealed(&first);
        let at = at.index(frame.len());
        // Bursts of up to 32 bits: what the CRC finds for certain. Zeros may appear and vanish.
        for (byte, flip) in frame[at..].iter_mut().zip(&burst) {
            *byte ^= flip;
        }
        let ended = frame.ends_with(&[0]);
        frame.extend(sealed(&second));
        let outcomes = read([&frame[..]]);
        let good: Vec<_> = outcomes.iter().flatten().cloned().collect();
        if ended {
            prop_assert_eq!(good, [second]);
        } else {
            // The first frame's end was hit: it takes the second with it, and nothing is made up.
            prop_assert!(good.is_empty(), "{:?}", good);
            frame.extend(sealed(&first));
            prop_assert_eq!(read([&frame[..]]).pop(), Some(Ok(first)));
        }
    }

    #[test]
    fn lost_and_doubled_bytes_are_refused(
        payload in payload(),
        at in any::<prop::sample::Index>(),
        lost in 1..40usize,
        double in any::<bool>(),
    ) {
        let frame = sealed(&payload);
        let at = at.index(frame.len() - 1);
        let end = (at + lost).min(frame.len() - 1);
        let mut bytes = frame[..if double { end } else { at }].to_vec();
        bytes.extend(&frame[if double { at } else { end }..]);
        bytes.extend(sealed(&[1, 2, 3]));
        let outcomes = read([&bytes[..]]);
        prop_assert_eq!(outcomes.last(), Some(&Ok(vec![1, 2, 3])));
        prop_assert_eq!(outcomes.iter().flatten().count(), 1, "{:?}", outcomes);
    }
}

#[test]
fn every_split_of_a_frame_decodes() {
    let payload: Vec<u8> = (0..300).map(|i| (i % 256) as u8).collect();
    let frame = sealed(&payload);
    for cut in 0..=frame.len() {
        assert_eq!(read([&frame[..cut], &frame[cut..]]), [Ok(payload.clone())], "cut at {cut}");
    }
}

#[test]
fn every_single_bit_error_is_refused() {
    let frame = sealed(&(0..100).map(|i| (i * 7 % 11) as u8).collect::<Vec<_>>());
    for bit in 0..(frame.len() - 1) * 8 {
        let mut bad = frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(read([&bad[..]]).iter().all(Result::is_err), "bit {bit}");
    }
}

/// Found by 200,000 cases of the test of lost bytes: the CRC-32 of `ff ff ff` is `ffffff00`.
#[test]
fn a_payload_that_begins_with_a_sealed_payload_is_refused_wherever_it_is_cut() {
    let payload = [255, 255, 255, 0, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let frame = sealed(&payload);
    for cut in 0..frame.len() - 1 {
        let bytes = [&frame[..cut], &[0]].concat();
        assert!(read([&bytes[..]]).iter().all(Result::is_err), "cut at {cut}");
    }
}

#[test]
fn a_frame_too_long_is_told_once() {
    let mut bytes = vec![9; 5000];
    bytes.push(0);
    bytes.extend(sealed(&[5]));
    assert_eq!(read([&bytes[..]]), [Err(FrameError::TooLong), Ok(vec![5])]);
}

#[test]
fn a_buffer_too_small_is_refused() {
    assert!(encode(&[&[1; 10]], &mut [0; 10]).is_err());
}
