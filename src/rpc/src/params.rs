//! Parameters of the methods, under the names of the records' fields. An SR or VDI is named by uuid, by a unique prefix of
//! its uuid (8 digits or more) or by a unique label; the agent turns names into uuids before a keeper sees them.

use catena_types::{Bytes, ImageId, SrUuid, VdiUuid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the front tells a keeper it has started, in `Keeper.start`, before anything else.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeeperStart {
    /// The SR: a new one's id for `create` and `introduce`.
    pub sr: SrUuid,
    /// The back end.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the SR is: a path, or the paths of its devices joined by commas.
    pub location: String,
    /// The same, where it lies on devices.
    #[serde(default)]
    pub devices: Vec<String>,
    /// This host's id.
    pub host_id: String,
    /// The id of its boot.
    pub boot_id: String,
    /// SRs that this host knows at other locations.
    #[serde(default)]
    pub elsewhere: Vec<SrUuid>,
    /// Whether merges may have a control group.
    #[serde(default)]
    pub groups: bool,
    /// Where the sockets and the state of served disks are, in a directory of its own each.
    pub run_dir: PathBuf,
    /// The group that may connect to served disks; none: root alone.
    #[serde(default)]
    pub socket_group: Option<u32>,
}

/// `SR.attach`, from the front to a keeper.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeeperAttach {
    /// Take the SR over from another host.
    #[serde(default)]
    pub take_over: bool,
    /// Where it could not be attached until now.
    #[serde(default)]
    pub away: Option<Away>,
}

/// An SR that could not be attached for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Away {
    /// For how long.
    pub seconds: u64,
    /// Why, at first.
    pub why: String,
}

/// `Keeper.copy_origin`, from the front to the keeper of the SR that is copied from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeeperOrigin {
    /// A VDI, or the uuid of an image (a base copy).
    pub vdi: String,
    /// Where a disk in use must be kept and its chain is too long, merge it first and then go on.
    #[serde(default)]
    pub wait: bool,
}

/// What is to be copied into another SR: the answer to `Keeper.copy_origin`, by which the front asks a keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyOrigin {
    /// The leaf of the chain.
    pub image: ImageId,
    /// What the copy takes at most.
    pub bytes: Bytes,
    /// The origin's name; none of a base copy.
    pub name_label: String,
}

/// `Keeper.copy_receive`, from the front to the keeper of the SR that gets a copy; the descriptor `fd` is what it comes through.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeeperReceive {
    /// The origin, with the name that the copy gets.
    pub origin: CopyOrigin,
    /// The client's key for retries.
    pub request_id: Option<String>,
    /// Which descriptor of the message the disk comes through.
    pub fd: u32,
}

/// Of methods that take none.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParams {}

/// `SR.create`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrCreateParams {
    /// `file` or `lvm`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub name_label: String,
    /// An absolute path, or `devices`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// Absolute paths of block devices, where the back end takes whole devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// `thin`, `thick` or `dynamic`, where the back end has a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<String>,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.introduce`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrIntroduceParams {
    /// `file` or `lvm`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An absolute path, or `devices`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// Absolute paths of block devices, where the back end takes whole devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Its name; the directory's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_label: Option<String>,
    /// Only say what is there.
    #[serde(default)]
    pub dry_run: bool,
    /// Take an SR of ours over from another host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.set_policy`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrPolicyParams {
    /// The SR.
    pub sr: String,
    /// What to set, by the names of the policy's fields, as JSON values or as the text that the command line takes. Without any
    /// the answer only says what is set.
    #[serde(default)]
    pub policy: BTreeMap<String, serde_json::Value>,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.probe`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrProbeParams {
    /// `file` or `lvm`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An absolute path, or `devices`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// Absolute paths of block devices, where the back end takes whole devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

/// `SR.check`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrCheckParams {
    /// The SR.
    pub sr: String,
    /// Mend what can be mended without losing data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repair: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.grow`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrGrowParams {
    /// The SR.
    pub sr: String,
    /// Absolute paths of block devices that it gets too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.attach detach forget destroy get_record stat scan trim`, `Coalesce.run resume`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SrParams {
    /// The SR.
    pub sr: String,
    /// With `attach`: take the SR over from another host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_over: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `SR.list`, `VDI.list`, `VDI.get_tree`, `Job.list`, `Coalesce.status`: of one SR or of all.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    /// Only this SR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// With `get_tree`: only the tree of this VDI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdi: Option<String>,
}

