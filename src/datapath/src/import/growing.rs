//! A pipe into a device that is too small: it is made larger as often as that is asked for, and refused where there is no more.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use super::tests::disk_of;
use super::*;
use catena_control::{Channel, Packet, Reply, Request};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Command;
use tempfile::NamedTempFile;

/// A block device that can be made larger.
struct Device {
    backing: NamedTempFile,
    path: String,
}

impl Device {
    fn new(size: u64) -> Self {
        let backing = NamedTempFile::new().unwrap();
        backing.as_file().set_len(size).unwrap();
        let found = losetup(&["--find", "--show", backing.path().to_str().unwrap()]);
        Self { path: found.trim().to_owned(), backing }
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    fn enlarge(&self, size: u64) {
        self.backing.as_file().set_len(size).unwrap();
        losetup(&["--set-capacity", &self.path]);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        losetup(&["--detach", &self.path]);
    }
}

fn losetup(arguments: &[&str]) -> String {
    let output = Command::new("losetup").args(arguments).output().expect("losetup, of the package mount");
    assert!(output.status.success(), "losetup {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Imports a pipe of these bytes into the device, which may get as large as `most`. How often it was asked for more, and the outcome.
fn import_into(device: &Device, bytes: &[u8], most: u64) -> (usize, Answered) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // What is refused is not read to its end.
            let _ = File::from(writer).write_all(bytes);
        });
        let keeper = scope.spawn(move || {
            let mut asked = 0;
            while let Ok(Some(Packet { message, .. })) = theirs.receive::<Reply>() {
                let Reply::Wants { size } = message else { continue };
                asked += 1;
                let size = Bytes((size.0 + (1 << 20)).min(most));
                device.enlarge(size.0);
                theirs.send(&Request::Enlarged { size }, &[]).unwrap();
            }
            asked
        });
        let fds: Vec<OwnedFd> = vec![reader, device.open().into()];
        let mut supervisor = Supervisor::new(&ours);
        let answered =
            import(ImportFormat::Raw, ImageId::random(), 0, &mut Descriptors::new(fds), &mut supervisor);
        ours.shutdown();
        (keeper.join().unwrap(), answered)
    })
}

#[test]
fn a_device_is_made_larger_until_all_has_come() {
    let bytes: Vec<u8> = (0..13_u32 << 18).flat_map(|number| (number | 1).to_le_bytes()).collect();
    let device = Device::new(8 << 20);
    let (asked, answered) = import_into(&device, &bytes, u64::MAX);
    assert!(
        matches!(&answered, Ok(Answer::Imported { source }) if source.virtual_size.0 == 14 << 20),
        "{answered:?}"
    );
    assert_eq!(
        asked, 6,
        "8 MiB hold one block besides the tables, and each time there was room for one more"
    );
    let mut disk = bytes;
    disk.resize(14 << 20, 0);
    assert!(disk_of(&device.open()) == disk);
}

#[test]
fn a_device_that_cannot_grow_is_full() {
    let device = Device::new(8 << 20);
    let (asked, answered) = import_into(&device, &[1; 6 << 20], 8 << 20);
    assert_eq!(answered.unwrap_err().kind, TroubleKind::NoSpace);
    assert_eq!(asked, 1);
}
