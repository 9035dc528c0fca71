//! The operations, what each does to the model, and how the outcome of one is learnt whose process was killed.

use crate::disk::Disk;
use crate::world::{Listed, Outcome, Strike, Victim, World, stream};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::time::Duration;

/// The deepest chain, which refuses one more image.
const CHAIN_LIMIT: u64 = 30;
/// Sizes are whole blocks.
const BLOCK: u64 = 2 << 20;
/// The longest write.
const LONGEST_WRITE: u64 = 256 << 10;

impl World {
    /// One random operation, which may be struck.
    pub(crate) fn step(&mut self) -> Result<()> {
        let strike = self.dice.percent(6).then(|| self.strike());
        let Some(vdi) = self.any() else { return self.create(strike) };
        let room = self.disks.len() < self.scale.vdis;
        match self.dice.below(100) {
            0..38 => self.write(&vdi, strike)?,
            38..47 if room => self.snapshot(&vdi, strike)?,
            47..51 if room => self.snapshot_two(&vdi, strike)?,
            51..57 if room => self.clone_disk(&vdi, strike)?,
            57..61 if room => self.create(strike)?,
            61..63 if room => self.copy(&vdi, strike)?,
            38..69 => self.destroy(&vdi, strike)?,
            69..73 => self.revert(&vdi, strike)?,
            73..76 => self.resize(&vdi, strike)?,
            76..82 => self.read(&vdi)?,
            82..84 => self.pause(strike)?,
            84..88 => self.resume()?,
            88 => self.policy(strike)?,
            89..91 => self.run(strike)?,
            91 => self.mend(strike)?,
            92 => self.tower(&vdi)?,
            93 => self.detach()?,
            94..97 => self.attend(&vdi, strike)?,
            _ => self.strike_idle()?,
        }
        let compared = self.dice.percent(self.scale.compared);
        if self.disks.contains_key(&vdi) && compared { self.compare(&vdi) } else { Ok(()) }
    }

    /// What was done, in numbers.
    pub(crate) fn counts(&self) -> String {
        let count = |word: &str| self.history.iter().filter(|line| line.contains(word)).count();
        let words = [
            "step", "write", "snapshot", "clone", "copy", "create", "revert", "resize", "destroy", "repair",
            "trim", "attach", "policy", "strikes", "unknown", "repeated", "too long", "no room", "again",
        ];
        words.map(|word| format!("{} {word}", count(word))).join(", ")
    }

    /// Destroys every VDI.
    pub(crate) fn destroy_all(&mut self) -> Result<()> {
        while let Some(vdi) = self.any() {
            self.destroy(&vdi, None)?;
        }
        Ok(())
    }

