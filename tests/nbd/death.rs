//! Whoever serves is killed under a writer, again and again, and a successor takes the same sockets and the same `pending`: every
//! write that was answered is there (D7, D8).

use crate::harness::nbd::{Client, FLUSH, FUA, WRITE};
use crate::harness::{nightly, seed};
use crate::stage::{ENGINES, Stage};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;

/// Bytes that are stamped at once.
const PAGE: usize = 4096;
/// Writes that are sent without waiting.
const AHEAD: usize = 16;

/// Xorshift: good enough to be everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What may stand on the disk, by page.
#[derive(Default)]
struct Stamps {
    /// The version that was answered, or found.
    answered: BTreeMap<u64, u64>,
    /// Versions that were sent and not answered, by the cookie of their request.
    sent: BTreeMap<u64, (u64, u64)>,
    version: u64,
}

fn stamp(page: u64, version: u64) -> Vec<u8> {
    let words = [page, version].map(u64::to_le_bytes).concat();
    words.iter().copied().cycle().take(PAGE).collect()
}

impl Stamps {
    fn send(&mut self, client: &mut Client, dice: &mut Dice) -> Result<()> {
        let pages = client.size / PAGE as u64;
        let page = loop {
            // Some places often, so that what is noted is written over; never two writes of a page at once, whose order is open.
            let page = if dice.below(3) == 0 { dice.below(8) } else { dice.below(pages) };
            if self.sent.values().all(|(sent, _)| *sent != page) {
                break page;
            }
        };
        self.version += 1;
        let flags = if dice.below(20) == 0 { FUA } else { 0 };
        let bytes = stamp(page, self.version);
        let cookie = client.send(WRITE, flags, page * PAGE as u64, u32::try_from(PAGE)?, &bytes)?;
        self.sent.insert(cookie, (page, self.version));
        Ok(())
    }

    fn receive(&mut self, client: &mut Client) -> Result<()> {
        let reply = client.receive()?;
        ensure!(reply.error == 0, "a write was refused: {reply:?}");
        if let Some((page, version)) = self.sent.remove(&reply.cookie) {
            self.answered.insert(page, version);
        }
        Ok(())
    }

    /// Looks at every page that was ever written: the version that was answered, or one that was on its way.
    fn verify(&mut self, client: &mut Client) -> Result<()> {
        let sent: Vec<(u64, u64)> = std::mem::take(&mut self.sent).into_values().collect();
        let pages: Vec<u64> =
            self.answered.keys().copied().chain(sent.iter().map(|(page, _)| *page)).collect();
        for page in pages {
            let found =
                client.read(page * PAGE as u64, u32::try_from(PAGE)?)?.ok().context("a read failed")?;
            let answered = self.answered.get(&page).copied();
            let on_its_way = sent.iter().find(|(sent, _)| *sent == page).map(|(_, version)| *version);
            let version = u64::from_le_bytes(found[8..16].try_into()?);
            let known = [answered, on_its_way].into_iter().flatten().find(|known| *known == version);
            match known {
                Some(version) => {
                    ensure!(found == stamp(page, version), "page {page} is torn");
                    self.answered.insert(page, version);
                }
                // Only what was never answered may be missing altogether.
                None => ensure!(
                    answered.is_none(),
                    "page {page} is {version}, not {answered:?} or {on_its_way:?}"
                ),
            }
        }
        Ok(())
    }
}

#[test]
fn what_was_answered_survives_whoever_serves() -> Result<()> {
    for engine in ENGINES {
        let mut dice = Dice(seed("death") | 1);
        let mut stage = Stage::chain()?;
        let mut stamps = Stamps::default();
        for _ in 0..if nightly() { 60 } else { 6 } {
            stage.served.start(&["--engine", engine])?;
            let mut client = stage.served.client()?;
            stamps.verify(&mut client)?;
            for _ in 0..dice.below(400) {
                while stamps.sent.len() < AHEAD {
                    stamps.send(&mut client, &mut dice)?;
                }
                stamps.receive(&mut client)?;
            }
            stage.served.kill()?;
            // What was answered before the end may still be on its way to us.
            while stamps.receive(&mut client).is_ok() {}
        }
        stage.served.start(&["--engine", engine])?;
        let mut client = stage.served.client()?;
        stamps.verify(&mut client)?;
        ensure!(client.ask(FLUSH, 0, 0, 0)? == 0, "a flush");
        client.disconnect()?;
        stage.served.stop()?;
        stage.served.start(&["--read-only"])?;
        stamps.verify(&mut stage.served.client()?)?;
        stage.served.stop()?;
        stage.check_detached()?;
    }
    Ok(())
}

#[test]
fn whoever_comes_after_an_end_in_order_finds_nothing_pending() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let mut client = stage.served.client()?;
    let bytes = stamp(3, 1);
    ensure!(client.write(3 * PAGE as u64, &bytes, 0)? == 0, "a write");
    stage.content[3 * PAGE..4 * PAGE].copy_from_slice(&bytes);
    // Not flushed by the client: the end does it.
    stage.served.stop()?;
    ensure!(client.receive().is_err(), "the connection is closed");
    stage.agree_detached()
}

#[test]
fn whoever_serves_dies_at_each_of_its_points() -> Result<()> {
    let mut dice = Dice(seed("points") | 1);
    let mut stage = Stage::chain()?;
    let mut stamps = Stamps::default();
    for at in ["serve.landed:30", "serve.noted:30", "serve.stored", "serve.stored:2", "serve.noted:200"] {
        stage.served.launch(&[], Some(at))?;
        let mut client = stage.served.client()?;
        stamps.verify(&mut client)?;
        // It dies while it is written to: whatever ends the conversation is that.
        while stamps.send(&mut client, &mut dice).is_ok() {
            if stamps.sent.len() >= AHEAD && stamps.receive(&mut client).is_err() {
                break;
            }
        }
        while stamps.receive(&mut client).is_ok() {}
        let point = at.split(':').next().unwrap_or(at);
        stage.served.died(point).with_context(|| at.to_owned())?;
        // A successor that dies when it has taken over leaves what it found.
        stage.served.launch(&[], Some("serve.opened"))?;
        stage.served.died("serve.opened")?;
    }
    stage.served.launch(&[], Some("serve.answer"))?;
    ensure!(stage.served.ask(&json!({"ask": "quiesce", "generation": 1})).is_err(), "it answers");
    stage.served.died("serve.answer")?;
    stage.served.start(&[])?;
    stamps.verify(&mut stage.served.client()?)?;
    stage.served.stop()?;
    stage.check_detached()
}
