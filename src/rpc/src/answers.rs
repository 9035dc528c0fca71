//! What methods answer around the documents: lists, uuids of what was made, reports. The schema names them, clients may read
//! them; the agent and its keepers write the same shapes.

use crate::documents::{CoalesceStatus, Event, Finding, Job, Node, ServedDisk, Sr, Vdi};
use catena_types::{Bytes, Failure, Policy, SrUuid, VdiUuid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing but the word that it was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// What a create, an introduction or an import has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Made<T> {
    /// Its uuid.
    pub uuid: T,
}

/// Snapshots or clones that were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MadeVdis {
    /// Their uuids.
    pub vdis: Vec<VdiUuid>,
}

/// A disk that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// The disk.
    pub vdi: VdiUuid,
    /// `rw` or `ro`.
    pub mode: String,
    /// Where, for any NBD client: `nbd+unix:///?socket=<path>`.
    pub uri: String,
}

/// The size that a disk has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resized {
    /// In bytes.
    pub virtual_size: Bytes,
}

/// What `catena vdi destroy` has destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destroyed {
    /// Their uuids.
    pub destroyed: Vec<VdiUuid>,
}

/// The policy of an SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrPolicy {
    /// The SR.
    pub sr: SrUuid,
    /// What is set.
    pub policy: Policy,
}

/// Bytes that went through a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// How many.
    pub bytes: Bytes,
}

/// An SR of which a list over all SRs has nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unavailable {
    /// The SR.
    pub sr: SrUuid,
    /// Why.
    pub error: Failure,
}

macro_rules! list {
    ($(#[$doc:meta])* $name:ident, $array:ident: $item:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub struct $name {
            /// The items.
            pub $array: Vec<$item>,
            /// SRs that should be in the list and are not.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub unavailable: Vec<Unavailable>,
        }
    };
}

list!(
    /// `SR.list`.
    SrList, srs: Sr
);
list!(
    /// `VDI.list`.
    VdiList, vdis: Vdi
);
list!(
    /// `VDI.get_tree`.
    Tree, roots: Node
);
list!(
    /// `Coalesce.status`.
    CoalesceList, srs: CoalesceStatus
);
list!(
    /// `Job.list`.
    JobList, jobs: Job
);
list!(
    /// `Event.list`.
    EventList, events: Event
);

/// What an introduction would find, or has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// The trees.
    pub images: Vec<Node>,
    /// What is remarkable about them.
    pub findings: Vec<Finding>,
}

/// What an introduction has made of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Introduced {
    /// The SR.
    pub uuid: SrUuid,
    /// What was remarkable; absent for an SR that was ours already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// `SR.introduce`: a job, or with `dry_run` what it would find.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Introduction {
    /// The job that takes the SR over.
    Job(Box<Job>),
    /// What is there.
    Survey(Survey),
}

/// What a comparison of containers and catalog came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScanReport {
    /// How many images are not as the catalog had them.
    pub changed: u64,
    /// Containers that belong to nothing.
    pub foreign: Vec<String>,
}

/// `Agent.version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The version of the documents.
    pub schema_version: u32,
    /// The version of the program.
    pub version: String,
}

/// The keeper of an SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeeperStats {
    /// The SR.
    pub sr: SrUuid,
    /// `detached`, `starting`, `attached`, `waiting`, `stopping`, `failed`.
    pub state: String,
    /// The process of its keeper.
    pub keeper_pid: Option<u32>,
    /// How often a keeper that had died was started again.
    pub restarts: u64,
}

/// `Agent.stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStats {
    /// The agent's process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Whether it was started with `--root`.
    pub root: bool,
    /// What a private agent leaves out.
    pub skipped: Vec<String>,
    /// Open connections.
    pub connections: u64,
    /// The SRs.
    pub srs: Vec<KeeperStats>,
    /// The disks that are served; without those whose keeper or process does not answer at once.
    #[serde(default)]
    pub disks: Vec<ServedDisk>,
}

/// The `error` of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RpcError {
    /// XenServer's number.
    pub code: i32,
    /// One line.
    pub message: String,
    /// All that is known.
    pub data: Failure,
}

/// What `catena --json` prints on stderr when it fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// The failure with its code, or a name and a message where the command line itself has failed.
    pub error: ErrorWords,
}

/// The least that an error says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorWords {
    /// The name of its class; `interrupted`, `cancelled`, `stdout`, `demo` for those of the command line.
    pub name: String,
    /// One line.
    pub message: String,
    /// XenServer's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The next thing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What is at a location, and what can be made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrProbed {
    /// Where it was looked.
    pub location: String,
    /// `sr` (an SR of ours), `images` (`sr introduce` takes them over), `empty` (`sr create` makes an SR), `foreign`.
    pub found: String,
    /// The SR.
    pub uuid: Option<SrUuid>,
    /// Its name when it was made.
    pub name_label: Option<String>,
    /// The host that it belongs to.
    pub owner: Option<SrOwner>,
    /// Whether this host knows the SR at this location.
    #[serde(default)]
    pub known: bool,
    /// Names of files that may be images.
    pub images: Vec<String>,
    /// What is foreign.
    pub text: String,
}

/// The host that an SR belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrOwner {
    /// Its id.
    pub host: String,
    /// The boot in which it took the SR.
    pub boot: String,
    /// Whether it is this one.
    pub this_host: bool,
}
