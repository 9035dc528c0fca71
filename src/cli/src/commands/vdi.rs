//! `catena vdi ...`: disks and their snapshots. What moves bytes through files is in `stream`.

use super::stream::{self, Export, Import, ReadAt, WriteAt};
use crate::client::{Client, read, read_field};
use crate::errors::{CliError, Exit};
use crate::jobs;
use crate::output::table::Rows;
use crate::output::{Output, dot, record, tree};
use catena_rpc::{
    ListParams, Node, SrParams, Text, Vdi, VdiAttachParams, VdiCloneParams, VdiCopyParams, VdiCreateParams,
    VdiParams, VdiResizeParams, VdiRevertParams, VdiSetParams, VdiSnapshotParams,
};
use catena_types::{Bytes, ErrorName, Failure, VdiUuid};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// The verbs of `vdi`.
#[derive(Debug, Subcommand)]
pub(crate) enum VdiCommand {
    /// Make an empty disk; prints its uuid
    Create(Create),
    /// List disks and snapshots
    List(List),
    /// Show the record of a disk or snapshot
    Show(Name),
    /// Show how images hang together
    Tree(Tree),
    /// Serve a disk to a guest or another program; prints its NBD URI
    Attach(Attach),
    /// End an attachment: what was written is durable when this returns
    Detach(Name),
    /// Take snapshots; prints a uuid a line
    Snapshot(Snapshot),
    /// Make disks that share the blocks of a disk or snapshot; prints a uuid a line
    Clone(CloneVdi),
    /// Put a disk back to one of its snapshots: what it holds now is lost
    Revert(Revert),
    /// Copy a disk or snapshot into a new disk that shares nothing; prints its uuid
    Copy(Copy),
    /// Make a disk larger
    Resize(Resize),
    /// Change names and free keys of a disk or snapshot
    Set(Set),
    /// Destroy disks or snapshots
    Destroy(Destroy),
    /// Make a disk of an image; prints its uuid
    Import(Import),
    /// Write a disk to a new file
    Export(Export),
    /// Write bytes to a detached disk
    #[command(hide = true)]
    Write(WriteAt),
    /// Read bytes of a detached disk
    #[command(hide = true)]
    Read(ReadAt),
}

/// A new disk.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The SR
    #[arg(long)]
    sr: String,
    /// Its size: bytes, or with KiB, MiB, GiB, TiB
    #[arg(long)]
    size: Bytes,
    /// Its name
    #[arg(long, value_name = "LABEL")]
    name: String,
}

/// Which disks to list.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this SR
    #[arg(long)]
    sr: Option<String>,
}

/// Which disk.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The disk or snapshot
    vdi: String,
}

/// Which tree.
#[derive(Debug, Args)]
pub(crate) struct Tree {
    /// Only those of this SR, or the one of this disk
    #[arg(value_name = "SR|VDI")]
    name: Option<String>,
    /// For graphviz
    #[arg(long)]
    dot: bool,
}

/// A disk to serve.
#[derive(Debug, Args)]
#[command(after_help = "\
The URI is for any NBD client, and its socket for those that want a path:
  nbdinfo URI
  qemu-img info URI
  nbd-client -unix SOCKET /dev/nbd0
  qemu-system-x86_64 ... -device virtio-blk-pci,drive=web01 \\
    -blockdev driver=nbd,node-name=web01-1,server.type=unix,server.path=SOCKET,reconnect-delay=60,discard=unmap \\
    -blockdev driver=raw,node-name=web01,file=web01-1,discard=unmap
With reconnect-delay a guest does not notice that the process which serves its disk was replaced. The node over the
connection is for a disk that grows: QEMU then gets another connection under it.
")]
pub(crate) struct Attach {
    /// The disk or snapshot
    vdi: String,
    /// For reading only: any number of times at once, each with a detach of its own
    #[arg(long)]
    read_only: bool,
}

/// Snapshots to take.
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    /// The disk, or several of one SR: of one instant, all or none
    #[arg(required = true, value_name = "VDI")]
    vdis: Vec<String>,
    /// Their name; the disk's by default
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// Where the chain is too long, wait until it has been merged
    #[arg(long)]
    wait: bool,
}

/// Clones to make.
#[derive(Debug, Args)]
pub(crate) struct CloneVdi {
    /// The disk or snapshot
    vdi: String,
    /// Their name (numbered where there are several); the origin's by default
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// How many
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Where the chain is too long, wait until it has been merged
    #[arg(long)]
    wait: bool,
}

/// A disk to put back.
#[derive(Debug, Args)]
pub(crate) struct Revert {
    /// The disk
    vdi: String,
    /// A snapshot of it
    snapshot: String,
}

/// A copy to make.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The disk or snapshot, or the uuid of a base copy's image
    vdi: String,
    /// The SR that gets the copy; the disk's by default
    #[arg(long)]
    sr: Option<String>,
    /// Its name; the origin's by default
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// Where the chain of a disk in use is too long, wait until it has been merged
    #[arg(long)]
    wait: bool,
}

