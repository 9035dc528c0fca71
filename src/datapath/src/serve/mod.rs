//! Serving one disk: connections on one side, the disk's images on the other, a keeper that may come and go.
//!
//! One event loop owns everything; see [`disk`] for the state and [`work`] for the seam between a connection and the disk.

mod arguments;
mod changes;
mod clients;
mod connection;
mod control;
mod core;
mod disk;
mod event_loop;
mod figures;
mod input;
mod limits;
mod opening;
mod output;
mod poller;
mod underway;
mod work;

pub(crate) use self::arguments::Arguments;
use self::arguments::{Inherited, OnFull};
use self::changes::Changes;
use self::clients::Clients;
use self::control::Keepers;
use self::core::Core;
use self::disk::Disk;
use self::event_loop::EventLoop;
use self::poller::Poller;
use crate::trouble::trouble;
use crate::{crash, privileges};
use anyhow::{Context, Result};
use catena_blockio::engine;
use catena_control::{Handed, TroubleKind};
use catena_types::ImageId;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{getuid, setsid};
use std::os::fd::OwnedFd;

/// Serves until the keeper, or a signal, ends it.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Before any thread is made: threads inherit what is blocked.
    let signals = take_signals().context("signals cannot be taken")?;
    let inherited = arguments.inherit()?;
    // Fails where the process leads a session already, which is what is wanted.
    let _ = setsid();
    let user = getuid().as_raw();
    let boot = boot_id().context("this boot has no name")?;
    privileges::drop_privileges().context("privileges cannot be dropped")?;

    let engine = engine::open(arguments.engine).context("the I/O engine cannot be started")?;
    let Inherited { nbd, control, pending, images, reader } = inherited;
    let disk = open_disk(arguments, boot, images, reader, pending)?;
    crash::SERVE_OPENED.pass();
    let poller = Poller::new()?;
    let clients = Clients::new(nbd, arguments.vdi, arguments.read_only, &poller)?;
    let keepers = Keepers::new(control, user, &poller)?;
    let changes = Changes::new(arguments.read_only);
    tracing::info!(vdi = %arguments.vdi, engine = engine.name(), "serving");
    EventLoop::new(poller, signals, Core::new(disk, engine), clients, keepers, changes)?.run()
}

/// The disk as it is to be served: with what a predecessor had acknowledged (D8). Waits for the storage. There is an image: the
/// command line asks for one at least.
fn open_disk(
    arguments: &Arguments,
    boot: [u8; 16],
    images: Vec<(Handed, OwnedFd)>,
    reader: Option<OwnedFd>,
    pending: OwnedFd,
) -> Result<Disk> {
    let mut below = images;
    let leaf = (!arguments.read_only).then(|| below.remove(0));
    // The image into which a merge is open is the second of the chain.
    let into = reader.filter(|_| !below.is_empty()).map(|reader| (below.remove(0), reader));
    // A chain is opened in the time that its longest block tables take: beside each other.
    let (leaf, into, below) = std::thread::scope(|scope| {
        let below = scope.spawn(|| opening::parts(below));
        let leaf = leaf.map(|(handed, fd)| opening::leaf(&handed, fd)).transpose();
        let into = into.map(|((handed, fd), reader)| {
            opening::leaf(&handed, fd).and_then(|into| Ok((into, opening::container(reader)?)))
        });
        let panicked = |_| Err(trouble(TroubleKind::Internal, "opening the images panicked"));
        (leaf, into.transpose(), below.join().unwrap_or_else(panicked))
    });
    let leaf = leaf?.map(|leaf| (leaf, pending));
    let waits_when_full = arguments.on_full == OnFull::Wait;
    let (into, below) = (into?, below?);
    Ok(Disk::open(disk::Opening { vdi: arguments.vdi, boot, leaf, into, below, waits_when_full })?)
}

/// What the kernel calls the time since the machine was started.
fn boot_id() -> Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().parse::<ImageId>()?.to_bytes())
}

/// The signals that end the process in order come through a descriptor; one that a vanishing terminal sends is ignored.
fn take_signals() -> nix::Result<SignalFd> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        wanted.add(signal);
    }
    wanted.thread_block()?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