/// `VDI.create`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiCreateParams {
    /// Where.
    pub sr: String,
    /// Size in bytes.
    pub virtual_size: Bytes,
    /// Its name.
    #[serde(default)]
    pub name_label: String,
    /// A longer description.
    #[serde(default)]
    pub name_description: String,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.get_record`, `VDI.detach`, `VDI.destroy`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiParams {
    /// The VDI.
    pub vdi: String,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// One VDI, or several.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a name or a list of names")]
pub enum Vdis {
    /// A name.
    One(String),
    /// A list of names.
    Several(Vec<String>),
}

impl Vdis {
    /// All of them.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

impl From<Vec<String>> for Vdis {
    /// One name travels as such.
    fn from(mut names: Vec<String>) -> Self {
        match names.pop() {
            Some(name) if names.is_empty() => Self::One(name),
            last => {
                names.extend(last);
                Self::Several(names)
            }
        }
    }
}

/// `VDI.snapshot`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiSnapshotParams {
    /// The disk, or several of one SR: their snapshots are of one instant.
    pub vdi: Vdis,
    /// The snapshots' name; the disk's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_label: Option<String>,
    /// Where the chain is too long, merge it first and then go on.
    #[serde(default)]
    pub wait: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.clone`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiCloneParams {
    /// The disk or snapshot.
    pub vdi: String,
    /// The clones' name (numbered where there are several); the origin's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_label: Option<String>,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Where the chain is too long, merge it first and then go on.
    #[serde(default)]
    pub wait: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.attach`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiAttachParams {
    /// The disk or snapshot.
    pub vdi: String,
    /// For reading only: any number of such attachments at once, and as many `VDI.detach` to end them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.revert`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiRevertParams {
    /// The disk.
    pub vdi: String,
    /// A snapshot of it.
    pub snapshot: String,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.resize`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiResizeParams {
    /// The disk.
    pub vdi: String,
    /// Its new size in bytes.
    pub virtual_size: Bytes,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.set`: what is given is changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiSetParams {
    /// The VDI.
    pub vdi: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_label: Option<String>,
    /// Its description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_description: Option<String>,
    /// Free keys; one with an empty value is removed, those that are not named stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_config: BTreeMap<String, String>,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.copy`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiCopyParams {
    /// A VDI, or the uuid of an image (a base copy).
    pub vdi: String,
    /// Where the copy is made; where the origin is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// The copy's name; the origin's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_label: Option<String>,
    /// Where a disk in use must be kept and its chain is too long, merge it first and then go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.import`. The stream is the descriptor `fd`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiImportParams {
    /// Where.
    pub sr: String,
    /// `raw`, `vhd` or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name_label: String,
    /// Index of the descriptor in the message.
    pub fd: u32,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.export`. The stream is the descriptor `fd`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdiExportParams {
    /// A VDI, or the uuid of an image (a base copy).
    pub vdi: String,
    /// `raw`, `vhd` (dynamic) or `vhd-fixed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Index of the descriptor in the message.
    pub fd: u32,
    /// Where a disk in use must be kept and its chain is too long, merge it first and then go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// The client's key for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// `VDI.write`, `VDI.read`: of a detached disk, through the descriptor `fd`, from its beginning on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadWriteParams {
    /// The VDI.
    pub vdi: String,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: Bytes,
    /// Index of the descriptor in the message.
    pub fd: u32,
}

/// `Coalesce.pause`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoalesceParams {
    /// The SR.
    pub sr: String,
    /// With `pause`: until then (RFC 3339), for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// With `run`: answer only when there is nothing left to do, or it failed.
    #[serde(default)]
    pub wait: bool,
}

/// `Job.get cancel wait`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobParams {
    /// The job's id.
    pub job: String,
    /// With `wait`: answer after this many seconds at the latest, with the job as it is then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// `Event.list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventListParams {
    /// Only this SR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// Only later than this (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// At most so many, the latest; 1000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// `Keeper.resolve`, front to keeper only: which VDIs (and images, by uuid) a name means.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveParams {
    /// A uuid, a prefix of 8 digits or more, or a label.
    pub name: String,
}

/// One meaning of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The VDI's (or image's) uuid.
    pub uuid: VdiUuid,
    /// The VDI's label.
    pub name_label: String,
    /// Whether it is an image without a VDI (a base copy).
    pub is_image: bool,
}
