//! Whatever a client sends, in whatever pieces: no panic, the same outcome, and no more said than a bound allows.

mod common;

use catena_nbd::{Contexts, Event, Progress, Session};
use common::{NAME, SIZE, Seen, events, export, option, queries, request, session, shake, wanted};
use proptest::prelude::*;

/// How many bytes may be said for each byte that came. The worst are an INFO that asks for everything, and a LIST.
const MOST_PER_BYTE: usize = 10;

fn handshake_part() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just(""), Just(NAME), Just("another")];
    let query = prop_oneof![
        Just("base:"),
        Just("base:allocation"),
        Just("qemu:"),
        Just("qemu:allocation-depth"),
        Just(""),
        Just("x-mine:thing")
    ];
    prop_oneof![
        Just(option(3, b"")),
        Just(option(8, b"")),
        Just(option(2, b"")),
        (name.clone(), prop::collection::vec(0..5_u16, 0..6), 6..8_u32)
            .prop_map(|(name, infos, number)| option(number, &wanted(name, &infos))),
        (name, prop::collection::vec(query, 0..4), 9..11_u32)
            .prop_map(|(name, asked, number)| option(number, &queries(name, &asked))),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(number, data)| option(number, &data)),
        (0..12_u32, prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(number, data)| option(number, &data)),
    ]
}

fn transmission_part() -> impl Strategy<Value = Vec<u8>> {
    let at = prop_oneof![0..SIZE, any::<u64>(), SIZE - 5000..SIZE + 5000];
    let whole =
        (0..32_u16, 0..9_u16, any::<u64>(), at, 0..3000_u32).prop_map(|(flags, command, cookie, at, len)| {
            let payload = if command == 1 { vec![0xda; len as usize] } else { vec![] };
            [request(flags, command, cookie, at, len), payload].concat()
        });
    prop_oneof![
        8 => whole,
        1 => (any::<u16>(), any::<u16>(), any::<u64>(), any::<u32>())
            .prop_map(|(flags, command, at, len)| request(flags, command, 1, at, len)),
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ]
}

/// A conversation with some of its bytes changed, and the lengths of the pieces that it comes in.
fn mutated(part: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let pieces = prop::collection::vec(1..600_usize, 1..8);
    (prop::collection::vec(part, 1..12), changes, pieces).prop_map(|(parts, changes, pieces)| {
        let mut bytes = parts.concat();
        for (index, byte) in changes {
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        }
        (bytes, pieces)
    })
}

fn any_session() -> impl Strategy<Value = Session> {
    let contexts =
        (any::<bool>(), any::<bool>()).prop_map(|(allocation, depth)| Contexts { allocation, depth });
    (any::<bool>(), any::<bool>(), contexts).prop_map(|(read_only, structured, contexts)| Session {
        read_only,
        structured,
        contexts: if structured { contexts } else { Contexts::default() },
        ..session()
    })
}

fn check_handshake(input: &[u8], pieces: &[usize]) -> Result<(), TestCaseError> {
    let whole = shake(export(), input, &[usize::MAX]);
    let torn = shake(export(), input, pieces);
    prop_assert_eq!(&whole, &torn);
    let (said, progress, left) = whole;
    prop_assert!(said.len() <= MOST_PER_BYTE * input.len() + 200, "{} for {}", said.len(), input.len());
    prop_assert!(left.is_empty() || progress != Progress::More);
    Ok(())
}

fn check_requests(session: Session, input: &[u8], pieces: &[usize]) -> Result<(), TestCaseError> {
    let whole = events(session, input, &[usize::MAX]);
    prop_assert_eq!(&whole, &events(session, input, pieces));
    for (nth, seen) in whole.iter().enumerate() {
        if let Seen::Other(Event::Request(request)) = seen {
            let end = request.at.checked_add(u64::from(request.len));
            prop_assert!(end.is_some_and(|end| end <= session.size), "{:?} is not on the disk", request);
        }
        let ends = matches!(seen, Seen::Other(Event::Disconnect | Event::Broken));
        prop_assert!(!ends || nth + 1 == whole.len(), "{:?} is not the last", seen);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_handshake_bears_any_bytes(
        input in prop::collection::vec(any::<u8>(), 0..2000),
        pieces in prop::collection::vec(1..100_usize, 1..8),
    ) {
        check_handshake(&input, &pieces)?;
        check_handshake(&[&3_u32.to_be_bytes()[..], b"IHAVEOPT", &input].concat(), &pieces)?;
    }

    #[test]
    fn a_handshake_bears_changed_options((input, pieces) in mutated(handshake_part())) {
        check_handshake(&[&3_u32.to_be_bytes()[..], &input].concat(), &pieces)?;
    }

    #[test]
    fn requests_may_be_any_bytes(
        session in any_session(),
        input in prop::collection::vec(any::<u8>(), 0..2000),
        pieces in prop::collection::vec(1..100_usize, 1..8),
    ) {
        check_requests(session, &input, &pieces)?;
        check_requests(session, &[&0x2560_9513_u32.to_be_bytes()[..], &input].concat(), &pieces)?;
    }

    #[test]
    fn requests_may_be_changed(session in any_session(), (input, pieces) in mutated(transmission_part())) {
        check_requests(session, &input, &pieces)?;
    }
}
