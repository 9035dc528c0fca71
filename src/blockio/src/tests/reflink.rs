//! Sharing blocks between files, where the file system can and where it cannot.

use super::lab::Xfs;
use crate::sim::{Errno, Fault, SimDisk, SimWorld};
use crate::{Container, FileContainer};
use catena_types::{Bytes, FileOffset};

const LEN: usize = 64 << 10;

fn content(container: &dyn Container) -> Vec<u8> {
    let mut all = vec![0xEE; LEN];
    container.read_at(&mut all, FileOffset(0)).unwrap();
    all
}

/// Shares the first half of a file of sevens with a file of ones, then changes both.
fn shares_and_stays_independent(source: &dyn Container, target: &dyn Container) {
    let half = LEN / 2;
    source.write_at(&[7; LEN], FileOffset(0)).unwrap();
    target.write_at(&[1; LEN], FileOffset(0)).unwrap();
    assert!(target.clone_range(FileOffset(0), source, FileOffset(4096), Bytes(half as u64)).unwrap());
    let expected = [vec![7; half], vec![1; half]].concat();
    assert_eq!(content(target), expected);
    source.write_at(&[9; LEN], FileOffset(0)).unwrap();
    assert_eq!(content(target), expected);
    target.write_at(&[3; 512], FileOffset(512)).unwrap();
    assert_eq!(content(source), [9; LEN]);
    assert_eq!(&content(target)[..1024], [[7; 512], [3; 512]].concat());
}

#[test]
fn files_share_blocks_and_stay_independent() {
    let xfs = Xfs::new().unwrap();
    for direct in [false, true] {
        let open =
            |name: &str| FileContainer::new(xfs.file(&format!("{name}-{direct}")).unwrap(), direct).unwrap();
        let (source, target) = (open("source"), open("target"));
        shares_and_stays_independent(&source, &target);
        let before = content(&target);
        // Misaligned; past the end of the source; nothing.
        assert!(!target.clone_range(FileOffset(512), &source, FileOffset(0), Bytes(4096)).unwrap());
        assert!(!target.clone_range(FileOffset(0), &source, FileOffset(LEN as u64), Bytes(4096)).unwrap());
        assert!(target.clone_range(FileOffset(0), &source, FileOffset(0), Bytes(0)).unwrap());
        // Another file system, and no file at all.
        let elsewhere = FileContainer::new(tempfile::tempfile().unwrap().into(), direct).unwrap();
        elsewhere.write_at(&[5; LEN], FileOffset(0)).unwrap();
        assert!(!target.clone_range(FileOffset(0), &elsewhere, FileOffset(0), Bytes(4096)).unwrap());
        let simulated = SimDisk::automatic(&SimWorld::new());
        assert!(!target.clone_range(FileOffset(0), &*simulated, FileOffset(0), Bytes(4096)).unwrap());
        assert_eq!(content(&target), before);
    }
}

#[test]
fn a_target_that_cannot_be_written_is_an_error() {
    let xfs = Xfs::new().unwrap();
    let source = FileContainer::new(xfs.file("source").unwrap(), false).unwrap();
    source.write_at(&[7; LEN], FileOffset(0)).unwrap();
    let read_only = std::fs::File::open(xfs.path().join("source")).unwrap();
    let target = FileContainer::new(read_only.into(), false).unwrap();
    assert!(target.clone_range(FileOffset(0), &source, FileOffset(4096), Bytes(4096)).is_err());
}

#[test]
fn simulated_disks_share_where_they_are_told_to() {
    let world = SimWorld::new();
    let (source, target) = (SimDisk::automatic(&world), SimDisk::automatic(&world));
    source.write_at(&[7; LEN], FileOffset(0)).unwrap();
    let clone =
        |from: &dyn Container| target.clone_range(FileOffset(0), from, FileOffset(0), Bytes(LEN as u64));
    assert!(!clone(&*source).unwrap());
    assert_eq!(target.size().unwrap(), Bytes(0));
    world.set_sharing(true);
    shares_and_stays_independent(&*source, &*target);
    let other_world = SimWorld::new();
    other_world.set_sharing(true);
    let stranger = SimDisk::automatic(&other_world);
    stranger.write_at(&[5; LEN], FileOffset(0)).unwrap();
    assert!(!clone(&*stranger).unwrap());
    world.fail(Fault::nth(world.calls(), Errno::ENOSPC));
    assert_eq!(clone(&*source).unwrap_err().raw_os_error(), Some(nix::libc::ENOSPC));
}
