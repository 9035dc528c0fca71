//! The volumes follow what guests write, and what is at rest has what it holds.

use crate::guest::{Guest, attach};
use crate::harness::{lab, peer, wait_until};
use crate::sized::{EMPTY, FULL_1, MIB, Sized, holding};
use anyhow::{Context, Result, ensure};

/// What disks grow by here, in MiB.
pub(crate) const CHUNK: u64 = 64;

/// An SR whose disks grow by [`CHUNK`].
pub(crate) fn dynamic(mib: u64) -> Result<Sized> {
    let sized = Sized::new(mib, "dynamic")?;
    sized.agent.ok(&["sr", "policy", &sized.sr, &format!("allocation.chunk={CHUNK}MiB")])?;
    Ok(sized)
}

/// Waits until the volume of a disk has what so many blocks take, and not half a chunk less or more than a chunk and a half beyond.
pub(crate) fn follows(sized: &Sized, disk: &str, blocks: u64) -> Result<()> {
    let used = holding(blocks);
    let fits = |mib: u64| (used + CHUNK / 2 - 8..=used + CHUNK + CHUNK / 2 + 8).contains(&mib);
    let mib = || sized.mib(&sized.image(disk)?);
    wait_until("the volume to follow", || Ok(fits(mib()?)))
        .with_context(|| format!("{blocks} blocks take {used} MiB: {:?}; {}", mib(), sized.agent.log()))
}

#[test]
fn a_large_disk_takes_what_is_written() -> Result<()> {
    lab::test(|| {
        let sized = dynamic(60 << 10)?;
        let shown = sized.agent.json(&["sr", "show", &sized.sr])?;
        ensure!(shown["allocation"] == "dynamic", "{shown}");
        let disk = sized.disk("large", "1TiB")?;
        sized.has(&disk, EMPTY, "a new disk")?;
        let socket = attach(&sized, &disk)?;
        follows(&sized, &disk, 0)?;
        Guest::fills(&socket, 0..150).ends()?;
        follows(&sized, &disk, 150)?;

        let base = sized.image(&disk)?;
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        ensure!(sized.mib(&base)? == holding(150), "the old leaf is cut under the guest");
        sized.has(&disk, EMPTY + CHUNK, "the new leaf")?;
        Guest::fills(&socket, 100..200).ends()?;
        follows(&sized, &disk, 100)?;

        // What is merged while the guest goes on gets what comes into it.
        sized.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        sized.agent.ok(&["coalesce", "resume", &sized.sr])?;
        let guest = Guest::fills(&socket, 200..220);
        sized.agent.ok(&["coalesce", "run", &sized.sr, "--wait"])?;
        guest.ends()?;
        ensure!(sized.agent.depth(&disk)? == 1, "the leaf is merged");
        ensure!(sized.image(&disk)? == base, "into the base copy");
        follows(&sized, &disk, 220)?;

        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(220), "detached")?;
        sized.is_active(&[], &[])?;
        sized.is_filled(&disk, 95, 10)?;
        sized.is_filled(&disk, 215, 5)?;
        let shown = sized.agent.json(&["sr", "show", &sized.sr])?;
        ensure!(shown["virtual_allocation"] == 1_u64 << 40, "{shown}");
        ensure!(shown["physical_utilisation"].as_u64().is_some_and(|used| used < 2 << 30), "{shown}");
        sized.agent.write(&disk, 300 * 2 * MIB, &[7; 4096])?;
        sized.has(&disk, holding(221), "written without a guest")?;
        sized.agent.is_clean(&sized.sr)
    })
}

/// fio writes as fast as it can, far beyond what the volume has at first.
#[test]
fn a_fast_guest_is_followed() -> Result<()> {
    lab::test(|| {
        let sized = dynamic(4 << 10)?;
        let disk = sized.disk("fast", "1GiB")?;
        let uri = sized.agent.ok(&["vdi", "attach", &disk])?;
        let uri = format!("--uri={uri}");
        let job = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--iodepth=16", "--bs=64k"];
        let checks = ["--size=1G", "--io_size=320M", "--verify=crc32c", "--verify_fatal=1", "--minimal"];
        peer("fio", "fio", &[&job[..], &checks].concat()).with_context(|| sized.agent.log())?;
        // At random places of the disk, so nearly every block has a place: and the volume is as large as it gets.
        wait_until("the volume to be full", || Ok(sized.mib(&sized.image(&disk)?)? == FULL_1))?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.agent.is_clean(&sized.sr)
    })
}

#[test]
fn the_allocation_can_be_changed_at_any_time() -> Result<()> {
    lab::test(|| {
        let sized = dynamic(4 << 10)?;
        let disk = sized.disk("one", "1GiB")?;
        let socket = attach(&sized, &disk)?;
        follows(&sized, &disk, 0)?;
        sized.agent.ok(&["sr", "policy", &sized.sr, "allocation=thin"])?;
        wait_until("a disk in use to be full", || Ok(sized.mib(&sized.image(&disk)?)? == FULL_1))?;
        sized.agent.ok(&["sr", "policy", &sized.sr, "allocation=dynamic"])?;
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        sized.has(&disk, EMPTY + CHUNK, "the new leaf")?;
        sized.agent.ok(&["vdi", "resize", &disk, "2GiB"])?;
        sized.has(&disk, EMPTY + CHUNK, "a larger disk needs no more")?;
        Guest::fills(&socket, 1000..1010).ends()?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(10), "detached")?;
        sized.agent.ok(&["sr", "policy", &sized.sr, "allocation=thick"])?;
        attach(&sized, &disk)?;
        sized.has(&disk, 2060, "full again")?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, 2060, "and stays so")?;
        sized.has(&snapshot, EMPTY, "the snapshot")?;
        sized.is_filled(&disk, 1000, 10)?;
        sized.agent.is_clean(&sized.sr)
    })
}
