//! Replies, read as a client reads them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use catena_nbd::{Contexts, Cookie, Errno, Extent, ReadReply, Request, Session, What};
use common::{Reader, SIZE, session};
use proptest::prelude::*;

const COOKIE: Cookie = Cookie(0x0123_4567_89ab_cdef);

#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    done: bool,
    kind: u64,
    payload: Vec<u8>,
}

fn chunks(bytes: &[u8]) -> Vec<Chunk> {
    let mut reader = Reader(bytes);
    let mut chunks = Vec::new();
    while !reader.0.is_empty() {
        assert_eq!(reader.int(4), 0x668e_33ef);
        let (flags, kind) = (reader.int(2), reader.int(2));
        assert_eq!(reader.int(8), COOKIE.0);
        let len = usize::try_from(reader.int(4)).unwrap();
        chunks.push(Chunk { done: flags == 1, kind, payload: reader.take(len).to_vec() });
        assert!(flags <= 1);
    }
    let (last, others) = chunks.split_last().expect("no chunk");
    assert!(last.done && others.iter().all(|chunk| !chunk.done), "only the last one ends the reply");
    chunks
}

fn plain() -> Session {
    Session { structured: false, contexts: Contexts::default(), ..session() }
}

fn simple(error: u32) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &COOKIE.0.to_be_bytes()].concat()
}

#[test]
fn what_succeeded_without_data_is_answered_simply() {
    assert_eq!(&*session().done(COOKIE), simple(0));
    assert_eq!(&*plain().done(COOKIE), simple(0));
}

#[test]
fn errors_are_told_in_the_form_that_was_agreed() {
    let numbers = [
        (Errno::Perm, 1),
        (Errno::Io, 5),
        (Errno::Inval, 22),
        (Errno::NoSpc, 28),
        (Errno::Overflow, 75),
        (Errno::NotSup, 95),
        (Errno::Shutdown, 108),
    ];
    for (error, number) in numbers {
        let (mut short, mut long, mut placed) = (Vec::new(), Vec::new(), Vec::new());
        plain().failed(COOKIE, error, "why", Some(5), &mut short);
        session().failed(COOKIE, error, "why", None, &mut long);
        session().failed(COOKIE, error, "why", Some(0x1_0000_0002), &mut placed);
        assert_eq!(short, simple(number));
        let payload = [&number.to_be_bytes()[..], &[0, 3], b"why"].concat();
        assert_eq!(chunks(&long), [Chunk { done: true, kind: 0x8001, payload: payload.clone() }]);
        let payload = [&payload[..], &0x1_0000_0002_u64.to_be_bytes()].concat();
        assert_eq!(chunks(&placed), [Chunk { done: true, kind: 0x8002, payload }]);
    }
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let mut out = Vec::new();
    session().failed(COOKIE, Errno::Io, &"…".repeat(5000), None, &mut out);
    let payload = &chunks(&out)[0].payload;
    let told = std::str::from_utf8(&payload[6..]).unwrap();
    assert_eq!(told, "…".repeat(341));
    assert_eq!(payload[4..6], 1023_u16.to_be_bytes());
}

/// One piece of a read: its bytes, or as many zeros.
type Piece = (bool, Vec<u8>);

/// The reply to a read of these pieces, as it goes over the wire.
fn answer(session: &Session, request: &Request, pieces: &[Piece]) -> Vec<u8> {
    let (mut reply, mut out) = (ReadReply::new(session, request), Vec::new());
    for (zero, data) in pieces {
        let len = u32::try_from(data.len()).unwrap();
        if *zero {
            let (head, zeros) = reply.zeros(len);
            out.extend_from_slice(&head);
            out.resize(out.len() + zeros as usize, 0);
        } else {
            out.extend_from_slice(&reply.data(len));
            out.extend_from_slice(data);
        }
    }
    out
}

