//! Merges, attached disks and the processes that serve them, on logical volumes in the lab, each of their crash points once
//! (`crash::there`). See `crash::worn` for how one SR does for many deaths.

mod crash;
mod harness;

use anyhow::{Context, Result, ensure};
use crash::serving::{self, Serving};
use crash::stage::{PATIENCE, Stage};
use crash::table::SERVE;
use crash::there;
use harness::nbd::{Client, FLUSH};
use harness::{lab, socket_of, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn merges_are_interrupted() -> Result<()> {
    lab::test(|| {
        let mut stage = Stage::worn()?;
        let old = stage.snapshot(&stage.a.clone())?;
        stage.destroy(&old)?;
        merge(&mut stage, &there::merges("garbage."))?;
        stage.add_inner_merge()?;
        merge(&mut stage, &there::merges("merge."))?;
        stage.add_leaf_merge()?;
        merge(&mut stage, &there::merges("leaf_merge."))?;
        // A worker that dies makes its merge fail, which is begun anew. Headers are written when the copying is over.
        stage.add_inner_merge()?;
        let mut workers = there::merges("worker.");
        workers.sort_by_key(|at| *at == "worker.patch_half");
        merge(&mut stage, &workers)?;
        stage.end()
    })
}

#[test]
fn disks_are_attached_meanwhile() -> Result<()> {
    lab::test(|| {
        let mut stage = Stage::worn()?;
        for (at, what) in there::attached() {
            stage.round += 1;
            if matches!(what, Serving::Leaf | Serving::Between) {
                stage.add_leaf_merge()?;
            }
            serving::play(&mut stage, at, what).with_context(|| format!("{what:?} at {at}"))?;
            stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
        }
        stage.end()
    })
}

/// Its keeper lives, and starts another one on the same sockets: every write that was answered is there (D7, D8).
#[test]
fn whoever_serves_a_disk_dies() -> Result<()> {
    lab::test(|| {
        let mut stage = Stage::worn()?;
        let disk = stage.b.clone();
        let socket = socket_of(&stage.agent.ok(&["vdi", "attach", &disk])?)?;
        for (round, at) in (1..).zip(SERVE) {
            let mut client = Client::connect(&socket)?;
            let served = stage.agent.served();
            // Some of it where a block is, some where none was.
            let place = (6 << 20) - (1 << 16) + (usize::from(round) << 14);
            ensure!(client.write(place as u64, &[round; 1 << 16], 0)? == 0, "a write before {at}");
            stage.content.get_mut(&disk).context("the disk")?[place..place + (1 << 16)].fill(round);
            stage.agent.arm(at)?;
            let unanswered = dies(&mut stage, &mut client, at, place + (1 << 16))?;
            stage.agent.await_death(at)?;
            wait_until("another one serves", || {
                let now = stage.agent.served();
                Ok(now.len() == 1 && now != served && Client::connect(&socket).is_ok())
            })
            .with_context(|| stage.agent.log())?;
            agree(&mut stage, &socket, unanswered).with_context(|| at.to_string())?;
        }
        stage.agent.ok(&["vdi", "detach", &disk])?;
        stage.end()
    })
}

/// Lets who serves the disk come to the point; where a write went that was not answered, if one did.
fn dies(stage: &mut Stage, client: &mut Client, at: &str, place: usize) -> Result<Option<usize>> {
    match at {
        // Of who comes next.
        "serve.opened" => {
            stage.agent.served().into_iter().try_for_each(|pid| kill(pid, Signal::SIGKILL))?;
            Ok(None)
        }
        "serve.stored" => {
            // Whatever ends the conversation is the death.
            drop(client.ask(FLUSH, 0, 0, 0));
            Ok(None)
        }
        "serve.answer" => {
            // It may be told that it failed, and the keeper may ask the next one.
            let disk = stage.b.clone();
            let snapshot = stage.agent.call("VDI.snapshot", &json!({"vdi": disk, "name_label": "new"}))?;
            ensure!(
                snapshot.as_ref().is_ok() || stage.listed()?.len() == stage.content.len(),
                "a snapshot that was refused: {snapshot:?}"
            );
            let content = stage.content.get(&disk).context("the disk")?.clone();
            for vdi in stage.listed()? {
                stage.content.entry(vdi).or_insert_with(|| content.clone());
            }
            Ok(None)
        }
        _ => {
            ensure!(client.write(place as u64, &[0xEE; 4096], 0).is_err(), "it lives");
            Ok(Some(place))
        }
    }
}

/// The successor has all that was answered, and of what was not, all or nothing of a page.
fn agree(stage: &mut Stage, socket: &Path, unanswered: Option<usize>) -> Result<()> {
    let mut client = Client::connect(socket)?;
    let content = stage.content.get_mut(&stage.b).context("the disk")?;
    let read = client.read(0, u32::try_from(content.len())?)?.ok().context("a read")?;
    if let Some(place) = unanswered.filter(|place| read[*place..*place + 4096] == [0xEE; 4096]) {
        content[place..place + 4096].fill(0xEE);
    }
    ensure!(read == *content, "the successor has something else");
    client.disconnect()
}

/// The coalesce worker dies at one point after the other of what there is to do.
fn merge(stage: &mut Stage, points: &[&str]) -> Result<()> {
    stage.agent.ok(&["coalesce", "pause", &stage.sr])?;
    let mut last = None;
    for at in points {
        // Before the one that has died is there again: it goes on by itself.
        stage.arm(at)?;
        if let Some(last) = last.replace(*at) {
            stage.revive(last)?;
        }
        let sr = json!({"sr": stage.sr});
        let end = Instant::now() + PATIENCE;
        while stage.agent.is_armed() {
            ensure!(Instant::now() < end, "{at} of {points:?} was not reached: {}", stage.agent.log());
            for method in ["Coalesce.resume", "Coalesce.run"] {
                // Who dies of it does not answer; what has failed rests until it is asked for.
                drop(stage.agent.call(method, &sr));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    stage.revive(last.unwrap_or_default())?;
    stage.verify().with_context(|| format!("after {points:?}"))?;
    stage.coalesce()?;
    stage.verify().with_context(|| format!("after {points:?} and all merges"))?;
    stage.agent.ok(&["coalesce", "pause", &stage.sr]).map(drop)
}
