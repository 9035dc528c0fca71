//! Handshakes as real clients have them, and as no client should.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use catena_nbd::{Contexts, Export, Handshake, OPTION_LIMIT, Progress, Session};
use common::{NAME, Reader, SIZE, export, option, option_replies, queries, session, shake, wanted};

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

const ACK: u64 = 1;
const UNSUP: u64 = 0x8000_0001;
const INVALID: u64 = 0x8000_0003;
const UNKNOWN: u64 = 0x8000_0006;
const TOO_BIG: u64 = 0x8000_0009;

const BOTH_FLAGS: u32 = 3;
/// HAS_FLAGS, FLUSH, FUA, MULTI_CONN, CACHE.
const ALWAYS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
/// TRIM, WRITE_ZEROES, FAST_ZERO.
const WRITING: u16 = 1 << 5 | 1 << 6 | 1 << 11;
const DF: u16 = 1 << 7;

/// A client with both flags that sends these options.
fn talk(export: Export, options: &[Vec<u8>]) -> (Vec<u8>, Progress) {
    let input = [BOTH_FLAGS.to_be_bytes().to_vec(), options.concat()].concat();
    let (out, progress, left) = shake(export, &input, &[usize::MAX]);
    assert!(left.is_empty());
    (out, progress)
}

/// The kinds of the replies to these options, which do not end the handshake.
fn kinds(options: &[Vec<u8>]) -> Vec<u64> {
    let (out, progress) = talk(export(), options);
    assert_eq!(progress, Progress::More);
    option_replies(&out).into_iter().map(|(_, kind, _)| kind).collect()
}