/// A disk to make larger.
#[derive(Debug, Args)]
#[command(after_help = "\
A disk that is attached grows while it is used. NBD clients see the new size when they connect; how a running QEMU
learns of it without losing a request is in docs/operations.md.
")]
pub(crate) struct Resize {
    /// The disk
    vdi: String,
    /// Its new size: bytes, or with KiB, MiB, GiB, TiB
    size: Bytes,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The disk or snapshot
    vdi: String,
    /// name_label, name_description, other_config.KEY, or a limit while the disk is attached: qos.iops, qos.bytes, qos.iops_burst,
    /// qos.bytes_burst, qos.io_class; an empty value removes a key or limit
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// Disks to destroy.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The disks or snapshots, by uuid (by label only with --yes)
    #[arg(required = true, value_name = "VDI")]
    vdis: Vec<String>,
    /// Yes, destroy what these labels mean
    #[arg(long)]
    yes: bool,
}

/// Does what `command` says.
pub(crate) fn run(command: VdiCommand, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    match command {
        VdiCommand::Create(create) => self::create(create, agent, out)?,
        VdiCommand::List(List { sr }) => list(sr, agent, out)?,
        VdiCommand::Show(Name { vdi }) => {
            let document = agent.call("VDI.get_record", &params(&vdi))?;
            out.show(&document, || Ok(record::render(&document)))?;
        }
        VdiCommand::Tree(tree) => self::tree(tree, agent, out)?,
        VdiCommand::Attach(Attach { vdi, read_only }) => {
            let params = VdiAttachParams { vdi, read_only, request_id: None };
            let document = agent.call_to_end("VDI.attach", &params, &[])?;
            out.show(&document, || Ok(read_field::<String>(&document, "uri")? + "\n"))?;
        }
        VdiCommand::Detach(Name { vdi }) => {
            out.show(&agent.call_to_end("VDI.detach", &params(&vdi), &[])?, || Ok(String::new()))?;
        }
        VdiCommand::Snapshot(Snapshot { vdis, name, wait }) => {
            let params = VdiSnapshotParams { vdi: vdis.into(), name_label: name, wait, request_id: None };
            show_uuids(&agent.call("VDI.snapshot", &params)?, out)?;
        }
        VdiCommand::Clone(CloneVdi { vdi, name, count, wait }) => {
            let params = VdiCloneParams { vdi, name_label: name, count, wait, request_id: None };
            show_uuids(&agent.call("VDI.clone", &params)?, out)?;
        }
        VdiCommand::Revert(Revert { vdi, snapshot }) => {
            let params = VdiRevertParams { vdi, snapshot, request_id: None };
            out.show(&agent.call_to_end("VDI.revert", &params, &[])?, || Ok(String::new()))?;
        }
        VdiCommand::Copy(copy) => self::copy(copy, agent, out)?,
        VdiCommand::Resize(Resize { vdi, size }) => {
            let params = VdiResizeParams { vdi, virtual_size: size, request_id: None };
            out.show(&agent.call_to_end("VDI.resize", &params, &[])?, || Ok(String::new()))?;
        }
        VdiCommand::Set(Set { vdi, changes }) => {
            let params = changes_of(vdi, &changes)?;
            out.show(&agent.call("VDI.set", &params)?, || Ok(String::new()))?;
        }
        VdiCommand::Destroy(Destroy { vdis, yes }) => destroy(&vdis, yes, agent, out)?,
        VdiCommand::Import(import) => stream::import(import, agent, out)?,
        VdiCommand::Export(export) => stream::export(export, agent, out)?,
        VdiCommand::Write(write) => stream::write(write, agent, out)?,
        VdiCommand::Read(read) => stream::read(read, agent, out)?,
    }
    Ok(Exit::OK)
}

fn params(vdi: &str) -> VdiParams {
    VdiParams { vdi: vdi.to_owned(), request_id: None }
}

fn create(create: Create, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let params = VdiCreateParams {
        sr: create.sr,
        virtual_size: create.size,
        name_label: create.name,
        name_description: String::new(),
        request_id: None,
    };
    let document = agent.call("VDI.create", &params)?;
    out.show(&document, || Ok(read_field::<String>(&document, "uuid")? + "\n"))
}

fn copy(copy: Copy, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let Copy { vdi, sr, name, wait } = copy;
    let params = VdiCopyParams { vdi, sr, name_label: name, wait, request_id: None };
    let job = jobs::run(agent, out, "VDI.copy", &params, &[])?;
    let document = job.result.unwrap_or(Value::Null);
    out.show(&document, || Ok(read_field::<String>(&document, "uuid")? + "\n"))
}

