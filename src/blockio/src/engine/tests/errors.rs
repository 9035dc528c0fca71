//! Every error comes back with its request's buffer, and the engine goes on.

use super::{ENGINES, file_in, memory, read, run, write};
use crate::engine::{Kind, Op, open};
use crate::sim::{Call, Errno, Fault, SimDisk, SimWorld};
use crate::tests::lab::Tmpfs;
use crate::{Container, FileContainer, open_container};
use nix::libc;
use std::fs::File;
use std::io;
use std::sync::Arc;

#[test]
fn a_refusal_of_the_storage_comes_back_with_the_buffer() {
    for open in ENGINES {
        let world = SimWorld::new();
        let disk: Arc<dyn Container> = SimDisk::automatic(&world);
        world.fail(Fault::nth(0, Errno::EIO).of(Call::Read));
        world.fail(Fault::nth(0, Errno::ENOSPC).of(Call::Write).partial());
        let mut engine = open();
        for expected in [Some((libc::EIO, libc::ENOSPC)), None] {
            let done = run(&mut *engine, vec![read(&disk, 0, 4096), write(&disk, 8192, 4096, 3)]);
            let errors = done.iter().map(|one| one.result.as_ref().err().and_then(io::Error::raw_os_error));
            assert!(errors.eq([expected.map(|pair| pair.0), expected.map(|pair| pair.1)]), "{done:?}");
            assert!(done.iter().all(|one| one.buf.as_ref().is_some_and(|buf| buf.len() == 4096)));
        }
    }
}

#[test]
fn a_descriptor_for_reading_refuses_writes() {
    for open in ENGINES {
        for directory in [std::env::temp_dir().as_path(), memory()] {
            let path = tempfile::NamedTempFile::new_in(directory).unwrap();
            for direct in [false, true] {
                let container = open_container(File::open(path.path()).unwrap().into(), direct).unwrap();
                let mut engine = open();
                let done = run(&mut *engine, vec![write(&container, 0, 4096, 1), read(&container, 0, 4096)]);
                assert_eq!(done[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
                assert!(done[0].buf.as_ref().unwrap().iter().all(|&byte| byte == 1));
                assert!(done[1].result.is_ok());
            }
        }
    }
}

#[test]
fn a_full_file_system_refuses_and_keeps_serving() {
    let tmpfs = Tmpfs::new(1 << 20).unwrap();
    for open in ENGINES {
        for direct in [false, true] {
            let container = file_in(tmpfs.path(), direct);
            let mut engine = open();
            let all = (0..64).map(|i| write(&container, i << 16, 1 << 16, 5)).collect();
            let done = run(&mut *engine, all);
            let full = done.iter().filter(|one| one.result.is_err()).count();
            assert!((1..64).contains(&full), "{full} were refused");
            for one in done {
                let errno = one.result.err().map(|error| error.raw_os_error());
                assert!(matches!(errno, None | Some(Some(libc::ENOSPC))), "{errno:?}");
                assert_eq!(one.buf.unwrap().len(), 1 << 16);
            }
            let back = run(&mut *engine, vec![read(&container, 0, 4096)]);
            assert!(back[0].buf.as_ref().unwrap().iter().all(|&byte| byte == 5));
        }
    }
}

#[test]
fn offsets_that_no_file_has_are_refused_or_past_the_end() {
    for open in ENGINES {
        for directory in [std::env::temp_dir().as_path(), memory()] {
            for direct in [false, true] {
                let container = file_in(directory, direct);
                let mut engine = open();
                for at in [u64::MAX, u64::MAX - 4095, 1 << 63, (1 << 63) - 4096] {
                    let done = run(&mut *engine, vec![write(&container, at, 4096, 1)]);
                    assert!(done[0].result.is_err(), "write at {at}");
                }
                assert_eq!(container.size().unwrap().0, 0);
            }
        }
    }
}

#[test]
fn a_call_that_fails_or_panics_is_answered() {
    for open in ENGINES {
        let mut engine = open();
        let calls = vec![
            Op::Call(Box::new(|| Ok(()))),
            Op::Call(Box::new(|| Err(Errno::EIO.into()))),
            Op::Call(Box::new(|| panic!("on purpose"))),
            Op::Call(Box::new(|| Ok(()))),
        ];
        let done = run(&mut *engine, calls);
        assert!(done.iter().map(|one| one.result.is_ok()).eq([true, false, false, true]));
        assert!(done.iter().all(|one| one.buf.is_none()));
    }
}

#[test]
fn engines_are_known_by_name() {
    for name in ["threads", "io_uring"] {
        assert_eq!(open(name.parse().unwrap()).unwrap().name(), name);
    }
    assert_eq!("auto".parse(), Ok(Kind::Auto));
    assert!("libaio".parse::<Kind>().is_err());
    assert!(open(Kind::Auto).is_ok());
}

#[test]
fn a_file_says_whether_it_is_in_memory() {
    let on = |directory| FileContainer::new(tempfile::tempfile_in(directory).unwrap().into(), true).unwrap();
    assert!(on(memory()).is_in_memory());
    assert!(!on(&std::env::temp_dir()).is_in_memory());
}
