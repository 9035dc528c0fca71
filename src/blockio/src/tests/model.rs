//! Every implementation against a vector of bytes: random unaligned reads, writes, punches and sizes.

use super::lab::{Ramfs, Xfs};
use crate::sim::{SimDisk, SimWorld};
use crate::{AlignedBuf, Container, FileContainer, Sizing};
use catena_types::{Bytes, FileOffset};
use nix::libc;
use proptest::prelude::*;
use std::io;
use std::path::Path;

/// No position of a test lies further out.
pub(super) const REACH: u64 = 48 << 10;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Write { at: u64, len: u64, fill: u8, aligned: bool },
    Read { at: u64, len: u64, aligned: bool },
    Punch { at: u64, len: u64 },
    SetSize(u64),
    Flush,
}

/// Bytes, sectors and pages: each is somebody's unit.
fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0..REACH, (0..REACH / 512).prop_map(|n| n * 512), (0..REACH / 4096).prop_map(|n| n * 4096)]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![0..9000u64, (0..24u64).prop_map(|n| n * 512), (0..4u64).prop_map(|n| n * 4096)]
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (position(), length(), 1u8.., any::<bool>())
            .prop_map(|(at, len, fill, aligned)| Op::Write { at, len, fill, aligned }),
        3 => (position(), length(), any::<bool>()).prop_map(|(at, len, aligned)| Op::Read { at, len, aligned }),
        2 => (position(), length()).prop_map(|(at, len)| Op::Punch { at, len }),
        2 => position().prop_map(Op::SetSize),
        1 => Just(Op::Flush),
    ];
    prop::collection::vec(op, 1..40)
}

pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Carries the operations out on both and compares what can be seen. The container is all zeros, `model` is its content.
pub(super) fn agrees(container: &dyn Container, mut model: Vec<u8>, ops: &[Op]) -> Result<(), TestCaseError> {
    for op in ops {
        step(container, &mut model, op).map_err(|error| TestCaseError::fail(format!("{op:?}: {error}")))?;
        prop_assert_eq!(
            container.size().map_err(|error| fail(&error))?,
            Bytes(model.len() as u64),
            "size after {:?}",
            op
        );
        let mut all = vec![0xEE; usize_of(REACH) + 10_000];
        container.read_at(&mut all, FileOffset(0)).map_err(|error| fail(&error))?;
        model.resize(model.len().max(all.len()), 0);
        let size = usize_of(container.size().map_err(|error| fail(&error))?.0);
        if all != model[..all.len()] {
            let first = (0..all.len()).find(|&i| all[i] != model[i]).unwrap_or(0);
            return Err(TestCaseError::fail(format!("byte {first} is {} after {op:?}", all[first])));
        }
        model.truncate(size);
    }
    Ok(())
}

fn fail(error: &io::Error) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn step(container: &dyn Container, model: &mut Vec<u8>, op: &Op) -> io::Result<()> {
    let fixed = container.sizing() == Sizing::Explicit;
    match *op {
        Op::Write { at, len, fill, aligned } => {
            let outcome = with_memory(usize_of(len), aligned, |buf| {
                buf.fill(fill);
                buf.iter_mut().zip(0u8..=250).for_each(|(byte, i)| *byte = fill.wrapping_add(i));
                container.write_at(buf, FileOffset(at)).map(|()| buf.to_vec())
            });
            let (start, end) = (usize_of(at), usize_of(at + len));
            if fixed && end > model.len() {
                return expect_errno(outcome.map(drop), libc::ENOSPC);
            }
            let data = outcome?;
            if len > 0 {
                model.resize(model.len().max(end), 0);
                model[start..end].copy_from_slice(&data);
            }
        }
        Op::Read { at, len, aligned } => with_memory(usize_of(len), aligned, |buf| {
            buf.fill(0xEE);
            container.read_at(buf, FileOffset(at))?;
            let held = usize_of(at).min(model.len())..usize_of(at + len).min(model.len());
            let (inside, past_end) = buf.split_at(held.len());
            if *inside == model[held] && past_end.iter().all(|&byte| byte == 0) {
                Ok(())
            } else {
                Err(io::Error::other("other bytes"))
            }
        })?,
        Op::Punch { at, len } => {
            container.punch(FileOffset(at), Bytes(len))?;
            let size = model.len();
            model[usize_of(at).min(size)..usize_of(at + len).min(size)].fill(0);
        }
        Op::SetSize(_) if fixed => {
            let refused = container.set_size(Bytes(0)).is_err_and(|e| e.kind() == io::ErrorKind::Unsupported);
            return if refused { Ok(()) } else { Err(io::Error::other("took a size")) };
        }
        Op::SetSize(size) => {
            container.set_size(Bytes(size))?;
            model.resize(usize_of(size), 0);
        }
        Op::Flush => container.flush()?,
    }
    Ok(())
}

