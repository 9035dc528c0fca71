//! The reply to a block status: for each context that the client selected, what the disk consists of from a byte on.

use crate::reply::Head;
use crate::request::{Request, What};
use crate::session::{Contexts, Session};
use crate::wire::{Errno, chunk};

/// The most extents of one reply; the client asks on from where it ends.
const MOST: usize = 1 << 16;
/// The longest extent that 32 bits can say, on a page's border.
const LONGEST: u64 = 0xffff_f000;

/// Bytes of the disk that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many, in bytes.
    pub len: u64,
    /// They take no space.
    pub hole: bool,
    /// They read as zeros.
    pub zero: bool,
    /// Which image owns them: 0 none, 1 the leaf, 2 its parent.
    pub depth: u32,
}

impl Extent {
    fn flags(&self, context: u32) -> u32 {
        if context == Contexts::ALLOCATION {
            u32::from(self.hole) | u32::from(self.zero) << 1
        } else {
            self.depth
        }
    }
}

impl Session {
    /// The reply to a block status, from the extents that begin where the request does. They may be shorter than the
    /// request, or longer; where there are none that is an error of the disk.
    pub fn extents(&self, request: &Request, extents: &[Extent], out: &mut Vec<u8>) {
        let room = self.size.saturating_sub(request.at);
        if room == 0 || extents.iter().all(|extent| extent.len == 0) {
            return self.failed(request.cookie, Errno::Io, "nothing is known of this range", None, out);
        }
        let selected: Vec<u32> =
            Contexts::NAMES.map(|(_, id)| id).into_iter().filter(|&id| self.contexts.has(id)).collect();
        for (nth, &context) in selected.iter().enumerate() {
            let descriptors = described(request, room, extents, context);
            let done = nth + 1 == selected.len();
            let len = u32::try_from(4 + 8 * descriptors.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&Head::chunk(request.cookie, chunk::BLOCK_STATUS, done, len));
            out.extend_from_slice(&context.to_be_bytes());
            for (len, flags) in descriptors {
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
        }
    }
}

/// Lengths and flags as one context has them: neighbours that are alike are one, only the last may reach beyond what was asked
/// for, and none beyond the disk.
fn described(request: &Request, room: u64, extents: &[Extent], context: u32) -> Vec<(u32, u32)> {
    let one = request.what == What::Status { one: true };
    let asked = u64::from(request.len);
    let most = if one { asked } else { room };
    let mut runs: Vec<(u64, u32)> = Vec::new();
    let mut told = 0;
    for extent in extents {
        let (len, flags) = (extent.len.min(most - told), extent.flags(context));
        let full = one || told >= asked || runs.len() == MOST;
        match runs.last_mut() {
            _ if len == 0 => continue,
            Some((run, same)) if *same == flags => *run += len,
            Some(_) if full => break,
            _ => runs.push((len, flags)),
        }
        told += len;
    }
    // What follows an extent that had to be cut would be in the wrong place.
    let whole = runs.iter().take_while(|(len, _)| *len <= LONGEST).count();
    runs.iter()
        .take(whole + 1)
        .map(|&(len, flags)| (u32::try_from(len.min(LONGEST)).unwrap_or(u32::MAX), flags))
        .collect()
}
