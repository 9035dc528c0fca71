//! A disk while it is attached: what its client writes and reads, and what is done to the disk meanwhile.

use crate::harness::nbd::{Client, FLUSH};
use crate::harness::socket_of;
use crate::operations::Changed;
use crate::world::{Strike, World};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

/// The longest write, in bytes.
const LONGEST_WRITE: u64 = 256 << 10;

impl World {
    /// Attaches a disk or a snapshot for writing, does this and that, and detaches it.
    pub(crate) fn attend(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        if self.disks.get(vdi).context("not in the model")?.is_unsettled() {
            self.compare(vdi)?;
        }
        self.note(format!("attach {vdi}"));
        let uri = match self.change("VDI.attach", json!({"vdi": vdi}), strike)? {
            Changed::Done(answer) => answer["uri"].as_str().context("a uri")?.to_owned(),
            Changed::Not(refusal) if self.lacks_room(&refusal)? => return Ok(()),
            Changed::Not(refusal) => bail!("an attach is refused: {refusal}"),
            Changed::Nothing | Changed::Unknown => return Ok(()),
        };
        self.attached = Some((vdi.to_owned(), Client::connect(&socket_of(&uri)?)?));
        for _ in 0..1 + self.dice.below(5) {
            let strike = self.dice.percent(15).then(|| self.strike());
            self.meanwhile(vdi, strike)?;
        }
        self.compare(vdi)?;
        if self.dice.percent(30) {
            self.check_storage()?;
        }
        self.note(format!("detach {vdi}"));
        let (_, client) = self.attached.take().context("a client")?;
        client.disconnect()?;
        let strike = self.dice.percent(15).then(|| self.strike());
        match self.change("VDI.detach", json!({"vdi": vdi}), strike)? {
            // Its outcome was lost with a worker, or it was done by a request that nobody answered.
            Changed::Done(_) => Ok(()),
            Changed::Not(refusal) if strike.is_some() && refusal["data"]["name"] == "vdi_unavailable" => {
                Ok(())
            }
            other => bail!("a detach has not succeeded: {other:?}"),
        }
    }

    fn meanwhile(&mut self, vdi: &str, strike: Option<Strike>) -> Result<()> {
        let room = self.disks.len() < self.scale.vdis;
        match self.dice.below(100) {
            0..60 => self.write_attached(vdi),
            60..72 if room => self.snapshot(vdi, strike),
            72..78 => self.resize(vdi, strike),
            78..88 => self.run(strike),
            88..94 => self.strike_idle(),
            _ => self.compare(vdi),
        }
    }

    /// Its client writes whole sectors, and every so often has them made durable.
    fn write_attached(&mut self, vdi: &str) -> Result<()> {
        let (_, client) = self.attached.as_mut().context("a client")?;
        let size = client.size;
        let offset = self.dice.below(size) / 512 * 512;
        let limit = self.dice.one_of([1024, 16 << 10, LONGEST_WRITE]);
        let length = (1 + self.dice.below(limit)).next_multiple_of(512).min(size - offset);
        let bytes = self.dice.bytes(length);
        let flush = self.dice.percent(20);
        self.note(format!("  its client writes {offset}+{length}"));
        let (_, client) = self.attached.as_mut().context("a client")?;
        ensure!(client.write(offset, &bytes, 0)? == 0, "a write of a client fails");
        if flush {
            ensure!(client.ask(FLUSH, 0, 0, 0)? == 0, "a flush of a client fails");
        }
        self.disks.get_mut(vdi).context("not in the model")?.write(offset, &bytes);
        Ok(())
    }
}
