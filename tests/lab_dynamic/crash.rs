//! The keeper dies at each step by which a volume grows under a guest, which only notices that a write takes a little longer.

use crate::flows::{CHUNK, dynamic, follows};
use crate::guest::{Guest, attach};
use crate::harness::{lab, wait_until};
use crate::points::EXTENSIONS;
use crate::sized::{Sized, holding};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use std::path::Path;

#[test]
fn a_keeper_that_dies_while_a_volume_grows() -> Result<()> {
    lab::test(|| {
        let mut sized = dynamic(8 << 10)?;
        let disk = sized.disk("disk", "2GiB")?;
        let socket = attach(&sized, &disk)?;
        follows(&sized, &disk, 0)?;
        let mut blocks = 0;
        // Alone, and with the process that serves the disk.
        let deaths = EXTENSIONS.iter().map(|at| (*at, false)).chain([("extend.grown", true)]);
        for (at, both) in deaths {
            blocks = play(&mut sized, &disk, &socket, (at, both), blocks)
                .with_context(|| format!("{at}: {}", sized.agent.log()))?;
        }
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(blocks), "detached")?;
        sized.is_active(&[], &[])?;
        for block in (0..blocks).step_by(11) {
            sized.is_filled(&disk, block, 1)?;
        }
        let jobs = sized.agent.json(&["job", "list"])?;
        let left = jobs["jobs"].as_array().context("jobs")?.iter().find(|job| job["kind"] == "extend");
        ensure!(left.is_none(), "{left:?}");
        sized.agent.is_clean(&sized.sr)
    })
}

/// Writes more than the volume has room for, with a keeper that dies; how many blocks are written then.
fn play(sized: &mut Sized, disk: &str, socket: &Path, (at, both): (&str, bool), blocks: u64) -> Result<u64> {
    sized.agent.stop()?;
    sized.agent.launch(Some(at))?;
    let end = blocks + CHUNK;
    let guest = Guest::fills(socket, blocks..end);
    let said = format!("crash point {at}\n");
    wait_until("the keeper to die", || Ok(sized.agent.log().contains(&said)))?;
    sized.agent.kill()?;
    for served in sized.agent.served().into_iter().filter(|_| both) {
        kill(served, Signal::SIGKILL)?;
    }
    sized.agent.launch(None)?;
    guest.ends()?;
    wait_until("the SR to be attached", || {
        Ok(sized.agent.catena(&["sr", "show", &sized.sr, "--json"])?.out.contains("\"attached\""))
    })?;
    follows(sized, disk, end)?;
    Ok(end)
}
