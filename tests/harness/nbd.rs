//! A client of NBD for tests, written from the protocol's document and not from our own code: so that the two can disagree. Simple
//! replies only, one connection, requests may be sent without waiting for the replies of others.

use anyhow::{Context, Result, ensure};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// Commands by their numbers.
pub(crate) const READ: u16 = 0;
/// Write.
pub(crate) const WRITE: u16 = 1;
/// Disconnect.
pub(crate) const DISC: u16 = 2;
/// Flush.
pub(crate) const FLUSH: u16 = 3;
/// Trim.
pub(crate) const TRIM: u16 = 4;
/// Write zeroes.
pub(crate) const WRITE_ZEROES: u16 = 6;
/// The flag of a write that is durable when it is answered.
pub(crate) const FUA: u16 = 1;

/// A connection that has been negotiated.
pub(crate) struct Client {
    stream: UnixStream,
    /// The size of the disk in bytes.
    pub(crate) size: u64,
    /// What the server says that it can do.
    pub(crate) flags: u16,
    next: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Of the request.
    pub(crate) cookie: u64,
    /// 0, or the protocol's number of an error.
    pub(crate) error: u32,
}

impl Client {
    /// Connects to the default export.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).context("connecting to the NBD socket")?;
        stream.set_read_timeout(Some(super::PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(&greeting[..16] == b"NBDMAGICIHAVEOPT", "another greeting: {greeting:?}");
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut option = OPTION_MAGIC.to_vec();
        option.extend(OPTION_GO.to_be_bytes());
        option.extend(6u32.to_be_bytes());
        option.extend([0; 6]);
        stream.write_all(&option)?;
        let mut export = None;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            ensure!(head[..8] == OPTION_REPLY_MAGIC.to_be_bytes(), "not a reply to an option: {head:?}");
            let (kind, length) = (number(&head[12..16]), number(&head[16..20]));
            let mut data = vec![0; usize::try_from(length)?];
            stream.read_exact(&mut data)?;
            match u32::try_from(kind)? {
                REPLY_ACK => break,
                REPLY_INFO if number(&data[..2]) == 0 => {
                    export = Some((number(&data[2..10]), u16::try_from(number(&data[10..12]))?));
                }
                REPLY_INFO => {}
                other => anyhow::bail!("the option was refused: {other:#x}"),
            }
        }
        let (size, flags) = export.context("nothing was said of the export")?;
        Ok(Self { stream, size, flags, next: 1 })
    }

    /// Sends a request without waiting; returns its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        at: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        Ok(cookie)
    }

    /// The next reply to a request that brings no data.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if head[..4] != REPLY_MAGIC.to_be_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a reply: {head:?}")));
        }
        let error = u32::try_from(number(&head[4..8])).unwrap_or(u32::MAX);
        Ok(Reply { cookie: number(&head[8..16]), error })
    }

    /// Sends a request without data and waits for its answer; the error that it was answered with.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, at: u64, len: u32) -> Result<u32> {
        let cookie = self.send(command, flags, at, len, &[])?;
        self.answer_to(cookie)
    }

    /// Reads; the error if it was refused.
    pub(crate) fn read(&mut self, at: u64, len: u32) -> Result<std::result::Result<Vec<u8>, u32>> {
        let cookie = self.send(READ, 0, at, len, &[])?;
        match self.answer_to(cookie)? {
            0 => {
                let mut data = vec![0; usize::try_from(len)?];
                self.stream.read_exact(&mut data)?;
                Ok(Ok(data))
            }
            error => Ok(Err(error)),
        }
    }

    /// Writes; the error that it was answered with.
    pub(crate) fn write(&mut self, at: u64, data: &[u8], flags: u16) -> Result<u32> {
        let cookie = self.send(WRITE, flags, at, u32::try_from(data.len())?, data)?;
        self.answer_to(cookie)
    }

    /// Says that no more requests will come, and waits until the server has closed the connection.
    pub(crate) fn disconnect(mut self) -> Result<()> {
        self.send(DISC, 0, 0, 0, &[])?;
        ensure!(self.stream.read(&mut [0; 1])? == 0, "bytes after the end");
        Ok(())
    }

    /// The bare connection, to send what no client would.
    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    fn answer_to(&mut self, cookie: u64) -> Result<u32> {
        let reply = self.receive()?;
        ensure!(reply.cookie == cookie, "the answer to {} where {cookie} was asked", reply.cookie);
        Ok(reply.error)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
