//! A virtual machine: Debian's cloud kernel, a root file system of a static busybox and one script, a console.
//!
//! The kernel is what `tests/setup` has unpacked; KVM is not needed.

use crate::harness::qmp::{Monitor, blockdevs};
use crate::harness::{PATIENCE, peer};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long the guest may take to its next word. An emulated processor beside other work is slow.
const SILENCE: Duration = Duration::from_secs(120);

/// QEMU's name of its connection to the disk.
const CONNECTION: &str = "disk";

/// What the guest needs to find its disk; a kernel has those that it lacks built in.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc16", "crc32c_generic", "ext4"];

/// A running guest.
pub(crate) struct Machine {
    qemu: Child,
    console: Receiver<String>,
    /// What the console has shown.
    shown: Vec<String>,
    /// QEMU's own socket.
    monitor: PathBuf,
}

/// Where `tests/setup` has put the kernel.
fn kernel() -> Result<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    ensure!(place.join("vmlinuz").exists(), "no kernel in {}: run tests/setup", place.display());
    Ok(place)
}

fn busybox() -> Result<PathBuf> {
    let path = PathBuf::from("/bin/busybox");
    ensure!(path.exists(), "no /bin/busybox: install the Debian package busybox-static");
    Ok(path)
}

/// Makes a raw image with the guest's root file system.
pub(crate) fn root_image(scratch: &Path, size: &str) -> Result<PathBuf> {
    let (tree, image) = (scratch.join("tree"), scratch.join("root.raw"));
    for name in ["bin", "dev", "proc", "run"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(busybox()?, tree.join("bin/busybox"))?;
    fs::write(tree.join("work.sh"), include_str!("work.sh"))?;
    let (tree, path) = (tree.to_string_lossy(), image.to_string_lossy());
    peer("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", "-d", &tree, &path, size])?;
    Ok(image)
}

/// Makes the first file system of the guest, which finds the other one.
fn first_image(scratch: &Path, kernel: &Path) -> Result<PathBuf> {
    let path = scratch.join("first.cpio");
    let mut archive = Archive { file: File::create(&path)?, inode: 0 };
    for directory in ["bin", "dev", "disk", "modules"] {
        archive.add(directory, 0o040_755, (0, 0), &[])?;
    }
    archive.add("dev/console", 0o020_600, (5, 1), &[])?;
    archive.add("bin/busybox", 0o100_755, (0, 0), &fs::read(busybox()?)?)?;
    archive.add("init", 0o100_755, (0, 0), include_bytes!("init.sh"))?;
    let mut order = Vec::new();
    for module in MODULES {
        in_order(&kernel.join("modules"), module, &mut order)?;
    }
    for name in &order {
        archive.add(
            &format!("modules/{name}"),
            0o100_644,
            (0, 0),
            &fs::read(kernel.join("modules").join(name))?,
        )?;
    }
    let order: String = order.iter().map(|name| name.clone() + "\n").collect();
    archive.add("modules/order", 0o100_644, (0, 0), order.as_bytes())?;
    archive.add("TRAILER!!!", 0, (0, 0), &[])?;
    Ok(path)
}

/// Adds the file of a module behind those of the modules that it depends on, which differs between kernels.
fn in_order(modules: &Path, module: &str, order: &mut Vec<String>) -> Result<()> {
    let (name, path) = (format!("{module}.ko"), modules.join(format!("{module}.ko")));
    if !path.exists() || order.contains(&name) {
        return Ok(());
    }
    let needed = peer("kmod", "modinfo", &["-F", "depends", &path.to_string_lossy()])?;
    for needed in needed.trim().split(',').filter(|needed| !needed.is_empty()) {
        in_order(modules, needed, order)?;
    }
    order.push(name);
    Ok(())
}

