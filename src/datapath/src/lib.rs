//! Handles image bytes on behalf of a keeper: the only crate that knows formats.
//!
//! `catena-datapath worker` takes requests over the socketpair on its standard input, one at a time, and ends with it. It
//! holds the descriptors that come with a request and nothing else: it opens no path, and runs as an unprivileged user where it
//! may choose. So an image made to attack its reader finds neither files nor rights.
//!
//! `catena-datapath serve` serves one disk over NBD in the same way: by descriptors that it was started with, for as long as the
//! disk is attached, whether there is a keeper or not.

mod copying;
mod crash;
mod export;
mod formats;
mod images;
mod import;
mod inflow;
mod intake;
mod merging;
mod open;
mod outflow;
mod pacing;
mod privileges;
mod ranges;
mod raw;
mod repair;
mod run;
mod serve;
mod streams;
mod supervisor;
mod trouble;
mod worker;

pub use run::main;
