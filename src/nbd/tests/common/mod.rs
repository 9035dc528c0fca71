//! The client's side, written from the protocol's text with numbers of its own, so that it does not share our mistakes.

#![allow(dead_code, reason = "every test file uses its own part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use catena_nbd::{Contexts, Event, Export, Handshake, Progress, Requests, Session};

pub(crate) const SIZE: u64 = 1 << 30;
pub(crate) const NAME: &str = "4f6c6d6e-0000-4000-8000-0123456789ab";

pub(crate) fn export() -> Export {
    Export { name: NAME.to_owned(), description: "a disk".to_owned(), size: SIZE, read_only: false }
}

pub(crate) fn session() -> Session {
    let contexts = Contexts { allocation: true, depth: true };
    Session { size: SIZE, read_only: false, structured: true, contexts }
}

/// An option as a client sends it.
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// Data of INFO and GO.
pub(crate) fn wanted(name: &str, infos: &[u16]) -> Vec<u8> {
    let count = u16::try_from(infos.len()).unwrap();
    let infos: Vec<u8> = infos.iter().flat_map(|info| info.to_be_bytes()).collect();
    [string(name), count.to_be_bytes().to_vec(), infos].concat()
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [string(name), u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec()].concat();
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// A request as a client sends it.
pub(crate) fn request(flags: u16, command: u16, cookie: u64, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
    bytes.extend([cookie.to_be_bytes(), at.to_be_bytes()].concat());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Integers and texts of a message, front to back.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }

    pub(crate) fn int(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
}

/// Replies to options: option, kind, data.
pub(crate) fn option_replies(bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    let mut reader = Reader(bytes);
    let mut replies = Vec::new();
    while !reader.0.is_empty() {
        assert_eq!(reader.int(8), 0x0003_e889_0455_65a9);
        let (option, kind, len) = (reader.int(4), reader.int(4), reader.int(4));
        replies.push((option, kind, reader.take(usize::try_from(len).unwrap()).to_vec()));
    }
    replies
}

/// A handshake fed in pieces of these lengths, again and again, until its input is used up or it is over. Gives what it said,
/// where it is and what is left.
pub(crate) fn shake(export: Export, mut input: &[u8], pieces: &[usize]) -> (Vec<u8>, Progress, Vec<u8>) {
    let (mut handshake, mut out) = (Handshake::new(export), Vec::new());
    let mut progress = Progress::More;
    for &piece in pieces.iter().cycle() {
        if input.is_empty() || progress != Progress::More {
            break;
        }
        let len = piece.clamp(1, input.len());
        let mut given = &input[..len];
        progress = handshake.feed(&mut given, &mut out);
        assert!(given.is_empty() || progress != Progress::More, "{} bytes were left", given.len());
        input = &input[len - given.len()..];
    }
    (out, progress, input.to_vec())
}

/// What comes out of bytes in transmission, payloads put together again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Other(Event<'static>),
    Payload(Vec<u8>),
}

pub(crate) fn events(session: Session, mut input: &[u8], pieces: &[usize]) -> Vec<Seen> {
    let (mut requests, mut seen) = (Requests::new(session), Vec::new());
    for &piece in pieces.iter().cycle() {
        if input.is_empty() {
            break;
        }
        let (mut given, rest) = input.split_at(piece.clamp(1, input.len()));
        input = rest;
        while let Some(event) = requests.next(&mut given) {
            match (event, seen.last_mut()) {
                (Event::Payload(more), Some(Seen::Payload(data))) => data.extend_from_slice(more),
                (Event::Payload(data), _) => seen.push(Seen::Payload(data.to_vec())),
                (Event::Request(request), _) => seen.push(Seen::Other(Event::Request(request))),
                (Event::Refused(refusal), _) => seen.push(Seen::Other(Event::Refused(refusal))),
                (Event::Disconnect, _) => seen.push(Seen::Other(Event::Disconnect)),
                (Event::Broken, _) => seen.push(Seen::Other(Event::Broken)),
            }
        }
    }
    seen
}
