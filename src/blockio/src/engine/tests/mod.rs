//! Both engines on the same table: against a vector of bytes, with errors, with thousands under way, and dropped early.

mod errors;
mod model;
mod plenty;

use super::uring::{Answers, UringEngine};
use super::{Completion, Engine, Kind, Op, open};
use crate::{AlignedBuf, Container, FileContainer};
use catena_types::FileOffset;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::path::Path;
use std::sync::Arc;

/// Each engine, and both ways of the ring. A kernel without io_uring fails these tests rather than to leave them out.
const ENGINES: [fn() -> Box<dyn Engine>; 3] = [
    || open(Kind::Threads).unwrap(),
    || Box::new(UringEngine::answering(Answers::WhenAsked).unwrap()),
    || Box::new(UringEngine::answering(Answers::AsTheyCome).unwrap()),
];

fn is_ready(engine: &dyn Engine, timeout: PollTimeout) -> bool {
    poll(&mut [PollFd::new(engine.ready(), PollFlags::POLLIN)], timeout).unwrap() > 0
}

/// Submits all as one batch under the numbers 0, 1, ... and waits for all; in order of these numbers.
fn run(engine: &mut dyn Engine, ops: Vec<Op>) -> Vec<Completion> {
    let expected = ops.len();
    for (token, op) in ops.into_iter().enumerate() {
        engine.submit(token as u64, op);
    }
    engine.kick().unwrap();
    let mut done = Vec::new();
    engine.completed(&mut done);
    while done.len() < expected {
        assert!(is_ready(engine, PollTimeout::try_from(60_000).unwrap()), "{} hangs", engine.name());
        engine.completed(&mut done);
    }
    done.sort_by_key(|completion| completion.token);
    assert!(done.iter().map(|completion| completion.token).eq(0..expected as u64));
    // What was collected may wake its owner some more times, not for ever.
    while is_ready(engine, PollTimeout::ZERO) {
        engine.completed(&mut done);
    }
    assert_eq!(done.len(), expected);
    done
}

fn read(container: &Arc<dyn Container>, at: u64, len: usize) -> Op {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(0xEE);
    Op::Read { container: Arc::clone(container), at: FileOffset(at), buf, range: 0..len }
}

fn write(container: &Arc<dyn Container>, at: u64, len: usize, fill: u8) -> Op {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(fill);
    Op::Write { container: Arc::clone(container), at: FileOffset(at), buf, range: 0..len }
}

fn file_in(directory: &Path, direct: bool) -> Arc<dyn Container> {
    Arc::new(FileContainer::new(tempfile::tempfile_in(directory).unwrap().into(), direct).unwrap())
}

fn memory() -> &'static Path {
    Path::new("/dev/shm")
}
