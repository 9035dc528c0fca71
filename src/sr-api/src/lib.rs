//! What a storage back end provides: named byte containers, not formats.
//!
//! A back end ([`Plugin`]) finds, makes and opens storage repositories; an open one ([`Store`]) keeps containers. Neither
//! knows VHD, chains or VDIs. The keeper is the only caller, from its owner thread or a worker thread it started.
//! Every back end passes [`conformance`].

pub mod conformance;
mod error;
mod store;

pub use error::Error;
pub use store::{
    Access, Capabilities, ContainerInfo, Discarded, HostIdentity, Labels, Plugin, Probe, RawDisk, Remark,
    Sizing, Space, SrIdentity, Store, StoreStat,
};