/// What a client makes of structured content.
fn content(chunks: &[Chunk], request: &Request) -> Vec<u8> {
    let mut content = vec![None; request.len as usize];
    for chunk in chunks {
        let mut reader = Reader(&chunk.payload);
        let at = usize::try_from(reader.int(8) - request.at).unwrap();
        let data = match chunk.kind {
            1 => reader.0.to_vec(),
            2 => vec![0; usize::try_from(reader.int(4)).unwrap()],
            kind => panic!("a chunk of kind {kind}"),
        };
        assert!(!data.is_empty());
        for (byte, told) in content[at..][..data.len()].iter_mut().zip(data) {
            assert_eq!(byte.replace(told), None, "told twice");
        }
    }
    content.into_iter().map(|byte| byte.expect("not told")).collect()
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (0..40_usize).prop_map(|len| (true, vec![0; len])),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|data| (false, data)),
    ]
}

proptest! {
    #[test]
    fn every_form_of_a_read_carries_the_same_bytes(
        at in 0..SIZE - 4096,
        pieces in prop::collection::vec(piece(), 1..12),
    ) {
        let data: Vec<u8> = pieces.iter().flat_map(|(_, data)| data.clone()).collect();
        prop_assume!(!data.is_empty());
        let len = u32::try_from(data.len()).unwrap();
        let request = |whole| Request { cookie: COOKIE, at, len, what: What::Read { whole } };

        let sent = answer(&plain(), &request(false), &pieces);
        prop_assert_eq!(&sent, &[simple(0), data.clone()].concat());

        let free = chunks(&answer(&session(), &request(false), &pieces));
        prop_assert_eq!(content(&free, &request(false)), &data[..]);
        let holes = pieces.iter().filter(|(zero, data)| *zero && !data.is_empty()).count();
        prop_assert_eq!(free.iter().filter(|chunk| chunk.kind == 2).count(), holes);

        let whole = chunks(&answer(&session(), &request(true), &pieces));
        prop_assert_eq!(whole.len(), 1);
        prop_assert_eq!(content(&whole, &request(true)), data);
    }
}

#[test]
fn a_read_of_nothing_but_zeros_is_a_hole_even_in_one_piece() {
    let request = Request { cookie: COOKIE, at: 512, len: 9, what: What::Read { whole: true } };
    let reply = chunks(&answer(&session(), &request, &[(true, vec![0; 9])]));
    assert_eq!((reply.len(), reply[0].kind), (1, 2));
}

fn extent(len: u64, hole: bool, zero: bool, depth: u32) -> Extent {
    Extent { len, hole, zero, depth }
}

/// For each context that was told, in order: its number, and lengths with flags.
fn told(session: &Session, at: u64, len: u32, one: bool, extents: &[Extent]) -> Vec<(u64, Vec<(u64, u64)>)> {
    let (mut out, request) = (Vec::new(), Request { cookie: COOKIE, at, len, what: What::Status { one } });
    session.extents(&request, extents, &mut out);
    let contexts = chunks(&out).into_iter().map(|chunk| {
        assert_eq!(chunk.kind, 5);
        let mut reader = Reader(&chunk.payload);
        let context = reader.int(4);
        let count = reader.0.len() / 8;
        (context, (0..count).map(|_| (reader.int(4), reader.int(4))).collect())
    });
    contexts.collect()
}

#[test]
fn every_selected_context_has_its_own_extents() {
    let extents = [
        extent(4096, false, false, 1),
        extent(4096, false, false, 2),
        extent(0, true, false, 9),
        extent(8192, true, true, 0),
        extent(512, true, true, 0),
    ];
    let allocation = (1, vec![(8192, 0), (8704, 3)]);
    let depth = (2, vec![(4096, 1), (4096, 2), (8704, 0)]);
    assert_eq!(told(&session(), 0, 1 << 20, false, &extents), [allocation.clone(), depth.clone()]);
    for (contexts, expected) in [
        (Contexts { allocation: true, depth: false }, allocation),
        (Contexts { allocation: false, depth: true }, depth),
    ] {
        assert_eq!(told(&Session { contexts, ..session() }, 0, 1 << 20, false, &extents), [expected]);
    }
}

