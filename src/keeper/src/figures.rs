//! Figures of served disks, for `Agent.stats` and `VDI.get_record`: asked of the processes, and left out where one does not answer
//! at once.
//!
//! The owner asks; a thread of its own waits for that, so that neither a busy owner nor a disk that hangs holds up what is
//! answered from the snapshot.

use crate::owner::{Mail, Owner};
use crate::published::Board;
use catena_control::{Ask, Served, Stats, Told};
use catena_rpc::{
    Message, Reply, Request, Response, ServedDisk, ServedRequests, Text, Vdi, VdiParams, Writer,
};
use catena_types::{Bytes, VdiUuid};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// How long processes may take, all together.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long the owner may take to get to it.
const OWNER: Duration = Duration::from_secs(1);

/// Answers a request that has figures in its answer, from a thread of its own; false if it is none.
pub(crate) fn take_up(board: &Arc<Board>, request: &Request, front: &Writer, mailbox: &Sender<Mail>) -> bool {
    let record = match request.method.as_str() {
        "Keeper.figures" => None,
        "VDI.get_record" => match attached(board, request) {
            Some(record) => Some(record),
            None => return false,
        },
        _ => return false,
    };
    let (id, front, mailbox) = (request.id.clone(), front.clone(), mailbox.clone());
    let board = Arc::clone(board);
    std::thread::spawn(move || {
        let outcome = outcome(record, &board, &mailbox);
        // Who has gone needs no answer.
        let _ = front.send(&Message::Response(Response { id, outcome }), &[]);
    });
    true
}

/// The record that is asked for, if its disk is served.
fn attached(board: &Board, request: &Request) -> Option<Vdi> {
    let params: VdiParams = crate::dispatch::params(request).ok()?;
    board.read().vdi(params.vdi.parse().ok()?).filter(|vdi| vdi.attached.is_some())
}

fn outcome(record: Option<Vdi>, board: &Board, mailbox: &Sender<Mail>) -> Reply {
    let (sender, figures) = channel();
    let of = record.as_ref().map(|vdi| vdi.uuid);
    let asked = mailbox.send(Mail::Figures(of, sender)).is_ok();
    let mut disks: Vec<ServedDisk> =
        if asked { figures.recv_timeout(OWNER).unwrap_or_default() } else { Vec::new() };
    Ok(match record {
        // What it takes may have been measured just now.
        Some(vdi) => Text::of(&Vdi { serving: disks.pop(), ..board.read().vdi(vdi.uuid).unwrap_or(vdi) }),
        None => Text::of(&BTreeMap::from([("disks", disks)])),
    })
}

impl Owner {
    /// The figures of one served disk, or of all.
    pub(crate) fn figures(&mut self, of: Option<VdiUuid>) -> Vec<ServedDisk> {
        let deadline = Instant::now() + PATIENCE;
        let lacks: BTreeMap<VdiUuid, String> =
            (self.serving.disks.keys()).filter_map(|vdi| Some((*vdi, self.lacks_room(*vdi)?))).collect();
        let wanted = self.serving.disks.iter_mut().filter(|(vdi, _)| of.is_none_or(|of| of == **vdi));
        // All are asked before the first is waited for. Who owes an answer already, or ends, is not asked again.
        let asked: Vec<_> = wanted
            .filter_map(|(vdi, served)| {
                let about = (*vdi, served.pid, served.failing.why.clone());
                let link = served.link.as_mut()?;
                if link.is_told_to_stop() || link.is_owed() {
                    return None;
                }
                link.put(&Ask::Stats, &[]).is_ok().then_some((about, link))
            })
            .collect();
        asked
            .into_iter()
            .filter_map(|(about, link)| {
                match link.answer(deadline.saturating_duration_since(Instant::now())) {
                    Ok(Told::Stats(stats)) => {
                        let lacks_room = lacks.get(&about.0).cloned();
                        Some(ServedDisk { lacks_room, ..disk(about, *stats) })
                    }
                    _ => None,
                }
            })
            .collect()
    }
}

fn disk((vdi, pid, failed): (VdiUuid, u32, Option<String>), stats: Stats) -> ServedDisk {
    ServedDisk {
        vdi,
        pid,
        engine: stats.engine,
        connections: stats.connections,
        queue_depth: stats.queue_depth,
        pauses: stats.pauses,
        longest_pause_us: stats.longest_pause_us,
        read: requests(&stats.read),
        write: requests(&stats.write),
        flush: requests(&stats.flush),
        failed,
        lacks_room: None,
    }
}

fn requests(served: &Served) -> ServedRequests {
    ServedRequests {
        count: served.count,
        bytes: Bytes(served.bytes),
        failed: served.failed,
        p50_us: percentile(&served.latency, 50),
        p99_us: percentile(&served.latency, 99),
    }
}

/// The power of two below which so many of a hundred are.
fn percentile(latency: &[u64], percent: u64) -> u64 {
    let all: u64 = latency.iter().sum();
    let wanted = all.saturating_mul(percent).div_ceil(100);
    let mut below = 0;
    let found = latency.iter().position(|count| {
        below += count;
        all > 0 && below >= wanted
    });
    found.map_or(0, |power| 1_u64.checked_shl(u32::try_from(power).unwrap_or(u32::MAX)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_powers_of_two() {
        assert_eq!(percentile(&[], 50), 0);
        assert_eq!(percentile(&[0, 0], 99), 0);
        assert_eq!(percentile(&[0, 0, 1], 50), 4);
        // 98 below 8 us, two below 1024 us.
        let mut latency = vec![0; 11];
        (latency[3], latency[10]) = (98, 2);
        assert_eq!((percentile(&latency, 50), percentile(&latency, 98)), (8, 8));
        assert_eq!(percentile(&latency, 99), 1024);
        assert_eq!(percentile(&[1; 100], 99), u64::MAX);
    }
}