/// What `KEY=VALUE` words ask for; a key that is given twice means its last value.
fn changes_of(vdi: String, words: &[String]) -> Result<VdiSetParams, CliError> {
    let mut params = VdiSetParams { vdi, ..VdiSetParams::default() };
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| CliError::bad_request(format!("'{word}' is not of the form KEY=VALUE")))?;
        let value = value.to_owned();
        match (key, key.strip_prefix("other_config.")) {
            ("name_label", _) => params.name_label = Some(value),
            ("name_description", _) => params.name_description = Some(value),
            (_, Some(free)) if !free.is_empty() => drop(params.other_config.insert(free.to_owned(), value)),
            (limit, _) if limit.starts_with("qos.") => {
                drop(params.other_config.insert(limit.to_owned(), value));
            }
            _ => {
                let keys = "name_label, name_description, other_config.KEY and qos.KEY can be set";
                return Err(CliError::bad_request(format!("there is no key '{key}': {keys}")));
            }
        }
    }
    Ok(params)
}

fn show_uuids(document: &Value, out: &mut Output) -> Result<(), CliError> {
    out.show(document, || {
        let uuids: Vec<VdiUuid> = read_field(document, "vdis")?;
        Ok(uuids.iter().map(|uuid| format!("{uuid}\n")).collect())
    })
}

fn list(sr: Option<String>, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let document = agent.call_for_text("VDI.list", &ListParams { sr, vdi: None })?;
    out.show_text(&document, |document| {
        let mut rows =
            Rows::new(&["NAME", "UUID", ">SIZE", ">OWN", ">SHARED", ">DEPTH", "SNAPSHOT", "ATTACHED"]);
        for vdi in read_field::<Vec<Vdi>>(document, "vdis")? {
            rows.push([
                vdi.name_label,
                vdi.uuid.to_string(),
                vdi.virtual_size.to_string(),
                vdi.own_bytes.to_string(),
                vdi.shared_bytes.to_string(),
                vdi.depth.to_string(),
                vdi.is_a_snapshot.to_string(),
                vdi.attached.unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        Ok(rows.render())
    })
}

fn tree(tree: Tree, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    if tree.dot && out.is_json() {
        return Err(CliError::bad_request("--dot and --json are two formats: choose one"));
    }
    let document = get_tree(tree.name, agent)?;
    out.show_text(&document, |document| {
        let roots: Vec<Node> = read_field(document, "roots")?;
        Ok(if tree.dot { dot::render(&roots) } else { tree::render(&roots) })
    })
}

/// The trees of what a name means, which may be an SR or a disk: of the SR if there is one.
fn get_tree(name: Option<String>, agent: &mut Client) -> Result<Text, CliError> {
    let Some(name) = name else { return agent.call_for_text("VDI.get_tree", &ListParams::default()) };
    let record = SrParams { sr: name.clone(), take_over: false, request_id: None };
    match agent.call("SR.get_record", &record) {
        Ok(_) => return agent.call_for_text("VDI.get_tree", &ListParams { sr: Some(name), vdi: None }),
        // Waiting helps where an SR exists and does not answer; this one does not exist.
        Err(CliError::Failure(failure)) if failure.name == ErrorName::SrUnavailable && !failure.retry => {}
        Err(other) => return Err(other),
    }
    match agent.call_for_text("VDI.get_tree", &ListParams { sr: None, vdi: Some(name.clone()) }) {
        Err(CliError::Failure(failure)) if failure.name == ErrorName::VdiMissing => {
            let message = format!("'{name}' is neither an SR nor a VDI");
            Err(Failure { message, ..failure }.into())
        }
        answer => answer,
    }
}

/// Destroys the disks one after the other. All names are looked up before the first is destroyed, so that a wrong one stops
/// the command while nothing has happened.
fn destroy(names: &[String], yes: bool, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let mut uuids: Vec<VdiUuid> = Vec::new();
    for name in names {
        let vdi: Vdi = read(&agent.call("VDI.get_record", &params(name))?)?;
        if !yes && name.parse() != Ok(vdi.uuid) {
            let message = format!("'{name}' is not a full uuid, and destroying cannot be undone");
            let hint = format!("it means {}: give that uuid, or --yes", vdi.uuid);
            return Err(Failure::new(ErrorName::BadRequest, message)
                .hint(hint)
                .object("vdi", vdi.uuid)
                .into());
        }
        if !uuids.contains(&vdi.uuid) {
            uuids.push(vdi.uuid);
        }
    }
    let mut destroyed: Vec<String> = Vec::new();
    for uuid in uuids {
        match agent.call_to_end("VDI.destroy", &params(&uuid.to_string()), &[]) {
            Ok(_) => destroyed.push(uuid.to_string()),
            Err(CliError::Failure(failure)) if !destroyed.is_empty() => {
                let message = format!("{} (destroyed before: {})", failure.message, destroyed.join(", "));
                return Err(Failure { message, ..failure }.object("destroyed", destroyed.join(",")).into());
            }
            Err(error) => return Err(error),
        }
        agent.interrupt().check(crate::interrupt::Patience::FirstSignal)?;
    }
    out.show(&json!({"destroyed": destroyed}), || Ok(String::new()))
}