#[test]
fn one_extent_is_one_extent_and_not_longer_than_asked() {
    let extents = [extent(512, false, false, 1), extent(512, false, false, 2), extent(4096, true, true, 0)];
    assert_eq!(told(&session(), 0, 600, true, &extents), [(1, vec![(600, 0)]), (2, vec![(512, 1)])]);
    assert_eq!(told(&session(), 0, 100, true, &extents), [(1, vec![(100, 0)]), (2, vec![(100, 1)])]);
}

#[test]
fn no_extent_reaches_beyond_the_disk_or_thirty_two_bits() {
    let zeros = [extent(u64::MAX, true, true, 0), extent(512, false, false, 1)];
    assert_eq!(told(&session(), SIZE - 1024, 512, false, &zeros)[0].1, [(1024, 3)]);
    let large = Session { size: 1 << 40, ..session() };
    assert_eq!(told(&large, 0, u32::MAX, false, &zeros)[0].1, [(0xffff_f000, 3)]);
    let cut = [extent(0xffff_f800, true, true, 0), extent(4096, false, false, 1)];
    assert_eq!(told(&large, 0, u32::MAX, false, &cut)[0].1, [(0xffff_f000, 3)], "what follows is elsewhere");
    let parts =
        [extent(1 << 20, false, false, 1), extent(1 << 33, true, true, 0), extent(512, false, false, 1)];
    assert_eq!(told(&large, 0, u32::MAX, false, &parts)[0].1, [(1 << 20, 0), (0xffff_f000, 3)]);
}

#[test]
fn a_reply_has_an_end_even_if_the_extents_have_none() {
    let many: Vec<Extent> = (0..200_000).map(|nth| extent(1, nth % 2 == 0, false, nth)).collect();
    let told = told(&session(), 0, 1 << 20, false, &many);
    assert!(told.iter().all(|(_, extents)| extents.len() == 65_536));
}

#[test]
fn knowing_nothing_of_a_range_is_an_error() {
    let request = Request { cookie: COOKIE, at: 0, len: 512, what: What::Status { one: false } };
    for extents in [&[][..], &[extent(0, true, true, 0)]] {
        let mut out = Vec::new();
        session().extents(&request, extents, &mut out);
        assert_eq!(chunks(&out)[0].kind, 0x8001);
    }
}

proptest! {
    #[test]
    fn extents_say_of_every_byte_what_the_disk_said(
        lens in prop::collection::vec((1..5000_u64, any::<bool>(), any::<bool>(), 0..3_u32), 1..30),
        len in 1..20_000_u32,
        one in any::<bool>(),
    ) {
        let extents: Vec<_> = lens.iter().map(|&(len, hole, zero, depth)| extent(len, hole, zero, depth)).collect();
        let said = |flags: fn(&Extent) -> u64| -> Vec<u64> {
            extents.iter().flat_map(|extent| vec![flags(extent); usize::try_from(extent.len).unwrap()]).collect()
        };
        let truth = [said(|e| u64::from(e.hole) + 2 * u64::from(e.zero)), said(|e| u64::from(e.depth))];
        let told = told(&session(), 0, len, one, &extents);
        prop_assert_eq!(told.len(), 2);
        for ((_, descriptors), truth) in told.iter().zip(truth) {
            let (last, others) = descriptors.split_last().unwrap();
            let before: u64 = others.iter().map(|(len, _)| len).sum();
            prop_assert!(before < u64::from(len), "only the last one may reach beyond what was asked for");
            prop_assert!(!one || others.is_empty() && last.0 <= u64::from(len));
            prop_assert!(descriptors.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours that are alike");
            let bytes: Vec<u64> =
                descriptors.iter().flat_map(|&(len, flags)| vec![flags; usize::try_from(len).unwrap()]).collect();
            prop_assert_eq!(&truth[..bytes.len()], &bytes[..]);
            prop_assert!(one || bytes.len() >= truth.len().min(len as usize), "less than what is known");
        }
    }
}