    /// Lets the worker merge.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.note("resume");
        self.must("Coalesce.resume", &json!({"sr": self.sr}), &[])?;
        self.paused = false;
        Ok(())
    }

    fn any(&mut self) -> Option<String> {
        let count = self.disks.len() as u64;
        let at = usize::try_from(self.dice.next().checked_rem(count)?).ok()?;
        let mut by_age: Vec<(u64, &String)> =
            self.disks.iter().map(|(uuid, disk)| (disk.number, uuid)).collect();
        by_age.sort_unstable();
        by_age.get(at).map(|(_, uuid)| (*uuid).clone())
    }

    /// The number of the next disk.
    const fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    pub(crate) fn strike(&mut self) -> Strike {
        let victim = match self.dice.below(10) {
            0..2 => Victim::Front,
            2..6 => Victim::Keeper,
            6..8 => Victim::Workers,
            _ => Victim::Worker(self.dice.next()),
        };
        let after = Duration::from_micros(self.dice.below(self.scale.strike_within));
        self.note(format!("  strikes {victim:?} after {after:?}"));
        Strike { victim, after }
    }

    // Content.

    fn write(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let disk = self.disks.get(vdi).context("not in the model")?;
        let size = disk.size;
        if disk.is_unsettled() {
            self.compare(vdi)?;
        }
        let aligned = self.dice.percent(50);
        let unit = if aligned { self.dice.one_of([512, 4096, BLOCK]) } else { 1 };
        let offset = self.dice.below(size) / unit * unit;
        let limit = self.dice.one_of([1024, 16 << 10, LONGEST_WRITE]);
        let mut length = (1 + self.dice.below(limit)).min(size - offset);
        if aligned {
            length = length.next_multiple_of(512);
        }
        let bytes = match self.dice.percent(10) {
            true => vec![0; usize::try_from(length)?],
            false => self.dice.bytes(length),
        };
        self.note(format!("write {vdi} {offset}+{length}"));
        let file = stream(&bytes)?;
        let params = json!({"vdi": vdi, "offset": offset, "length": length, "fd": 0});
        let outcome = self.request("VDI.write", &params, &[file.as_fd()], strike)?;
        let sure = match outcome {
            Outcome::Done(_) => true,
            Outcome::Unknown => false,
            Outcome::Refused(refusal) if self.forgives(&refusal) => false,
            Outcome::Refused(refusal) if self.lacks_room(&refusal)? => return Ok(()),
            Outcome::Refused(refusal) => bail!("a write is refused: {refusal}"),
        };
        let disk = self.disks.get_mut(vdi).context("not in the model")?;
        if sure {
            disk.write(offset, &bytes);
        } else {
            disk.may_have_written(offset, &bytes);
            self.note("  unknown");
        }
        Ok(())
    }

    fn read(&mut self, vdi: &str) -> Result<()> {
        let size = self.disks.get(vdi).context("not in the model")?.size;
        let offset = self.dice.below(size);
        let length = (1 + self.dice.below(1 << 20)).min(size - offset);
        self.note(format!("read {vdi} {offset}+{length}"));
        self.compare_range(vdi, offset, length)
    }

    // The set of VDIs.

    fn create(&mut self, strike: Option<Strike>) -> Result<()> {
        let asked = 1 + self.dice.below(self.scale.blocks * BLOCK);
        self.note(format!("create {asked}"));
        let size = asked.next_multiple_of(BLOCK);
        let params = json!({"sr": self.sr, "virtual_size": asked, "name_label": "disk"});
        let made = match self.change("VDI.create", params, strike)? {
            Changed::Done(answer) => vec![answer["uuid"].as_str().context("no uuid")?.to_owned()],
            Changed::Not(refusal) if !self.lacks_room(&refusal)? => bail!("a creation is refused: {refusal}"),
            Changed::Not(_) | Changed::Nothing => Vec::new(),
            Changed::Unknown => self.appeared(&[0, 1], |_| true)?,
        };
        for uuid in made {
            let number = self.number();
            self.disks.insert(uuid, Disk::new(number, size));
        }
        Ok(())
    }

    pub(crate) fn snapshot(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        self.note(format!("snapshot {vdi}"));
        let depth = self.depth(vdi)?;
        let params = json!({"vdi": vdi, "name_label": "snapshot", "wait": self.dice.percent(20)});
        let changed = self.change("VDI.snapshot", params, strike)?;
        let of = |row: &Listed| row.snapshot_of.as_deref() == Some(vdi);
        let made = self.made(changed, depth, 1, of)?;
        self.adopt(vdi, made, true)
    }

    /// Of two disks at one instant: both, or none.
    fn snapshot_two(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let Some(other) = self.any().filter(|other| other != vdi) else {
            return self.snapshot(vdi, strike);
        };
        self.note(format!("snapshot {vdi} and {other}"));
        let depth = self.depth(vdi)?.max(self.depth(&other)?);
        let params = json!({"vdi": [vdi, other], "name_label": "snapshot"});
        let changed = self.change("VDI.snapshot", params, strike)?;
        let of = |row: &Listed| row.snapshot_of.as_deref().is_some_and(|of| of == vdi || of == other);
        for made in self.made(changed, depth, 2, of)? {
            let listed = self.list()?;
            let of = listed.get(&made).and_then(|row| row.snapshot_of.clone()).context("a snapshot")?;
            self.adopt(&of, vec![made], true)?;
        }
        Ok(())
    }

    fn clone_disk(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let count = 1 + self.dice.below(3);
        self.note(format!("clone {vdi} {count} times"));
        let depth = self.depth(vdi)?;
        let params = json!({"vdi": vdi, "name_label": "clone", "count": count});
        let changed = self.change("VDI.clone", params, strike)?;
        let made = self.made(changed, depth, usize::try_from(count)?, |row| row.snapshot_of.is_none())?;
        self.adopt(vdi, made, false)
    }

    /// The VDIs that a snapshot or clone has made.
    fn made(
        &mut self,
        changed: Changed,
        depth: u64,
        count: usize,
        fits: impl Fn(&Listed) -> bool,
    ) -> Result<Vec<String>> {
        match changed {
            Changed::Done(answer) => {
                let uuids: Vec<String> = serde_json::from_value(answer["vdis"].clone())?;
                ensure!(uuids.len() == count, "{count} VDIs were to be made: {uuids:?}");
                Ok(uuids)
            }
            Changed::Not(refusal) if self.lacks_room(&refusal)? => Ok(Vec::new()),
            Changed::Not(refusal) => {
                ensure!(refusal["data"]["name"] == "chain_too_long", "refused: {refusal}");
                ensure!(depth == CHAIN_LIMIT, "refused at depth {depth}: {refusal}");
                self.note("  too long");
                Ok(Vec::new())
            }
            Changed::Nothing => Ok(Vec::new()),
            Changed::Unknown => self.appeared(&[0, count], fits),
        }
    }

    /// Takes copies of a disk into the model.
    fn adopt(&mut self, vdi: &str, made: Vec<String>, snapshot: bool) -> Result<()> {
        if made.is_empty() {
            return Ok(());
        }
        if self.disks.get(vdi).context("not in the model")?.is_unsettled() {
            self.compare(vdi)?;
        }
        let disk = self.disks.get(vdi).context("not in the model")?.clone();
        for uuid in made {
            let number = self.number();
            self.disks.insert(uuid.clone(), disk.copy(number, snapshot));
            if self.dice.percent(self.scale.compared / 2) {
                self.compare(&uuid)?;
            }
        }
        Ok(())
    }

    fn destroy(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        self.note(format!("destroy {vdi}"));
        let gone = match self.change("VDI.destroy", json!({"vdi": vdi}), strike)? {
            Changed::Done(_) => true,
            Changed::Not(refusal) => bail!("a removal is refused: {refusal}"),
            Changed::Nothing => false,
            Changed::Unknown => !self.list()?.contains_key(vdi),
        };
        if gone {
            self.disks.remove(vdi);
        }
        Ok(())
    }

    /// Puts a disk back to one of its snapshots. It may be said twice, so the outcome can always be learnt.
    fn revert(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let listed = self.list()?;
        let of = |row: &Listed| row.snapshot_of.as_deref() == Some(vdi);
        let Some((snapshot, row)) = listed.into_iter().find(|(_, row)| of(row)) else { return Ok(()) };
        if self.disks.get(vdi).context("not in the model")?.snapshot {
            return Ok(());
        }
        self.note(format!("revert {vdi} to {snapshot}"));
        self.compare(&snapshot)?;
        let params = json!({"vdi": vdi, "snapshot": snapshot});
        let mut changed = self.change("VDI.revert", params.clone(), strike)?;
        while matches!(changed, Changed::Unknown) {
            changed = self.change("VDI.revert", params.clone(), None)?;
        }
        match changed {
            Changed::Done(_) => {
                let number = self.disks.get(vdi).context("not in the model")?.number;
                let disk = self.disks.get(&snapshot).context("not in the model")?.copy(number, false);
                self.disks.insert(vdi.to_owned(), disk);
            }
            Changed::Not(refusal) if self.lacks_room(&refusal)? => {}
            Changed::Not(refusal) => {
                let too_long = refusal["data"]["name"] == "chain_too_long" && row.depth == CHAIN_LIMIT;
                ensure!(too_long, "refused: {refusal}");
            }
            Changed::Nothing | Changed::Unknown => {}
        }
        Ok(())
    }

    /// Makes a disk larger; it may be said twice.
    pub(crate) fn resize(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let disk = self.disks.get(vdi).context("not in the model")?;
        if disk.snapshot || disk.size > 40 * BLOCK {
            return Ok(());
        }
        let size = disk.size + BLOCK * (1 + self.dice.below(3));
        self.note(format!("resize {vdi} to {size}"));
        let params = json!({"vdi": vdi, "virtual_size": size});
        let mut changed = self.change("VDI.resize", params.clone(), strike)?;
        while matches!(changed, Changed::Unknown) {
            changed = self.change("VDI.resize", params.clone(), None)?;
        }
        match changed {
            Changed::Done(_) => self.disks.get_mut(vdi).context("not in the model")?.size = size,
            Changed::Not(refusal) if !self.lacks_room(&refusal)? => bail!("a resize is refused: {refusal}"),
            Changed::Not(_) | Changed::Nothing | Changed::Unknown => {}
        }
        Ok(())
    }

    fn copy(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        self.note(format!("copy {vdi}"));
        let params = json!({"vdi": vdi, "name_label": "copy"});
        let job = match self.change("VDI.copy", params, strike)? {
            Changed::Done(job) => job,
            Changed::Not(refusal) if !self.lacks_room(&refusal)? => bail!("a copy is refused: {refusal}"),
            Changed::Not(_) | Changed::Nothing | Changed::Unknown => return Ok(()),
        };
        let job = self.must("Job.wait", &json!({"job": job["id"]}), &[])?;
        match job["state"].as_str() {
            Some("done") => {
                let uuid = job["result"]["uuid"].as_str().context("no uuid")?.to_owned();
                self.adopt(vdi, vec![uuid], false)
            }
            Some("failed") if self.is_lack(&job["error"]) => {
                self.note("  no room for a copy");
                Ok(())
            }
            // Its keeper or its worker was killed.
            Some("failed") if strike.is_some() || self.forgives(&json!({"data": job["error"]})) => {
                self.note("  failed with its worker");
                Ok(())
            }
            _ => bail!("a copy has failed: {job}"),
        }
    }

    fn depth(&mut self, vdi: &str) -> Result<u64> {
        Ok(self.list()?.get(vdi).context("not in the list")?.depth)
    }

    /// The VDIs that are listed and not in the model: as many as one of `counts` says.
    fn appeared(&mut self, counts: &[usize], fits: impl Fn(&Listed) -> bool) -> Result<Vec<String>> {
        let listed = self.list()?;
        let new: Vec<_> = listed.into_iter().filter(|(uuid, _)| !self.disks.contains_key(uuid)).collect();
        ensure!(
            counts.contains(&new.len()) && new.iter().all(|(_, row)| fits(row)),
            "there appeared {new:?}"
        );
        Ok(new.into_iter().map(|(uuid, _)| uuid).collect())
    }

    /// A request that changes the set of VDIs. One whose outcome is unknown is repeated under its id, or left to the caller
    /// to look; one that was answered is repeated now and then, which must give the same answer and no second effect.
    pub(crate) fn change(
        &mut self,
        method: &str,
        mut params: Value,
        strike: Option<Strike>,
    ) -> Result<Changed> {
        params["request_id"] = json!(format!("{:016x}", self.dice.next()));
        let (mut repeats, again) = (self.dice.percent(50), self.dice.percent(15));
        // What a job of which nobody knows will have made cannot be looked for now, and an attach answers where the disk is.
        repeats |= ["VDI.copy", "VDI.attach", "VDI.detach"].contains(&method);
        let mut outcome = self.request(method, &params, &[], strike)?;
        for _ in 0..20 {
            match outcome {
                Outcome::Unknown if repeats => self.note("  unknown, repeated"),
                Outcome::Unknown => {
                    self.note("  unknown");
                    return Ok(Changed::Unknown);
                }
                Outcome::Refused(refusal) if self.forgives(&refusal) => {
                    self.note("  failed with its worker");
                    return Ok(Changed::Nothing);
                }
                Outcome::Refused(refusal) => return Ok(Changed::Not(refusal)),
                Outcome::Done(answer) => {
                    if !again {
                        return Ok(Changed::Done(answer));
                    }
                    self.note("  repeated");
                    let second = self.must(method, &params, &[])?;
                    let same_job = answer["id"].is_string() && second["id"] == answer["id"];
                    // A job that the end of its keeper has interrupted is undone, and its repetition a new one.
                    let anew = answer["id"].is_string() && strike.is_some();
                    ensure!(second == answer || same_job || anew, "repeated: {second}, at first {answer}");
                    return Ok(Changed::Done(second));
                }
            }
            outcome = self.request(method, &params, &[], None)?;
            repeats = true;
        }
        bail!("{method} has no outcome")
    }

    // The worker.

    fn pause(&mut self, strike: Option<Strike>) -> Result<()> {
        self.note("pause");
        let params = json!({"sr": self.sr});
        // It may be said twice.
        self.request("Coalesce.pause", &params, &[], strike)?;
        self.must("Coalesce.pause", &params, &[])?;
        self.paused = true;
        Ok(())
    }

    /// What was set is there, whatever was killed since; and something else is set, also under a merge that runs.
    fn policy(&mut self, strike: Option<Strike>) -> Result<()> {
        let shown = self.must("SR.set_policy", &json!({"sr": self.sr}), &[])?;
        for (key, value) in &self.policy {
            ensure!(shown["policy"][key] == *value, "{key} was {value}: {shown}");
        }
        let classes = ["idle", "best-effort:4", "best-effort:7"];
        let class = classes[usize::try_from(self.dice.below(3))?];
        let rate = [0, 8 << 20, 64 << 20][usize::try_from(self.dice.below(3))?];
        self.note(format!("policy {class} {rate}"));
        let new = json!({"coalesce.io_class": class, "coalesce.rate": rate});
        let params = json!({"sr": self.sr, "policy": new});
        // It may be said twice.
        self.request("SR.set_policy", &params, &[], strike)?;
        self.must("SR.set_policy", &params, &[])?;
        self.policy = serde_json::from_value(new)?;
        Ok(())
    }

    pub(crate) fn run(&mut self, strike: Option<Strike>) -> Result<()> {
        self.note("run");
        if self.paused {
            let params = json!({"sr": self.sr, "wait": true});
            return match self.request("Coalesce.run", &params, &[], None)? {
                Outcome::Refused(refusal) if refusal["data"]["name"] == "try_again" => Ok(()),
                other => bail!("a paused worker was waited for: {other:?}"),
            };
        }
        if strike.is_some() {
            self.request("Coalesce.run", &json!({"sr": self.sr, "wait": true}), &[], strike)?;
        }
        self.coalesce_to_the_end()
    }

    /// Repairs or trims the SR, which changes no disk: both may be done at any time.
    fn mend(&mut self, strike: Option<Strike>) -> Result<()> {
        let repair = self.dice.percent(50);
        self.note(if repair { "repair" } else { "trim" });
        let (method, params) = match repair {
            true => ("SR.check", json!({"sr": self.sr, "repair": true})),
            false => ("SR.trim", json!({"sr": self.sr})),
        };
        let Changed::Done(job) = self.change(method, params, strike)? else { return Ok(()) };
        let job = self.must("Job.wait", &json!({"job": job["id"]}), &[])?;
        match job["state"].as_str() {
            Some("done") => {
                ensure!(!repair || job["result"]["clean"] == true, "not mended: {job}");
                self.compare_all()
            }
            Some("failed") if strike.is_some() || self.forgives(&json!({"data": job["error"]})) => {
                self.note("  failed with its worker");
                Ok(())
            }
            _ => bail!("{method} has failed: {job}"),
        }
    }

    /// Makes a chain grow towards its limit.
    fn tower(&mut self, vdi: &str) -> Result<()> {
        self.pause(None)?;
        for _ in 0..self.scale.tower.0 + self.dice.below(self.scale.tower.1) {
            let before: Vec<String> = self.disks.keys().cloned().collect();
            self.snapshot(vdi, None)?;
            let new: Vec<String> = self.disks.keys().filter(|uuid| !before.contains(uuid)).cloned().collect();
            if self.dice.percent(50) {
                self.write(vdi, None)?;
            }
            new.iter().try_for_each(|uuid| self.destroy(uuid, None))?;
        }
        if self.dice.percent(70) { self.resume() } else { Ok(()) }
    }

    // The processes.

    fn detach(&mut self) -> Result<()> {
        self.note("detach and attach");
        self.must("SR.detach", &json!({"sr": self.sr}), &[])?;
        self.must("SR.attach", &json!({"sr": self.sr}), &[]).map(drop)
    }

    /// Kills a process while no request but a list is under way.
    pub(crate) fn strike_idle(&mut self) -> Result<()> {
        let strike = self.strike();
        self.request("VDI.list", &json!({"sr": self.sr}), &[], Some(strike)).map(drop)
    }
}

/// What became of a change.
#[derive(Debug)]
pub(crate) enum Changed {
    /// It has this answer.
    Done(Value),
    /// It was refused.
    Not(Value),
    /// It failed and left nothing.
    Nothing,
    /// Nobody knows.
    Unknown,
}