/// A cpio archive as the kernel takes it ("newc").
struct Archive {
    file: File,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let (length, name_length) = (u32::try_from(content.len())?, u32::try_from(name.len() + 1)?);
        let (major, minor) = device;
        let numbers = [self.inode, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        let mut head = b"070701".to_vec();
        numbers.iter().try_for_each(|number| write!(head, "{number:08x}"))?;
        head.extend(name.bytes());
        head.push(0);
        for part in [&head[..], content] {
            self.file.write_all(part)?;
            self.file.write_all(&[0; 3][..part.len().next_multiple_of(4) - part.len()])?;
        }
        Ok(())
    }
}

impl Machine {
    /// Starts a guest on the disk behind an NBD socket and waits until it works.
    pub(crate) fn boot(scratch: &Path, socket: &Path) -> Result<Self> {
        let kernel = kernel()?;
        let first = first_image(scratch, &kernel)?;
        let [connection, disk] = blockdevs(socket, CONNECTION);
        let monitor = scratch.join("qmp");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(first)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
            .args(["-blockdev", &connection, "-blockdev", &disk, "-device", "virtio-blk-pci,drive=web01"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("qemu-system-x86_64 cannot be run: install the Debian package qemu-system-x86")?;
        let stdout = qemu.stdout.take().context("a console")?;
        let (sender, console) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
            // The end of the test has ended the program, and with it this loop.
            lines.all(|line| sender.send(String::from_utf8_lossy(&line).trim().to_owned()).is_ok())
        });
        let mut machine = Self { qemu, console, shown: Vec::new(), monitor };
        machine.wait_for("GUEST READY")?;
        Ok(machine)
    }

    /// Waits until the guest says a line that begins so; fails at once where it finds something broken. Returns the rest of the line.
    pub(crate) fn wait_for(&mut self, beginning: &str) -> Result<String> {
        loop {
            let line = match self.console.recv_timeout(SILENCE) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("the guest is silent: {:#?}", self.shown),
                Err(RecvTimeoutError::Disconnected) => bail!("the guest has ended: {:#?}", self.shown),
            };
            ensure!(!line.contains("BROKEN"), "{line}: {:#?}", self.shown);
            let rest = line.split_once(beginning).map(|(_, rest)| rest.trim().to_owned());
            self.shown.push(line);
            if let Some(rest) = rest {
                return Ok(rest);
            }
        }
    }

    /// Waits until the guest has gone through so many rounds of work from now on.
    pub(crate) fn rounds(&mut self, count: usize) -> Result<()> {
        // What it said before now is old.
        while let Ok(line) = self.console.try_recv() {
            ensure!(!line.contains("BROKEN"), "{line}: {:#?}", self.shown);
            self.shown.push(line);
        }
        (0..count).try_for_each(|_| self.wait_for("GUEST ROUND").map(drop))
    }

    /// Tells QEMU that the disk behind the socket has this size now, in bytes, and waits until the guest has heard of it.
    pub(crate) fn sees_size(&mut self, socket: &Path, size: u64) -> Result<()> {
        Monitor::connect(&self.monitor)?.enlarge(socket, [CONNECTION, "larger"], size)?;
        self.rounds(1)?;
        let said = self.wait_for("GUEST ROUND")?;
        let kib = said.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        ensure!(kib == Some(size >> 10), "the guest sees {kib:?} KiB of {size} bytes");
        Ok(())
    }

    /// Tells the guest to stop, waits for its last verification and for its end. Returns how many rounds it has made.
    pub(crate) fn shut_down(mut self) -> Result<u64> {
        self.qemu.stdin.as_mut().context("a keyboard")?.write_all(b"\n")?;
        let rounds = self.wait_for("GUEST DONE")?.parse().context("rounds")?;
        let end = Instant::now() + PATIENCE;
        while self.qemu.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "the guest does not power off");
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.qemu.wait()?;
        ensure!(status.success(), "qemu ended with {status}");
        Ok(rounds)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.qemu.kill().and_then(|()| self.qemu.wait()) {
            eprintln!("a guest could not be ended: {error}");
        }
    }
}
