//! A disk as a guest sees it: the smallest NBD client that can write, read and flush. One request at a time, no options but the
//! one that begins.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a request may take before the demonstration gives up.
const PATIENCE: Duration = Duration::from_secs(60);

const HAVE_OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const GO: u32 = 7;
const ACK: u32 = 1;
const ERROR_BIT: u32 = 1 << 31;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Commands of the transmission phase.
#[derive(Debug, Clone, Copy)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A connection to a served disk.
#[derive(Debug)]
pub(super) struct Remote {
    socket: UnixStream,
    cookie: u64,
}

impl Remote {
    /// Connects to what `vdi attach` has printed: `nbd+unix:///?socket=<path>`.
    pub(super) fn connect(uri: &str) -> Result<Self> {
        let path = uri.strip_prefix("nbd+unix:///?socket=").with_context(|| format!("what is {uri}?"))?;
        let socket = UnixStream::connect(path).with_context(|| format!("cannot connect to {path}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut remote = Self { socket, cookie: 0 };
        remote.shake_hands().context("the NBD handshake")?;
        Ok(remote)
    }

    /// Asks for the default export.
    fn shake_hands(&mut self) -> Result<()> {
        let greeting: [u8; 18] = self.take()?;
        ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "the server does not speak NBD");
        let mut hello = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        hello.extend(HAVE_OPTION.to_be_bytes());
        hello.extend(GO.to_be_bytes());
        // An empty name, and no wish to be told more.
        hello.extend(6_u32.to_be_bytes());
        hello.extend([0; 6]);
        self.socket.write_all(&hello)?;
        loop {
            let [magic, option, kind, length] = self.option_reply()?;
            ensure!(magic == OPTION_REPLY && option == u64::from(GO), "an answer to another option");
            let mut told = vec![0; usize::try_from(length)?];
            self.socket.read_exact(&mut told)?;
            match u32::try_from(kind)? {
                ACK => return Ok(()),
                kind if kind & ERROR_BIT != 0 => bail!("refused with {kind:#x}"),
                _ => {}
            }
        }
    }

    /// Magic, option, kind and length of an answer to an option.
    fn option_reply(&mut self) -> Result<[u64; 4]> {
        let magic = u64::from_be_bytes(self.take()?);
        let mut words = [magic, 0, 0, 0];
        for word in &mut words[1..] {
            *word = u64::from(u32::from_be_bytes(self.take()?));
        }
        Ok(words)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn ask(&mut self, command: Command, at: u64, length: usize, data: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut header = REQUEST.to_be_bytes().to_vec();
        header.extend(u32::from(command as u16).to_be_bytes());
        header.extend(self.cookie.to_be_bytes());
        header.extend(at.to_be_bytes());
        header.extend(u32::try_from(length)?.to_be_bytes());
        self.socket.write_all(&header)?;
        Ok(self.socket.write_all(data)?)
    }

    fn answered(&mut self) -> Result<()> {
        let (magic, error) = (u32::from_be_bytes(self.take()?), u32::from_be_bytes(self.take()?));
        let cookie = u64::from_be_bytes(self.take()?);
        ensure!(magic == REPLY && cookie == self.cookie, "an answer to another request");
        ensure!(error == 0, "the disk answers with error {error}");
        Ok(())
    }

    /// Writes bytes of the disk.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> Result<()> {
        self.ask(Command::Write, at, data.len(), data)?;
        self.answered().with_context(|| format!("writing {} bytes at {at}", data.len()))
    }

    /// Reads bytes of the disk.
    pub(super) fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>> {
        self.ask(Command::Read, at, length, &[])?;
        self.answered().with_context(|| format!("reading {length} bytes at {at}"))?;
        let mut data = vec![0; length];
        self.socket.read_exact(&mut data)?;
        Ok(data)
    }

    /// Makes what was written durable.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.ask(Command::Flush, 0, 0, &[])?;
        self.answered().context("flushing")
    }

    /// Says goodbye.
    pub(super) fn close(mut self) -> Result<()> {
        self.ask(Command::Disconnect, 0, 0, &[])
    }
}
