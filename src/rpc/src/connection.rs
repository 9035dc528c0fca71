//! Lines and descriptors on a Unix stream socket.
//!
//! A request's line has at most [`LINE_LIMIT`] bytes, an answer's at most [`ANSWER_LIMIT`]: who asks trusts whom it asks.
//! Descriptors come with the first byte of the line they belong to, at most 32 with a
//! message; the sender sends such a line in one call, so the kernel never lets them slip to a neighbour. Used by client, agent
//! and keeper alike.

use crate::message::Message;
use crate::{ANSWER_LIMIT, LINE_LIMIT};
use catena_types::Failure;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, mem};

/// The most descriptors in one message.
const FD_LIMIT: usize = 32;

/// Why a connection cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// A line is longer than the limit.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
}

/// One line as it came.
#[derive(Debug)]
pub struct Incoming {
    /// The message, or why the line is none.
    pub message: Result<Message, Failure>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Reader {
    stream: Arc<UnixStream>,
    /// The most bytes of a line.
    limit: usize,
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no newline.
    searched: usize,
    /// Descriptors not yet handed out, each with the place in `buffer` where its line begins.
    fds: Vec<(usize, OwnedFd)>,
}

/// The sending half; clones share the socket, and a line is never torn by another.
#[derive(Debug, Clone)]
pub struct Writer {
    stream: Arc<UnixStream>,
    turn: Arc<Mutex<()>>,
}

/// Connects to an agent's socket.
pub fn connect(path: &Path) -> io::Result<(Reader, Writer)> {
    Ok(split_for_answers(UnixStream::connect(path)?))
}

/// Makes the two halves of a connected socket, for the side that is asked.
pub fn split(stream: UnixStream) -> (Reader, Writer) {
    halves(stream, LINE_LIMIT)
}

/// Makes the two halves of a connected socket, for the side that asks.
pub fn split_for_answers(stream: UnixStream) -> (Reader, Writer) {
    halves(stream, ANSWER_LIMIT)
}

fn halves(stream: UnixStream, limit: usize) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    let kept = Arc::clone(&stream);
    let reader = Reader { stream: kept, limit, buffer: Vec::new(), searched: 0, fds: Vec::new() };
    (reader, Writer { stream, turn: Arc::default() })
}

impl Reader {
    /// The next line, `None` at the end of the stream. Blocks; a read time-out set on the socket is an error of kind
    /// `WouldBlock`, after which reading may go on.
    pub fn next_message(&mut self) -> Result<Option<Incoming>, WireError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                return Ok(Some(self.take_line(self.searched + end + 1)));
            }
            self.searched = self.buffer.len();
            if self.searched > self.limit {
                return Err(WireError::TooLong(self.limit));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    /// The socket, for time-outs, credentials and shutdown.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn take_line(&mut self, length: usize) -> Incoming {
        let rest = self.buffer.split_off(length);
        let line = mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        let (mine, later): (Vec<_>, Vec<_>) =
            mem::take(&mut self.fds).into_iter().partition(|(at, _)| *at < length);
        self.fds = later.into_iter().map(|(at, fd)| (at - length, fd)).collect();
        Incoming {
            message: Message::parse(&line[..length - 1]),
            fds: mine.into_iter().map(|(_, fd)| fd).collect(),
        }
    }

    /// Receives once. The kernel ends a receive with the bytes that descriptors came with, but may put earlier lines
    /// before them: so they belong to the line of the last byte received.
    fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let mut control = cmsg_space!([RawFd; FD_LIMIT]);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let received = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<UnixAddr>(self.stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let length = received.bytes;
        let mut fds = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed these descriptors for us; nobody else knows them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        if !fds.is_empty() {
            let before_last = &self.buffer[..self.buffer.len().saturating_sub(1)];
            let line_start = before_last.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            self.fds.extend(fds.into_iter().map(|fd| (line_start, fd)));
        }
        Ok(length)
    }
}

impl Writer {
    /// Sends one message with its descriptors (at most 32). Blocks while the peer does not read.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let line = message.to_line();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if raw.len() > FD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        let rights = [ControlMessage::ScmRights(&raw)];
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = 0;
        while sent < line.len() {
            let control = if sent == 0 && !raw.is_empty() { &rights[..] } else { &[] };
            let parts = [IoSlice::new(&line[sent..])];
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)
            {
                Ok(bytes) => sent += bytes,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection for both halves.
    pub fn shutdown(&self) {
        // An already closed peer is as good as a shut down one.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Id, Request};
    use serde_json::json;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    fn request(n: u64, pad: usize) -> Message {
        Message::Request(Request {
            id: Id::Number(n),
            method: "x".into(),
            params: json!({"pad": "y".repeat(pad)}),
        })
    }

    #[test]
    fn a_descriptor_arrives_with_its_own_line() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_, writer) = split(a);
        let (mut reader, _) = split(b);
        // Lines 1 to 3 lie in the socket before the first receive; line 4 is longer than the socket holds.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        writer.send(&request(1, 0), &[]).unwrap();
        writer.send(&request(2, 0), &[file.as_fd()]).unwrap();
        writer.send(&request(3, 0), &[]).unwrap();
        let sender = std::thread::spawn(move || {
            writer.send(&request(4, 900_000), &[file.as_fd(), file.as_fd()]).unwrap();
        });
        let got: Vec<Incoming> = std::iter::from_fn(|| reader.next_message().unwrap()).collect();
        sender.join().unwrap();
        assert_eq!(got.iter().map(|incoming| incoming.fds.len()).collect::<Vec<_>>(), [0, 1, 0, 2]);
        let mut file = std::fs::File::from(got.into_iter().nth(1).unwrap().fds.remove(0));
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
    }

    #[test]
    fn an_answer_may_be_longer_than_a_request() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = split_for_answers(a);
        let (_, answers) = split(b);
        let outcome = Ok(json!("z".repeat(3 * LINE_LIMIT)));
        let answer = Message::Response(crate::message::Response {
            id: Id::Number(1),
            outcome: outcome.map(Into::into),
        });
        let expected = answer.clone();
        let sender = std::thread::spawn(move || answers.send(&answer, &[]).unwrap());
        assert_eq!(reader.next_message().unwrap().unwrap().message.unwrap(), expected);
        sender.join().unwrap();
        drop(writer);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let sender = std::thread::spawn(move || {
            let chunk = [b'x'; 1 << 16];
            while a.write_all(&chunk).is_ok() {}
        });
        let (mut reader, _) = split(b);
        assert!(matches!(reader.next_message(), Err(WireError::TooLong(LINE_LIMIT))));
        drop(reader);
        sender.join().unwrap();
    }
}