fn expect_errno(outcome: io::Result<()>, errno: i32) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => Err(io::Error::other(format!("{other:?} instead of errno {errno}"))),
    }
}

/// Memory that begins at a page, or one byte after it.
fn with_memory<T>(len: usize, aligned: bool, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut memory = AlignedBuf::zeroed(len + 1);
    let start = usize::from(!aligned);
    work(&mut memory[start..start + len])
}

fn file_in(directory: &Path, direct: bool) -> FileContainer {
    FileContainer::new(tempfile::tempfile_in(directory).unwrap().into(), direct).unwrap()
}

#[test]
fn a_buffered_file_is_a_vector_of_bytes() {
    proptest!(cases(64), |(ops in ops())| {
        agrees(&file_in(&std::env::temp_dir(), false), Vec::new(), &ops)?;
    });
}

#[test]
fn a_direct_file_is_a_vector_of_bytes() {
    proptest!(cases(64), |(ops in ops())| {
        agrees(&file_in(&std::env::temp_dir(), true), Vec::new(), &ops)?;
    });
}

#[test]
fn a_file_in_memory_is_a_vector_of_bytes() {
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    proptest!(cases(64), |(ops in ops(), direct: bool)| {
        agrees(&file_in(&directory, direct), Vec::new(), &ops)?;
    });
}

#[test]
fn units_of_any_size_are_rewritten_without_loss() {
    proptest!(cases(64), |(ops in ops(), unit in prop_oneof![Just(1024usize), Just(4096)])| {
        agrees(&FileContainer::with_unit(tempfile::tempfile().unwrap(), unit).unwrap(), Vec::new(), &ops)?;
    });
}

#[test]
fn a_direct_file_on_a_device_with_large_sectors_is_a_vector_of_bytes() {
    let xfs = Xfs::new().unwrap();
    let probe = file_in(xfs.path(), true);
    assert!(probe.is_direct());
    assert_eq!(probe.alignment(), 4096);
    proptest!(cases(24), |(ops in ops())| {
        agrees(&file_in(xfs.path(), true), Vec::new(), &ops)?;
    });
    drop(probe);
}

#[test]
fn a_file_system_without_direct_io_and_holes_gets_buffered_writes_and_zeros() {
    let ramfs = Ramfs::new().unwrap();
    proptest!(cases(24), |(ops in ops())| {
        let file = file_in(ramfs.path(), true);
        prop_assert!(!file.is_direct() && file.alignment() == 1);
        agrees(&file, Vec::new(), &ops)?;
    });
}

#[test]
fn requests_longer_than_the_bounce_buffer_arrive_whole() {
    for direct in [false, true] {
        let file = file_in(&std::env::temp_dir(), direct);
        let data: Vec<u8> = (0..(3usize << 20) + 77).map(|i| (i % 251).to_le_bytes()[0]).collect();
        for at in [0, 512, 700, 4095] {
            file.write_at(&data, FileOffset(at)).unwrap();
            let mut back = vec![0; data.len()];
            file.read_at(&mut back, FileOffset(at)).unwrap();
            assert!(back == data, "at {at}, direct {direct}");
            assert_eq!(file.size().unwrap(), Bytes(at + data.len() as u64));
        }
    }
}

#[test]
fn a_punch_gives_space_back() {
    let file = file_in(&std::env::temp_dir(), false);
    file.write_at(&[7; 1 << 20], FileOffset(0)).unwrap();
    file.flush().unwrap();
    let before = file.allocated().unwrap();
    assert!(before >= Bytes(1 << 20));
    file.punch(FileOffset(0), Bytes(1 << 19)).unwrap();
    assert!(file.allocated().unwrap().0 <= before.0 - (1 << 19));
    assert_eq!(file.size().unwrap(), Bytes(1 << 20));
}

#[test]
fn simulated_disks_are_vectors_of_bytes() {
    proptest!(cases(128), |(ops in ops(), device: bool)| {
        let world = SimWorld::new();
        if device {
            agrees(&*SimDisk::explicit(&world, Bytes(40_000)), vec![0; 40_000], &ops)?;
        } else {
            agrees(&*SimDisk::automatic(&world), Vec::new(), &ops)?;
        }
    });
}
