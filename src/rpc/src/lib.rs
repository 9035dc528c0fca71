//! The public wire: JSON-RPC 2.0, one object a line, over a Unix socket; descriptors travel beside the line that names them.
//!
//! The only crate that knows wire JSON. Client and agent speak it, and agent and keeper speak it to each other over a
//! socketpair. Fields are added, never renamed.

mod answers;
mod connection;
mod documents;
mod message;
mod params;
mod schema;
mod text;

pub use answers::{
    AgentStats, Attached, CoalesceList, Destroyed, Done, ErrorDocument, ErrorWords, EventList, Introduced,
    Introduction, JobList, KeeperStats, Made, MadeVdis, Moved, Resized, RpcError, ScanReport, SrList,
    SrOwner, SrPolicy, SrProbed, Survey, Tree, Unavailable, VdiList, Version,
};
pub use connection::{Incoming, Reader, WireError, Writer, connect, split, split_for_answers};
pub use documents::{
    CheckReport, CoalesceState, CoalesceStatus, Event, Finding, GrowReport, Job, MergePlan, Node, Reason,
    Repaired, ServedDisk, ServedRequests, Sr, SrState, TrimReport, TrimSkipped, Vdi,
};
pub use message::{Id, Message, Notification, Outcome, Reply, Request, Response};
pub use params::{
    Away, CoalesceParams, CopyOrigin, EventListParams, JobParams, KeeperAttach, KeeperOrigin, KeeperReceive,
    KeeperStart, ListParams, ReadWriteParams, ResolveParams, Resolved, SrCheckParams, SrCreateParams,
    SrGrowParams, SrIntroduceParams, SrParams, SrPolicyParams, SrProbeParams, VdiAttachParams,
    VdiCloneParams, VdiCopyParams, VdiCreateParams, VdiExportParams, VdiImportParams, VdiParams,
    VdiResizeParams, VdiRevertParams, VdiSetParams, VdiSnapshotParams, Vdis,
};
pub use schema::{check_params, methods, schema};
pub use text::Text;

/// The version of every document that carries `schema_version`.
pub const SCHEMA_VERSION: u32 = 1;

/// The most bytes the line of a request may have.
pub const LINE_LIMIT: usize = 1 << 20;

/// The most bytes the line of an answer may have: a list of some hundred thousand VDIs.
pub const ANSWER_LIMIT: usize = 256 << 20;

/// The most requests of one connection that may be under way.
pub const IN_FLIGHT_LIMIT: usize = 64;
