//! Operations for which a volume group has too little.

use crate::harness::lab;
use crate::sized::{EMPTY, FULL_1, Sized, holding};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// What a method that is refused says.
fn refusal(sized: &Sized, method: &str, params: &Value) -> Result<Value> {
    let answer = sized.agent.call(method, params)?;
    Ok(answer.err().with_context(|| format!("{method} is refused"))?["data"].clone())
}

fn free_mib(sized: &Sized) -> Result<u64> {
    let record = sized.agent.json(&["sr", "show", &sized.sr])?;
    Ok(record["free_space"].as_u64().context("free space")? >> 20)
}

#[test]
fn an_attach_without_room_is_refused_with_what_is_missing() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(1536, "thin")?;
        let [one, two] = ["one", "two"].map(|name| sized.disk(name, "1GiB"));
        let (one, two) = (one?, two?);
        let client = sized.attach(&one)?;
        let before = (sized.volumes()?, free_mib(&sized)?);
        let missing = ((FULL_1 - EMPTY - before.1) << 20).to_string();
        let said = refusal(&sized, "VDI.attach", &json!({"vdi": two}))?;
        ensure!(
            said["name"] == "over_provisioned_attach" && said["objects"]["bytes_missing"] == missing,
            "{said}"
        );
        ensure!((sized.volumes()?, free_mib(&sized)?) == before, "nothing has changed");
        sized.agent.ok(&["vdi", "attach", &two, "--read-only"])?;
        sized.agent.ok(&["vdi", "detach", &two])?;
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &one])?;
        drop(sized.attach(&two)?);
        sized.agent.ok(&["vdi", "detach", &two])?;
        sized.has(&two, EMPTY, "detached")
    })
}

#[test]
fn a_snapshot_takes_the_room_of_the_leaf_that_it_cuts() -> Result<()> {
    lab::test(|| {
        let sized = Sized::new(1216, "thin")?;
        let disk = sized.disk("one", "1GiB")?;
        let mut client = sized.attach(&disk)?;
        Sized::fill(&mut client, 0, 20)?;
        ensure!(free_mib(&sized)? < FULL_1, "no room for another full leaf");
        let base = sized.image(&disk)?;
        let snapshot = sized.agent.ok(&["vdi", "snapshot", &disk])?;
        ensure!(sized.mib(&base)? == holding(20), "the base copy");
        sized.has(&disk, FULL_1, "the new leaf is full after all")?;
        sized.has(&snapshot, EMPTY, "the snapshot")?;
        // More than the next cut would have to gain.
        let more = free_mib(&sized)? / 2 + 1;
        Sized::fill(&mut client, 100, more)?;
        let before = sized.volumes()?;
        let said = refusal(&sized, "VDI.snapshot", &json!({"vdi": disk}))?;
        let missing: u64 = said["objects"]["bytes_missing"].as_str().context("what is missing")?.parse()?;
        ensure!(said["name"] == "no_space" && missing > 0, "{said}");
        ensure!(sized.volumes()? == before, "nothing has changed");
        client.disconnect()?;
        sized.agent.ok(&["vdi", "detach", &disk])?;
        sized.is_filled(&disk, 0, 20)?;
        sized.is_filled(&disk, 100, more)?;
        sized.agent.is_clean(&sized.sr)
    })
}
