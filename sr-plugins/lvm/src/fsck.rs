//! Puts the file system of a catalog in order, where it needs that, before its owner mounts it.
//!
//! Only what `e2fsck -p` mends is mended: what has one answer and loses nothing that is in use. A catalog can be made anew from the
//! images, and one whose blocks or names were guessed might look sound and be old, so nothing else is tried.
//!
//! ```text
//!  marked with errors, or not mountable ─▶ our mark ─▶ e2fsck -p ─▶ mounted ─▶ the files are found to be whole ─▶ mark taken off
//! ```
//!
//! Invariant: the mark is durable before the first change and goes when the keeper has looked at the files: a crash in between leaves a
//! file system that the next owner treats as mended, too. It stands in the first sector, which ext4 leaves to others. Used by `home`.

use crate::command;
use crate::node::Node;
use catena_sr_api::{Access, Error};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the superblock is, in bytes, and in it the file system's magic number and its state.
const SUPERBLOCK: usize = 1024;
const MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
const STATE: usize = 0x3a;
/// The kernel, or a check, has met what must not be.
const HAS_ERRORS: u8 = 2;
/// What the first sector has while nobody knows whether a mended file system has all its files.
const MARK: &[u8] = b"catena: mended, not looked at yet";
const SECTOR: usize = 512;
/// How much is read at a time to see whether a device works.
const PIECE: usize = 1 << 20;

/// What a check came to.
#[derive(Debug)]
pub(crate) enum Checked {
    /// It is in order now; what was done.
    Mended(String),
    /// It is damaged beyond what is mended without a question.
    Beyond(String),
    /// It could not be checked, though its device works.
    Unchecked(String),
}

/// Whether the file system says that something is wrong with it, or was mended and not looked at since.
pub(crate) fn is_doubtful(node: &Node) -> Result<bool, Error> {
    let mut head = [0; SUPERBLOCK + 64];
    open(node, Access::ReadOnly)?.read_exact_at(&mut head, 0).map_err(failed("reading", node))?;
    let superblock = &head[SUPERBLOCK..];
    let is_one = superblock[MAGIC.0..][..2] == MAGIC.1;
    Ok(head.starts_with(MARK) || (is_one && superblock[STATE] & HAS_ERRORS != 0))
}

/// Checks it, and mends what is mended without a question. Nobody has it mounted.
pub(crate) fn check(node: &Node) -> Result<Checked, Error> {
    set_mark(node, true)?;
    let arguments = ["-f", "-p", &node.path().display().to_string()].map(str::to_owned);
    let ran = command::run("e2fsck", "e2fsprogs", &arguments, &[])?;
    let said = command::one_line(&[&ran.out[..], b"\n", ran.complaint.as_bytes()].concat());
    tracing::warn!(node = %node.path().display(), code = ran.code, said, "the file system of a catalog was checked");
    match ran.code {
        Some(0) => return Ok(Checked::Mended(format!("nothing had to be mended: {said}"))),
        Some(1..=3) => return Ok(Checked::Mended(said)),
        _ => {}
    }
    // A device that fails is no damage.
    works(node)?;
    Ok(if ran.code.is_some_and(|code| code & 4 != 0) {
        Checked::Beyond(said)
    } else {
        Checked::Unchecked(said)
    })
}

/// The files are as they should be.
pub(crate) fn believe(node: &Node) -> Result<(), Error> {
    set_mark(node, false)
}

fn set_mark(node: &Node, on: bool) -> Result<(), Error> {
    let mut sector = [0; SECTOR];
    if on {
        sector[..MARK.len()].copy_from_slice(MARK);
    }
    let device = open(node, Access::ReadWrite)?;
    device.write_all_at(&sector, 0).and_then(|()| device.sync_all()).map_err(failed("writing", node))
}

/// Reads all of a device, and writes a sector of it as it is.
fn works(node: &Node) -> Result<(), Error> {
    let device = open(node, Access::ReadWrite)?;
    // Without what the system has in memory of it.
    posix_fadvise(&device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .map_err(|errno| failed("reading", node)(errno.into()))?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        match device.read_at(&mut piece, at).map_err(failed("reading", node))? {
            0 => break,
            read => at += read as u64,
        }
    }
    set_mark(node, true)
}

fn open(node: &Node, access: Access) -> Result<File, Error> {
    let device = node.open(access)?;
    device
        .map(File::from)
        .ok_or_else(|| Error::Unavailable(format!("the volume {} is not active", node.path().display())))
}

fn failed(doing: &str, node: &Node) -> impl FnOnce(io::Error) -> Error {
    Error::io(format!("{doing} {}", node.path().display()))
}
