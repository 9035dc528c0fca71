//! Random batches of reads and writes against a vector of bytes, on everything that a container can be.

use super::{ENGINES, file_in, memory, run};
use crate::engine::{Engine, Op};
use crate::sim::{SimDisk, SimWorld};
use crate::tests::lab::LoopDevice;
use crate::tests::model::cases;
use crate::{AlignedBuf, Container, FileContainer, Sizing, open_container};
use catena_types::{Bytes, FileOffset};
use nix::libc;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// No request ends further out.
const REACH: usize = 64 << 10;

#[derive(Debug, Clone)]
struct Request {
    writes: bool,
    at: usize,
    len: usize,
    /// Where in its buffer the range begins.
    skip: usize,
    fill: u8,
}

impl Request {
    fn bytes(&self) -> Range<usize> {
        self.at..self.at + self.len
    }

    fn meets(&self, other: &Self) -> bool {
        (self.writes || other.writes) && self.at < other.at + other.len && other.at < self.at + self.len
    }
}

fn requests() -> impl Strategy<Value = Vec<Vec<Request>>> {
    let units = |count: usize, unit: usize| (0..count).prop_map(move |n| n * unit);
    let at = prop_oneof![0..REACH - 12_000, units(100, 512), units(13, 4096)];
    let len = prop_oneof![0..9000usize, units(20, 512), units(3, 4096)];
    let skip = prop_oneof![3 => Just(0usize), 1 => Just(512), 1 => 1..700usize];
    let request = (any::<bool>(), at, len, skip, any::<u8>())
        .prop_map(|(writes, at, len, skip, fill)| Request { writes, at, len, skip, fill });
    prop::collection::vec(prop::collection::vec(request, 1..24), 1..8)
}

/// Those of a batch whose outcome does not depend on their order.
fn independent(batch: &[Request]) -> Vec<Request> {
    let mut taken: Vec<Request> = Vec::new();
    for request in batch {
        if !taken.iter().any(|other| other.meets(request)) {
            taken.push(request.clone());
        }
    }
    taken
}

fn pattern(request: &Request, buf: &mut [u8]) {
    buf.iter_mut().zip(0u8..=250).for_each(|(byte, i)| *byte = request.fill.wrapping_add(i));
    buf.iter_mut().skip(251).for_each(|byte| *byte = request.fill);
}

fn op(request: &Request, container: &Arc<dyn Container>) -> Op {
    let mut buf = AlignedBuf::zeroed(request.skip + request.len + 5);
    buf.fill(0xEE);
    let (container, at) = (Arc::clone(container), FileOffset(request.at as u64));
    let range = request.skip..request.skip + request.len;
    if request.writes {
        pattern(request, &mut buf[range.clone()]);
        Op::Write { container, at, buf, range }
    } else {
        Op::Read { container, at, buf, range }
    }
}

/// Carries the batches out and compares each read, and all of the container after each batch.
fn agrees(
    engine: &mut dyn Engine,
    container: &Arc<dyn Container>,
    batches: &[Vec<Request>],
) -> Result<(), TestCaseError> {
    let fixed = container.sizing() == Sizing::Explicit;
    let size = usize::try_from(container.size().unwrap().0).unwrap();
    let mut model = vec![0; REACH];
    for batch in batches {
        let batch = independent(batch);
        let completions = run(engine, batch.iter().map(|request| op(request, container)).collect());
        for (request, completion) in batch.iter().zip(completions) {
            let buf = completion.buf.expect("the buffer");
            prop_assert!(buf[..request.skip].iter().all(|&byte| byte == 0xEE), "before {:?}", request);
            prop_assert_eq!(&buf[request.skip + request.len..], &[0xEE; 5], "after {:?}", request);
            if request.writes && fixed && request.bytes().end > size {
                prop_assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
                continue;
            }
            prop_assert!(completion.result.is_ok(), "{:?}: {:?}", request, completion.result);
            if request.writes {
                pattern(request, &mut model[request.bytes()]);
            }
            let seen = &buf[request.skip..request.skip + request.len];
            prop_assert!(seen == &model[request.bytes()], "{:?}", request);
        }
        let mut all = vec![0xEE; REACH];
        container.read_at(&mut all, FileOffset(0)).unwrap();
        prop_assert!(all == model, "after {:?}", batch);
    }
    Ok(())
}

/// With each engine.
fn all_engines_agree(count: u32, container: impl Fn() -> Arc<dyn Container>) {
    for open in ENGINES {
        let engine = std::cell::RefCell::new(open());
        proptest!(cases(count), |(batches in requests())| {
            agrees(&mut **engine.borrow_mut(), &container(), &batches)?;
        });
    }
}

#[test]
fn files_are_vectors_of_bytes() {
    for direct in [false, true] {
        all_engines_agree(24, || file_in(&std::env::temp_dir(), direct));
        all_engines_agree(24, || file_in(memory(), direct));
    }
}

#[test]
fn files_with_large_units_are_vectors_of_bytes() {
    all_engines_agree(24, || {
        Arc::new(FileContainer::with_unit(tempfile::tempfile().unwrap(), 4096).unwrap())
    });
}

#[test]
fn devices_are_vectors_of_bytes() {
    const SIZE: u64 = 40 << 10;
    for (sector, direct) in [(512, true), (4096, true), (512, false)] {
        let device = LoopDevice::new(SIZE, sector).unwrap();
        all_engines_agree(8, || {
            let container = open_container(device.open().unwrap(), direct).unwrap();
            container.punch(FileOffset(0), Bytes(SIZE)).unwrap();
            container
        });
    }
}

#[test]
fn simulated_disks_are_vectors_of_bytes() {
    all_engines_agree(16, || SimDisk::automatic(&SimWorld::new()));
    all_engines_agree(16, || SimDisk::explicit(&SimWorld::new(), Bytes(40_000)));
}
