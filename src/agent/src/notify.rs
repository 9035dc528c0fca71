//! Tells the service manager how far the agent is: a datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! Called by `run`. Without a service manager it does nothing.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// The socket answers.
    Ready,
    /// The configuration is being read again; `Ready` follows.
    Reloading,
    /// The agent is about to end.
    Stopping,
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Self::Ready => "READY=1",
            Self::Reloading => "RELOADING=1",
            Self::Stopping => "STOPPING=1",
        }
    }
}

/// Says it to the service manager, if there is one. A failure is logged: nothing depends on it here.
pub(crate) fn tell(word: Word) {
    let socket: Option<OsString> = env::var_os("NOTIFY_SOCKET");
    if let Some(socket) = socket
        && let Err(error) = send(&socket, word)
    {
        tracing::warn!(%error, word = word.text(), "the service manager was not told");
    }
}

/// `socket` is a path, or `@` and an abstract name.
fn send(socket: &OsStr, word: Word) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(word.text().as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_arrives_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("catena-test-{}", std::process::id());
        let mut abstract_socket = OsString::from("@");
        abstract_socket.push(&name);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, socket, word) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string(), Word::Ready),
            (UnixDatagram::bind_addr(&address).unwrap(), abstract_socket, Word::Stopping),
        ] {
            send(&socket, word).unwrap();
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], word.text().as_bytes());
        }
    }
}
