//! Bytes that a client has sent and nobody has looked at yet.

use catena_blockio::AlignedBuf;
use std::io::{self, IoSliceMut, Read};

/// How many are held: requests are 28 bytes, so that many come with one call; what is longer goes where it belongs.
const HELD: usize = 64 << 10;

/// A buffer between the socket and the parser.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What a call brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes went to the payload, and perhaps more to the buffer. `drained`: the socket has no more for now.
    Some {
        /// Bytes of the payload.
        payload: usize,
        /// The socket had fewer bytes than there was room for.
        drained: bool,
    },
    /// Nothing for now.
    Nothing,
    /// Nothing will ever come.
    End,
}

impl Input {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; HELD].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes are dealt with.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves bytes to a payload, as many as there are and fit. Returns how many.
    pub(crate) fn move_to(&mut self, payload: &mut [u8]) -> usize {
        let count = payload.len().min(self.end - self.start);
        payload[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.consume(count);
        count
    }

    /// Receives with one call: first the rest of a payload (from `filled` on), for which nothing may be left here, then what
    /// follows it.
    pub(crate) fn receive(
        &mut self,
        mut socket: impl Read,
        payload: Option<(&mut AlignedBuf, usize)>,
    ) -> io::Result<Received> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let wanted = payload.as_ref().map_or(0, |(buf, filled)| buf.len() - filled);
        let rest = match payload {
            Some((buf, filled)) => &mut buf[filled..],
            None => &mut [],
        };
        let room = wanted + self.bytes.len() - self.end;
        let count = loop {
            let mut parts = [IoSliceMut::new(rest), IoSliceMut::new(&mut self.bytes[self.end..])];
            match socket.read_vectored(&mut parts) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) => return Err(error),
            }
        };
        if count == 0 && room > 0 {
            return Ok(Received::End);
        }
        let to_payload = count.min(wanted);
        self.end += count - to_payload;
        Ok(Received::Some { payload: to_payload, drained: count < room })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_payload_gets_its_bytes_and_the_rest_stays() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut input = Input::new();
        assert_eq!(input.receive(&ours, None).unwrap(), Received::Nothing);
        theirs.write_all(b"head1234").unwrap();
        assert_eq!(input.receive(&ours, None).unwrap(), Received::Some { payload: 0, drained: true });
        input.consume(4);
        let mut payload = AlignedBuf::zeroed(10);
        assert_eq!(input.move_to(&mut payload), 4);
        assert!(input.bytes().is_empty());
        theirs.write_all(b"567890next").unwrap();
        let received = input.receive(&ours, Some((&mut payload, 4))).unwrap();
        assert_eq!(received, Received::Some { payload: 6, drained: true });
        assert_eq!((&payload[..], input.bytes()), (&b"1234567890"[..], &b"next"[..]));
        drop(theirs);
        assert_eq!(input.receive(&ours, None).unwrap(), Received::End);
    }

    #[test]
    fn a_full_buffer_says_that_there_may_be_more() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut input = Input::new();
        let all: Vec<u8> = (0..=250).cycle().take(HELD + 10).collect();
        theirs.write_all(&all).unwrap();
        let received = input.receive(&ours, None).unwrap();
        assert_eq!(received, Received::Some { payload: 0, drained: false });
        assert!(input.bytes() == &all[..HELD]);
        input.consume(HELD - 3);
        assert_eq!(input.receive(&ours, None).unwrap(), Received::Some { payload: 0, drained: true });
        assert!(input.bytes() == &all[HELD - 3..]);
    }
}
