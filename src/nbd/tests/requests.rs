//! Requests that are served, requests that are not, and what is left of the conversation after them.

mod common;

use catena_nbd::{Contexts, Cookie, Errno, Event, Refusal, Request, Requests, Session, What};
use common::{SIZE, Seen, events, request, session};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const ONE: u16 = 8;
const FAST: u16 = 16;

const MIB: u32 = 1 << 20;

fn served(at: u64, len: u32, what: What) -> Seen {
    Seen::Other(Event::Request(Request { cookie: Cookie(7), at, len, what }))
}

#[test]
fn what_a_client_may_ask_is_understood() {
    let end = SIZE - 512;
    let zeroes = |fua, no_hole, fast| What::Zeroes { fua, no_hole, fast };
    let cases = [
        (0, READ, 1, 1, What::Read { whole: false }),
        (DF, READ, end, 512, What::Read { whole: true }),
        (FUA, READ, 0, 32 * MIB, What::Read { whole: false }),
        (0, FLUSH, 0, 0, What::Flush),
        (FUA, FLUSH, 0, 0, What::Flush),
        (0, TRIM, 0, 1 << 30, What::Trim { fua: false }),
        (FUA, TRIM, end, 512, What::Trim { fua: true }),
        (0, CACHE, 4096, 100 * MIB, What::Cache),
        (FUA, CACHE, 4096, 1, What::Cache),
        (0, ZEROES, 0, 1 << 30, zeroes(false, false, false)),
        (FUA, ZEROES, 3, 5, zeroes(true, false, false)),
        (NO_HOLE | FAST, ZEROES, 0, 512, zeroes(false, true, true)),
        (0, STATUS, 0, 1 << 30, What::Status { one: false }),
        (ONE | FUA, STATUS, end, 512, What::Status { one: true }),
    ];
    for (flags, command, at, len, what) in cases {
        let seen = events(session(), &request(flags, command, 7, at, len), &[usize::MAX]);
        assert_eq!(seen, [served(at, len, what)], "command {command} with flags {flags}");
    }
}

#[test]
fn the_data_of_a_write_follow_it() {
    let input = [request(FUA, WRITE, 7, 10, 5), b"hello".to_vec(), request(0, FLUSH, 7, 0, 0)].concat();
    let expected = [
        served(10, 5, What::Write { fua: true }),
        Seen::Payload(b"hello".to_vec()),
        served(0, 0, What::Flush),
    ];
    for pieces in [[1], [5], [29], [usize::MAX]] {
        assert_eq!(events(session(), &input, &pieces), expected);
    }
}

#[test]
fn data_may_be_received_without_passing_through() {
    let mut requests = Requests::new(session());
    let mut input = &*[request(0, WRITE, 7, 0, 10), b"abc".to_vec()].concat();
    assert!(matches!(requests.next(&mut input), Some(Event::Request(_))));
    assert_eq!(requests.payload_left(), 10);
    assert_eq!(requests.next(&mut input), Some(Event::Payload(b"abc")));
    assert_eq!(requests.payload_left(), 7);
    requests.payload_taken(6);
    assert_eq!(requests.payload_left(), 1);
    requests.payload_taken(1);
    let mut next = &*request(0, FLUSH, 7, 0, 0);
    assert!(matches!(requests.next(&mut next), Some(Event::Request(Request { what: What::Flush, .. }))));
    requests.payload_taken(1);
    assert_eq!((requests.payload_left(), requests.next(&mut next)), (0, None));
}

