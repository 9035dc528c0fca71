//! Block devices, on loop devices with small and with large sectors.

use super::lab::LoopDevice;
use super::model::{agrees, cases, ops};
use crate::{BlockContainer, Container, Sizing, open_container};
use catena_types::{Bytes, FileOffset};
use nix::libc;
use proptest::prelude::*;
use std::fs::File;
use std::io;

const SIZE: u64 = 40 << 10;

#[test]
fn a_device_is_a_vector_of_bytes_of_fixed_length() {
    for sector in [512, 4096] {
        let device = LoopDevice::new(SIZE, sector).unwrap();
        for direct in [false, true] {
            let container = BlockContainer::new(device.open().unwrap(), direct).unwrap();
            assert_eq!(container.is_direct(), direct);
            assert_eq!(container.alignment() == 1, !direct);
            proptest!(cases(16), |(ops in ops())| {
                container.punch(FileOffset(0), Bytes(SIZE)).unwrap();
                agrees(&container, vec![0; usize::try_from(SIZE).unwrap()], &ops)?;
            });
        }
    }
}

#[test]
fn a_device_is_recognised_and_keeps_its_size() {
    let device = LoopDevice::new(SIZE, 512).unwrap();
    let container = open_container(device.open().unwrap(), true).unwrap();
    assert_eq!(container.sizing(), Sizing::Explicit);
    assert_eq!(container.size().unwrap(), Bytes(SIZE));
    assert_eq!(container.allocated().unwrap(), Bytes(SIZE));
    container.write_at(&[1; 512], FileOffset(SIZE - 512)).unwrap();
    let refused = container.write_at(&[2; 1024], FileOffset(SIZE - 512)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(
        container.write_at(&[2; 2], FileOffset(u64::MAX)).unwrap_err().raw_os_error(),
        Some(libc::ENOSPC)
    );
    let mut last = [0; 600];
    container.read_at(&mut last, FileOffset(SIZE - 512)).unwrap();
    assert_eq!((&last[..512], &last[512..]), (&[1; 512][..], &[0; 88][..]));
    container.punch(FileOffset(SIZE + 4096), Bytes(512)).unwrap();
    assert!(!container.clone_range(FileOffset(0), &*container, FileOffset(4096), Bytes(4096)).unwrap());
    container.flush().unwrap();
}

#[test]
fn only_files_and_devices_are_containers() {
    let file = open_container(tempfile::tempfile().unwrap().into(), false).unwrap();
    assert_eq!((file.sizing(), file.alignment()), (Sizing::Automatic, 1));
    for path in ["/dev/null", "/"] {
        let other = open_container(File::open(path).unwrap().into(), false).map(drop).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::InvalidInput);
    }
    assert!(BlockContainer::new(tempfile::tempfile().unwrap().into(), false).is_err());
}