#[test]
fn the_greeting_is_fixed_newstyle() {
    assert_eq!(&Handshake::GREETING, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn go_tells_everything_that_is_asked_and_enters_transmission() {
    let options = [option(STRUCTURED_REPLY, b""), option(GO, &wanted(NAME, &[1, 2, 3, 999]))];
    let (out, progress) = talk(export(), &options);
    let replies = option_replies(&out);
    let go: Vec<_> =
        replies[1..].iter().map(|(option, kind, data)| (*option, *kind, data.as_slice())).collect();
    let expected = [
        [&0_u16.to_be_bytes()[..], &SIZE.to_be_bytes(), &(ALWAYS | WRITING | DF).to_be_bytes()].concat(),
        [&1_u16.to_be_bytes()[..], NAME.as_bytes()].concat(),
        [&2_u16.to_be_bytes()[..], b"a disk"].concat(),
        [
            &3_u16.to_be_bytes()[..],
            &1_u32.to_be_bytes(),
            &4096_u32.to_be_bytes(),
            &(32_u32 << 20).to_be_bytes(),
        ]
        .concat(),
    ];
    assert_eq!(replies[0], (8, ACK, vec![]));
    for (reply, data) in go.iter().zip(&expected) {
        assert_eq!(*reply, (7, 3, data.as_slice()));
    }
    assert_eq!(go[4..], [(7, ACK, &b""[..])]);
    assert_eq!(progress, Progress::Serving(Session { contexts: Contexts::default(), ..session() }));
}

#[test]
fn information_that_is_not_asked_for_is_not_told() {
    let (out, progress) = talk(export(), &[option(INFO, &wanted("", &[]))]);
    let replies = option_replies(&out);
    let flags = ALWAYS | WRITING; // no structured replies, so none that may not be cut
    let told = [&0_u16.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    assert_eq!(replies, [(6, 3, told), (6, ACK, vec![])]);
    assert_eq!(progress, Progress::More);
}

#[test]
fn a_disk_that_may_not_be_written_says_so() {
    let read_only = Export { read_only: true, ..export() };
    let (out, progress) = talk(read_only, &[option(GO, &wanted("", &[]))]);
    let flags = Reader(&option_replies(&out)[0].2[10..]).int(2);
    assert_eq!(flags, u64::from(ALWAYS | 1 << 1));
    let Progress::Serving(session) = progress else { panic!("{progress:?}") };
    assert!(session.read_only && !session.structured);
}

#[test]
fn the_old_way_in_sends_zeroes_only_to_those_who_want_them() {
    let head = [SIZE.to_be_bytes().to_vec(), (ALWAYS | WRITING).to_be_bytes().to_vec()].concat();
    for (flags, zeroes) in [(0_u32, 124), (1, 124), (2, 0), (3, 0)] {
        let input = [&flags.to_be_bytes()[..], &option(EXPORT_NAME, NAME.as_bytes()), b"rest"].concat();
        let (out, progress, left) = shake(export(), &input, &[usize::MAX]);
        assert_eq!(out, [head.clone(), vec![0; zeroes]].concat());
        assert!(matches!(progress, Progress::Serving(_)), "{progress:?}");
        assert_eq!(left, b"rest", "what follows belongs to transmission");
    }
}

#[test]
fn clients_that_cannot_be_answered_are_left() {
    let closing = [
        4_u32.to_be_bytes().to_vec(),
        [&3_u32.to_be_bytes()[..], &option(EXPORT_NAME, b"another")].concat(),
        [&3_u32.to_be_bytes()[..], &option(EXPORT_NAME, &[b'x'; 4097])].concat(),
        [&3_u32.to_be_bytes()[..], b"IHAVEOPX", &[0; 8]].concat(),
        [&3_u32.to_be_bytes()[..], &[0; 16]].concat(),
    ];
    for input in closing {
        let (out, progress, _) = shake(export(), &input, &[usize::MAX]);
        assert!(matches!(progress, Progress::Closed(_)), "{input:?}: {progress:?}");
        assert!(out.is_empty(), "{out:?}");
    }
}

#[test]
fn list_names_the_one_export() {
    let (out, _) = talk(export(), &[option(LIST, b"")]);
    assert_eq!(option_replies(&out), [(3, 2, common::string(NAME)), (3, ACK, vec![])]);
}

#[test]
fn an_abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"bye", &[0; 100_000]] {
        let (out, progress) = talk(export(), &[option(ABORT, data)]);
        assert_eq!(option_replies(&out), [(2, ACK, vec![])]);
        assert!(matches!(progress, Progress::Closed(_)));
    }
}

#[test]
fn bad_options_are_refused_and_the_handshake_goes_on() {
    let too_long = vec![0; OPTION_LIMIT + 1];
    let long_name = [&4097_u32.to_be_bytes()[..], &[b'x'; 4097], &[0, 0]].concat();
    let mut count_too_large = queries(NAME, &["base:"]);
    count_too_large[4 + NAME.len()..][..4].fill(255);
    let more_than_counted = [queries(NAME, &["base:"]), vec![0]].concat();
    let cases: [(u32, &[u8], u64); 20] = [
        (5, b"", UNSUP),    // STARTTLS
        (11, b"", UNSUP),   // EXTENDED_HEADERS
        (4, b"abc", UNSUP), // PEEK_EXPORT
        (0, &too_long, UNSUP),
        (u32::MAX, b"data", UNSUP),
        (LIST, b"x", INVALID),
        (STRUCTURED_REPLY, &too_long, INVALID),
        (INFO, b"", INVALID),
        (GO, &[0; 5], INVALID),
        (GO, &[0, 0, 0, 0, 0, 1], INVALID),
        (GO, &[0, 0, 0, 0, 0, 0, 0], INVALID),
        (GO, &[255; 6], INVALID),
        (GO, &long_name, INVALID),
        (GO, &too_long, TOO_BIG),
        (GO, &wanted("another", &[]), UNKNOWN),
        (INFO, &wanted(&NAME[1..], &[3]), UNKNOWN),
        (SET_META_CONTEXT, &count_too_large, INVALID),
        (SET_META_CONTEXT, &more_than_counted, INVALID),
        (LIST_META_CONTEXT, &queries("another", &[]), UNKNOWN),
        (LIST_META_CONTEXT, &too_long, TOO_BIG),
    ];
    for (number, data, expected) in cases {
        let told = kinds(&[option(STRUCTURED_REPLY, b""), option(number, data), option(LIST, b"")]);
        assert_eq!(told, [ACK, expected, 2, ACK], "option {number} with {} bytes", data.len());
    }
}

#[test]
fn contexts_are_listed_with_their_wildcards() {
    let all = ["base:allocation", "qemu:allocation-depth"];
    let cases: [(&[&str], &[&str]); 7] = [
        (&[], &all),
        (&["base:"], &all[..1]),
        (&["qemu:"], &all[1..]),
        (&["qemu:allocation-depth", "qemu:", "base:allocation"], &all),
        (&["base:other", "x-mine:", "qemu:dirty-bitmap:b"], &[]),
        (&[""], &[]),
        (&["base:allocatio", "qemu:allocation-depths"], &[]),
    ];
    for (asked, expected) in cases {
        let options = [option(STRUCTURED_REPLY, b""), option(LIST_META_CONTEXT, &queries(NAME, asked))];
        let (out, _) = talk(export(), &options);
        let replies = option_replies(&out);
        let (last, told) = replies[1..].split_last().unwrap();
        assert_eq!(*last, (9, ACK, vec![]));
        let names: Vec<_> =
            told.iter().map(|(_, _, data)| std::str::from_utf8(&data[4..]).unwrap()).collect();
        assert_eq!(names, expected, "{asked:?}");
        assert!(told.iter().all(|(_, kind, data)| *kind == 4 && data[..4] == [0; 4]));
    }
}

#[test]
fn contexts_are_selected_by_their_names_only() {
    let cases: [(&[&str], bool, bool); 6] = [
        (&[], false, false),
        (&["base:", "qemu:", ""], false, false),
        (&["base:allocation"], true, false),
        (&["qemu:allocation-depth"], false, true),
        (&["qemu:allocation-depth", "base:allocation", "base:allocation"], true, true),
        (&["qemu:dirty-bitmap:b", "base:allocation"], true, false),
    ];
    for (asked, allocation, depth) in cases {
        let options = [
            option(STRUCTURED_REPLY, b""),
            option(SET_META_CONTEXT, &queries("", asked)),
            option(GO, &wanted(NAME, &[])),
        ];
        let (out, progress) = talk(export(), &options);
        let Progress::Serving(session) = progress else { panic!("{progress:?}") };
        assert_eq!(session.contexts, Contexts { allocation, depth }, "{asked:?}");
        let told =
            option_replies(&out).iter().filter(|(option, kind, _)| (*option, *kind) == (10, 4)).count();
        assert_eq!(told, usize::from(allocation) + usize::from(depth));
    }
}

#[test]
fn a_failed_selection_leaves_nothing_selected() {
    let failing: [&[u8]; 3] = [b"", &queries("another", &["base:allocation"]), &[0; OPTION_LIMIT + 1]];
    for data in failing {
        let options = [
            option(STRUCTURED_REPLY, b""),
            option(SET_META_CONTEXT, &queries("", &["base:allocation"])),
            option(SET_META_CONTEXT, data),
            option(GO, &wanted("", &[])),
        ];
        let (_, progress) = talk(export(), &options);
        let Progress::Serving(session) = progress else { panic!("{progress:?}") };
        assert!(session.contexts.is_empty());
    }
}

#[test]
fn contexts_need_structured_replies() {
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(kinds(&[option(number, &queries("", &["base:allocation"]))]), [INVALID]);
    }
}