#[test]
fn what_is_not_allowed_gets_its_error() {
    let plain = Session { structured: false, contexts: Contexts::default(), ..session() };
    let reading = Session { read_only: true, ..session() };
    let aimless = Session { contexts: Contexts::default(), ..session() };
    let huge = Session { size: u64::MAX, ..session() };
    let cases = [
        // Commands and flags.
        (session(), 0, 8, 0, 0, Errno::Inval), // RESIZE
        (session(), 0, u16::MAX, 0, 512, Errno::Inval),
        (session(), 1 << 5, WRITE, 0, 512, Errno::Inval), // PAYLOAD_LEN
        (session(), 1 << 15, READ, 0, 512, Errno::Inval),
        (session(), NO_HOLE, READ, 0, 512, Errno::Inval),
        (session(), DF, WRITE, 0, 512, Errno::Inval),
        (session(), ONE, FLUSH, 0, 0, Errno::Inval),
        (session(), NO_HOLE, TRIM, 0, 512, Errno::Inval),
        (session(), DF, CACHE, 0, 512, Errno::Inval),
        (session(), ONE, ZEROES, 0, 512, Errno::Inval),
        (session(), FAST, STATUS, 0, 512, Errno::Inval),
        (plain, DF, READ, 0, 512, Errno::Inval),
        (plain, 0, STATUS, 0, 512, Errno::Inval),
        (aimless, 0, STATUS, 0, 512, Errno::Inval),
        // Reading only.
        (reading, 0, WRITE, 0, 512, Errno::Perm),
        (reading, 0, TRIM, 0, 512, Errno::Perm),
        (reading, 0, ZEROES, 0, 512, Errno::Perm),
        (reading, 0, WRITE, SIZE, 512, Errno::Perm),
        // Ranges.
        (session(), 0, READ, SIZE, 1, Errno::Inval),
        (session(), 0, READ, SIZE - 511, 512, Errno::Inval),
        (session(), 0, READ, u64::MAX, 512, Errno::Inval),
        (huge, 0, READ, u64::MAX - 510, 512, Errno::Inval),
        (session(), 0, TRIM, SIZE - 1, 2, Errno::Inval),
        (session(), 0, CACHE, SIZE, 1, Errno::Inval),
        (session(), 0, STATUS, SIZE - 1, 2, Errno::Inval),
        (session(), 0, WRITE, SIZE - 511, 512, Errno::NoSpc),
        (session(), 0, WRITE, u64::MAX, 512, Errno::NoSpc),
        (session(), 0, ZEROES, SIZE, 1, Errno::NoSpc),
        (huge, 0, ZEROES, u64::MAX, u32::MAX, Errno::NoSpc),
        // Lengths.
        (session(), 0, READ, 0, 0, Errno::Inval),
        (session(), 0, WRITE, 0, 0, Errno::Inval),
        (session(), 0, TRIM, 0, 0, Errno::Inval),
        (session(), 0, CACHE, 0, 0, Errno::Inval),
        (session(), 0, ZEROES, 0, 0, Errno::Inval),
        (session(), 0, STATUS, 0, 0, Errno::Inval),
        (session(), 0, FLUSH, 1, 0, Errno::Inval),
        (session(), 0, FLUSH, 0, 1, Errno::Inval),
        (session(), 0, READ, 0, 32 * MIB + 1, Errno::Overflow),
        (plain, 0, READ, 0, 32 * MIB + 1, Errno::Inval),
        (session(), 0, WRITE, 0, 32 * MIB + 1, Errno::Inval),
    ];
    for (session, flags, command, at, len, expected) in cases {
        let what = format!("command {command} with flags {flags} at {at}, {len} bytes");
        let payload = if command == WRITE { vec![0x25; len as usize] } else { vec![] };
        let input = [request(flags, command, 9, at, len), payload, request(0, FLUSH, 7, 0, 0)].concat();
        let seen = events(session, &input, &[1 << 16]);
        let [Seen::Other(Event::Refused(Refusal { cookie, error, why })), next] = seen.as_slice() else {
            panic!("{what}: {seen:?}");
        };
        assert_eq!((*cookie, *error), (Cookie(9), expected), "{what}: {why}");
        assert_eq!(*next, served(0, 0, What::Flush), "{what}: the next request was lost");
    }
}

#[test]
fn a_refusal_waits_for_the_data_that_it_refuses() {
    let reading = Session { read_only: true, ..session() };
    let mut requests = Requests::new(reading);
    let input = request(0, WRITE, 7, 0, 1000);
    assert_eq!(requests.next(&mut &*input), None);
    for _ in 0..999 {
        assert_eq!(requests.next(&mut &b"x"[..]), None);
    }
    assert!(matches!(requests.next(&mut &b"x"[..]), Some(Event::Refused(_))));
}

#[test]
fn nothing_comes_after_the_end() {
    let garbage = [0x25; 28].to_vec();
    let historic = [&0x1256_0953_u32.to_be_bytes()[..], &[0; 24]].concat();
    for (last, expected) in
        [(request(0, DISC, 0, 0, 0), Event::Disconnect), (request(9, DISC, 1, 2, 3), Event::Disconnect)]
            .into_iter()
            .chain([(garbage, Event::Broken), (historic, Event::Broken)])
    {
        let input = [last, request(0, FLUSH, 7, 0, 0)].concat();
        assert_eq!(events(session(), &input, &[usize::MAX]), [Seen::Other(expected)]);
        assert_eq!(events(session(), &input, &[3]), [Seen::Other(expected)]);
    }
}
