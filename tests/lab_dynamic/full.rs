//! A volume group that guests have filled: writes wait, whoever dies meanwhile, and go on when there is space.

use crate::flows::dynamic;
use crate::guest::{Guest, attach};
use crate::harness::lab::Fault;
use crate::harness::{lab, wait_until};
use crate::sized::{Sized, holding};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// How often it was said that writes wait.
fn said(sized: &Sized, kind: &str) -> Result<usize> {
    let events = sized.agent.json(&["event", "list"])?;
    let events = events["events"].as_array().context("events")?;
    Ok(events.iter().filter(|event| event["kind"] == kind).count())
}

fn waits(sized: &Sized, times: usize) -> Result<()> {
    wait_until("the writes to wait", || Ok(said(sized, "vdi.storage_full").is_ok_and(|count| count >= times)))
        .with_context(|| sized.agent.log())
}

#[test]
fn writes_wait_for_space_and_go_on() -> Result<()> {
    lab::test(|| {
        let mut sized = dynamic(1024)?;
        // What nothing needs is removed, and nothing is merged.
        sized.agent.ok(&["sr", "policy", &sized.sr, "coalesce.enabled=false"])?;
        sized.agent.ok(&["coalesce", "resume", &sized.sr])?;
        let filler = sized.disk("filler", "1GiB")?;
        Guest::fills(&attach(&sized, &filler)?, 0..150).ends()?;
        sized.agent.ok(&["vdi", "detach", &filler])?;
        let disk = sized.disk("disk", "1GiB")?;
        let socket = attach(&sized, &disk)?;
        let all = 330;
        let guest = Guest::fills(&socket, 0..all);
        waits(&sized, 1)?;
        let free = sized.agent.json(&["sr", "show", &sized.sr])?["free_space"].as_u64().context("free")?;
        ensure!(free >= 16 << 20, "guests leave something: {free}");

        // The process that serves it dies, and the next one waits too.
        let written = guest.written();
        let served = sized.agent.served();
        ensure!(served.len() == 1 && written < all, "{served:?}, {written} blocks");
        kill(served[0], Signal::SIGKILL)?;
        waits(&sized, 2)?;
        // The keeper and the front die.
        sized.agent.abandon()?;
        sized.agent.launch(None)?;
        wait_until("the SR to be attached", || {
            Ok(sized.agent.catena(&["sr", "show", &sized.sr, "--json"])?.out.contains("\"attached\""))
        })?;
        // Snapshots and merges work.
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        sized.agent.ok(&["vdi", "destroy", &snapshot, "--yes"])?;
        ensure!(guest.written() < all, "it still waits");

        sized.agent.ok(&["vdi", "destroy", &filler, "--yes"])?;
        guest.ends().with_context(|| sized.agent.log())?;
        sized.agent.ok(&["sr", "policy", &sized.sr, "coalesce.enabled=true"])?;
        sized.agent.ok(&["coalesce", "run", &sized.sr, "--wait"])?;
        ensure!(sized.agent.depth(&disk)? == 1, "the leaf is merged");
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.has(&disk, holding(all), "detached")?;
        for block in (0..all).step_by(17) {
            sized.is_filled(&disk, block, 1)?;
        }
        ensure!(said(&sized, "vdi.storage_free")? > 0, "and that they go on");
        sized.agent.is_clean(&sized.sr)
    })
}

/// There is space, but the group cannot be changed: that is said once, with the reason, and tried again until it can.
#[test]
fn a_volume_that_cannot_be_made_larger_is_said_and_tried_again() -> Result<()> {
    lab::test(|| {
        let sized = dynamic(1024)?;
        let disk = sized.disk("disk", "1GiB")?;
        let socket = attach(&sized, &disk)?;
        let lacks = || -> Result<Value> {
            Ok(sized.agent.json(&["vdi", "show", &disk])?["serving"]["lacks_room"].clone())
        };
        ensure!(lacks()? == Value::Null);
        // Where lvm2 keeps what it knows, behind the label of the device.
        sized.device.load(&[(8..2048, Fault::Error)])?;
        let all = 60;
        let guest = Guest::fills(&socket, 0..all);
        waits(&sized, 1)?;
        let why = lacks()?;
        ensure!(why.as_str().is_some_and(|why| why.contains("lvextend")), "{why}");
        ensure!(guest.written() < all && said(&sized, "vdi.growth_failed")? == 1, "{}", sized.agent.log());
        // The process dies, another one asks again: that is nothing new.
        let served = sized.agent.served();
        kill(*served.first().context("a process")?, Signal::SIGKILL)?;
        waits(&sized, 2)?;
        ensure!(said(&sized, "vdi.growth_failed")? == 1, "{}", sized.agent.log());
        sized.device.load(&[])?;
        guest.ends().with_context(|| sized.agent.log())?;
        ensure!(lacks()? == Value::Null && said(&sized, "vdi.storage_free")? > 0, "{}", sized.agent.log());
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.is_filled(&disk, all - 2, 2)?;
        sized.agent.is_clean(&sized.sr)
    })
}
