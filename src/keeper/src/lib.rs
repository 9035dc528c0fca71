//! The owner of one SR: its catalog, its jobs, its coalesce worker, and the processes that touch image bytes for it.
//!
//! ```text
//!   front ──socketpair── reader thread ──┬── lists and records: answered from the published snapshot
//!                                        └── everything else ──▶ mailbox ─▶ owner thread ─▶ catalog, store
//!                                                                   ▲            │
//!                              long jobs (threads with a process) ──┤            └─▶ small worker process
//!                              served disks (a thread for each) ────┘
//! ```
//!
//! Only the owner thread touches the catalog. It decides and journals; it links no format and parses no image: that is what
//! `catena-datapath` processes are for. The program ends when the front's end of its standard input is closed.

mod adopt;
mod adoption;
mod arrival;
mod attach;
mod cgroup;
mod check;
mod coalescing;
mod copying;
mod crash;
mod demand;
mod dispatch;
mod failing;
mod failures;
mod figures;
mod freezing;
mod grow;
mod hands;
mod holds;
mod images;
mod in_use;
mod introduce;
mod ioclass;
mod jobs;
mod labels;
mod live_merge;
mod long;
mod lookup;
mod mended;
mod merge_room;
mod merges;
mod operations;
mod owner;
mod pausing;
mod priority;
mod published;
mod qos;
mod rebuild;
mod recover;
mod renewal;
mod repair;
mod resize;
mod revert;
mod run;
mod rundir;
mod saved;
mod serving;
mod set;
mod sizing;
mod space;
mod standstill;
mod start;
mod steps;
mod streams;
mod tree;
mod views;
mod volumes;
mod worker;

pub use catena_sr_api::Plugin;
pub use run::run;
