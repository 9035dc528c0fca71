//! Messages and descriptors between a keeper and its datapath processes.
//!
//! The two ends share a socketpair of sequenced packets: one packet is one message, as JSON, with its descriptors beside
//! it. The keeper decides and names images by id; the datapath holds descriptors and nothing else. A datapath ends when
//! its keeper's end is closed.

mod channel;
mod messages;
mod pause;
mod serving;

pub use channel::{Channel, ChannelError, Packet};
pub use messages::{
    Answer, Answered, CreateImage, Expected, ExportFormat, Fix, Handed, ImageReport, ImportFormat,
    ImportSource, Pace, Parent, Problem, Progress, Reply, Request, Trouble, TroubleKind,
};
pub use pause::{AlreadyHeld, Found, Holding, Member, Next, Pause, Purpose, Resumed, found};
pub use serving::{Ask, Hello, Limits, News, PENDING_BYTES, Said, Served, Stats, Told};
