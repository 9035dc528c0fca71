//! Keeper and worker die at each step of an inflate and a deflate: afterwards every image reads as before, volumes have the sizes that
//! they are to have, and what nobody uses is not active.

use crate::harness::lab;
use crate::harness::nbd::Client;
use crate::harness::wait_until;
use crate::points::{Sizing, VOLUMES};
use crate::sized::{EMPTY, FULL_1, Sized, holding};
use anyhow::{Context, Result, bail, ensure};

#[test]
fn an_attach_can_be_cut_short() -> Result<()> {
    lab::test(|| all(Sizing::Attach))
}

#[test]
fn a_detach_can_be_cut_short() -> Result<()> {
    lab::test(|| all(Sizing::Detach))
}

#[test]
fn a_snapshot_in_use_can_be_cut_short() -> Result<()> {
    lab::test(|| all(Sizing::Snapshot))
}

#[test]
fn a_growth_can_be_cut_short() -> Result<()> {
    lab::test(|| all(Sizing::Resize))
}

/// Nobody asks the SR for anything after that: what is left to do is done unasked, and the volume is let go after it.
#[test]
fn a_write_can_be_cut_short() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(1 << 10, "thin")?;
        let disk = sized.disk("disk", "1GiB")?;
        let image = sized.image(&disk)?;
        sized.agent.arm("inflate.grown")?;
        ensure!(sized.agent.write(&disk, 0, &[7; 4096]).is_err(), "its keeper dies");
        sized.agent.await_death("inflate.grown")?;
        let end = || {
            let (mib, attributes) = sized.volumes()?.remove(&image).context("a volume")?;
            Ok(mib == EMPTY && attributes.as_bytes().get(4) != Some(&b'a'))
        };
        wait_until("the volume to be cut and let go", end).with_context(|| sized.agent.log())
    })
}

/// Plays all points of one operation, one after another on one SR.
fn all(what: Sizing) -> Result<()> {
    let mut sized = Sized::new(8 << 10, if what == Sizing::Resize { "thick" } else { "thin" })?;
    let points: Vec<&str> = VOLUMES.iter().filter(|(_, one)| *one == what).map(|(at, _)| *at).collect();
    for (number, at) in points.into_iter().enumerate() {
        let name = format!("disk-{number}");
        play(&mut sized, what, at, &name)
            .with_context(|| format!("{what:?} at {at}: {}", sized.agent.log()))?;
    }
    Ok(())
}

fn play(sized: &mut Sized, what: Sizing, at: &str, name: &str) -> Result<()> {
    let disk = sized.disk(name, "1GiB")?;
    let mut client = sized.attach(&disk)?;
    Sized::fill(&mut client, 0, 3)?;
    let is_used = matches!(what, Sizing::Detach | Sizing::Snapshot);
    let mut client = Some(client).filter(|_| what == Sizing::Snapshot);
    if !is_used {
        sized.agent.ok(&["vdi", "detach", &disk])?;
    }
    sized.agent.arm(at)?;
    let said = match what {
        Sizing::Attach => sized.agent.catena(&["vdi", "attach", &disk])?,
        Sizing::Detach => sized.agent.catena(&["vdi", "detach", &disk])?,
        Sizing::Snapshot => sized.agent.catena(&["vdi", "snapshot", &disk])?,
        Sizing::Resize => sized.agent.catena(&["vdi", "resize", &disk, "2GiB"])?,
    };
    // A worker that dies costs its request, and a keeper that has told its client nothing its answer.
    sized.agent.await_death(at)?;
    sized.agent.wait_attached(&sized.sr)?;
    match what {
        Sizing::Attach | Sizing::Detach => {
            let _ = sized.agent.catena(&["vdi", "detach", &disk])?;
            wait_until("the volume to be cut", || Ok(sized.mib(&sized.image(&disk)?)? == holding(3)))?;
        }
        Sizing::Snapshot => {
            let client: &mut Client = client.as_mut().context("a client")?;
            Sized::fill(client, 3, 1)?;
            sized.has(&disk, FULL_1, "the leaf of a guest")?;
            sized.agent.ok(&["vdi", "detach", &disk])?;
            let depth = sized.agent.depth(&disk)?;
            let wanted = if depth == 1 { holding(4) } else { holding(1) };
            wait_until("the volume to be cut", || Ok(sized.mib(&sized.image(&disk)?)? == wanted))?;
            sized.is_filled(&disk, 3, 1)?;
        }
        Sizing::Resize => {
            let size = sized.agent.json(&["vdi", "show", &disk])?["virtual_size"].as_u64();
            ensure!(size.is_some_and(|size| size == 1 << 30 || size == 2 << 30), "{size:?}");
            ensure!(sized.mib(&sized.image(&disk)?)? >= FULL_1);
            sized.agent.ok(&["vdi", "resize", &disk, "2GiB"])?;
            sized.has(&disk, 2060, "grown in the end")?;
        }
    }
    sized.is_filled(&disk, 0, 3)?;
    sized.agent.is_clean(&sized.sr)?;
    sized.is_active(&[], &[])?;
    let volumes = sized.volumes()?;
    let strange = volumes.values().find(|(mib, _)| what != Sizing::Resize && *mib > holding(4));
    if let Some((mib, _)) = strange {
        bail!("a volume of {mib} MiB is left, {EMPTY} would do: {volumes:?}; {said:?}");
    }
    Ok(())
}
