//! `catena sr ...`: storage repositories.

use super::report;
use crate::client::{Client, read, read_field};
use crate::errors::{CliError, Exit};
use crate::jobs;
use crate::output::table::Rows;
use crate::output::{Output, record, tree};
use catena_rpc::{
    CheckReport, Finding, GrowReport, ListParams, Node, Sr, SrCheckParams, SrCreateParams, SrGrowParams,
    SrIntroduceParams, SrParams, SrPolicyParams, SrProbeParams, SrProbed, TrimReport, TrimSkipped,
};
use catena_types::{ErrorName, Failure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::path::{self, Path, PathBuf};

/// The verbs of `sr`.
#[derive(Debug, Subcommand)]
pub(crate) enum SrCommand {
    /// Make a new SR; prints its uuid
    Create(Create),
    /// Take over an existing SR, or a directory of XenServer VHDs; prints its uuid
    Introduce(Introduce),
    /// Say what is in a directory: an SR, images to be taken over, or neither
    Probe(Probe),
    /// List the SRs
    List,
    /// Show the record of an SR
    Show(Name),
    /// Show the space of an SR
    Stat(Name),
    /// Compare the containers of an SR with its catalog
    Scan(Name),
    /// Check every image of an SR; exits with 7 if something is wrong
    Check(Check),
    /// Give back space that is not used: inside images, or of the devices of an LVM SR
    Trim(Name),
    /// Take up what the devices of an LVM SR have grown by, and add devices to it
    Grow(Grow),
    /// Set how the coalesce worker of an SR behaves, also while it merges; without KEY=VALUE only show it
    Policy(Policy),
    /// Attach an SR to this host
    Attach(Attach),
    /// Detach an SR from this host
    Detach(Name),
    /// Forget a detached SR; its data stays
    Forget(Name),
    /// Destroy an SR without VDIs
    Destroy(Destroy),
}

/// Where an SR is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Place {
    /// The directory of a file SR
    #[arg(long, value_name = "DIR")]
    location: Option<PathBuf>,
    /// The block devices of an LVM SR
    #[arg(long, value_name = "DEV", value_delimiter = ',')]
    devices: Vec<PathBuf>,
}

impl Place {
    /// As the agent wants it: absolute paths, since its working directory is another.
    fn words(&self) -> Result<(String, Vec<String>), CliError> {
        let location = self.location.as_deref().map_or_else(|| Ok(String::new()), absolute)?;
        Ok((location, self.devices.iter().map(|device| absolute(device)).collect::<Result<_, _>>()?))
    }
}

/// A new SR.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The back end: file or lvm
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// Its name
    #[arg(long, value_name = "LABEL")]
    name: String,
    #[command(flatten)]
    place: Place,
    /// How disks take space
    #[arg(long, value_parser = ["thin", "thick", "dynamic"])]
    allocation: Option<String>,
}

/// An SR that exists.
#[derive(Debug, Args)]
pub(crate) struct Introduce {
    /// The back end: file or lvm
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    #[command(flatten)]
    place: Place,
    /// Its name; the directory's by default
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// Only say what is there; changes nothing
    #[arg(long)]
    dry_run: bool,
    /// Take an SR over from the host that owns it
    #[arg(long)]
    take_over: bool,
}

/// A place to look at.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// The back end: file or lvm
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    #[command(flatten)]
    place: Place,
}

/// Which SR.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The SR
    sr: String,
}

/// An SR to check.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The SR
    sr: String,
    /// Mend what can be mended without losing data; asks first
    #[arg(long)]
    repair: bool,
    /// Yes, repair
    #[arg(long, requires = "repair")]
    yes: bool,
}

/// What to set.
#[derive(Debug, Args)]
#[command(after_help = policy_keys())]
pub(crate) struct Policy {
    /// The SR
    sr: String,
    /// What to set, as listed below
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// An SR to attach.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The SR
    sr: String,
    /// Take it over from the host that owns it
    #[arg(long)]
    take_over: bool,
}

/// An SR that is to grow.
#[derive(Debug, Args)]
pub(crate) struct Grow {
    /// The SR
    sr: String,
    /// Block devices that it gets too; they must hold nothing
    #[arg(long, value_name = "DEV", value_delimiter = ',')]
    devices: Vec<PathBuf>,
}

/// An SR to destroy.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The SR
    sr: String,
    /// Yes, destroy it
    #[arg(long)]
    yes: bool,
}

/// Does what `command` says.
pub(crate) fn run(command: SrCommand, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    match command {
        SrCommand::Create(create) => self::create(create, agent, out),
        SrCommand::Introduce(introduce) if introduce.dry_run => dry_run(introduce, agent, out),
        SrCommand::Introduce(introduce) => self::introduce(introduce, agent, out),
        SrCommand::Probe(probe) => self::probe(probe, agent, out),
        SrCommand::List => list(agent, out),
        SrCommand::Show(Name { sr }) => {
            let document = agent.call("SR.get_record", &params(sr))?;
            out.show(&document, || Ok(record::render(&document)))?;
            Ok(Exit::OK)
        }
        SrCommand::Stat(Name { sr }) => stat(sr, agent, out),
        SrCommand::Scan(Name { sr }) => scan(sr, agent, out),
        SrCommand::Check(check) => self::check(check, agent, out),
        SrCommand::Trim(Name { sr }) => trim(sr, agent, out),
        SrCommand::Grow(asked) => grow(asked, agent, out),
        SrCommand::Policy(Policy { sr, set }) => policy(sr, set, agent, out),
        SrCommand::Attach(Attach { sr, take_over }) => {
            plain("SR.attach", &SrParams { take_over, ..params(sr) }, agent, out)
        }
        SrCommand::Detach(Name { sr }) => plain("SR.detach", &params(sr), agent, out),
        SrCommand::Forget(Name { sr }) => plain("SR.forget", &params(sr), agent, out),
        SrCommand::Destroy(Destroy { sr, yes: true }) => plain("SR.destroy", &params(sr), agent, out),
        SrCommand::Destroy(Destroy { sr, yes: false }) => {
            let message = format!("destroying '{sr}' cannot be undone");
            Err(Failure::new(ErrorName::BadRequest, message).hint("repeat the command with --yes").into())
        }
    }
}

fn params(sr: String) -> SrParams {
    SrParams { sr, take_over: false, request_id: None }
}

/// A verb whose answer has nothing to show.
fn plain(method: &str, params: &SrParams, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let document = agent.call(method, params)?;
    out.show(&document, || Ok(String::new()))?;
    Ok(Exit::OK)
}

/// An absolute path, as text.
fn absolute(location: &Path) -> Result<String, CliError> {
    let location = path::absolute(location).map_err(|error| CliError::file("use", location, &error))?;
    let name = location.display().to_string();
    location.into_os_string().into_string().map_err(|_| CliError::bad_request(format!("{name} is not UTF-8")))
}

fn create(create: Create, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let (location, devices) = create.place.words()?;
    let params = SrCreateParams {
        kind: create.kind,
        name_label: create.name,
        location,
        devices,
        allocation: create.allocation,
        request_id: None,
    };
    let document = agent.call("SR.create", &params)?;
    out.show(&document, || Ok(read_field::<String>(&document, "uuid")? + "\n"))?;
    Ok(Exit::OK)
}

fn introduce_params(introduce: Introduce) -> Result<SrIntroduceParams, CliError> {
    let (location, devices) = introduce.place.words()?;
    Ok(SrIntroduceParams {
        kind: introduce.kind,
        location,
        devices,
        name_label: introduce.name,
        dry_run: introduce.dry_run,
        take_over: introduce.take_over,
        request_id: None,
    })
}

fn introduce(introduce: Introduce, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let job = jobs::run(agent, out, "SR.introduce", &introduce_params(introduce)?, &[])?;
    out.show(&json!({"uuid": job.sr}), || Ok(format!("{}\n", job.sr)))?;
    out.say("coalescing is paused; `catena coalesce resume` lets it begin");
    Ok(Exit::OK)
}

fn dry_run(introduce: Introduce, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let document = agent.call("SR.introduce", &introduce_params(introduce)?)?;
    out.show(&document, || {
        let images: Vec<Node> = read_field(&document, "images")?;
        let findings: Vec<Finding> = read_field(&document, "findings")?;
        Ok(tree::render(&images) + &report::findings(&findings))
    })?;
    Ok(Exit::OK)
}

fn policy(
    sr: String,
    set: Vec<(String, String)>,
    agent: &mut Client,
    out: &mut Output,
) -> Result<Exit, CliError> {
    let policy = set.into_iter().map(|(key, value)| (key, Value::String(value))).collect();
    let document = agent.call("SR.set_policy", &SrPolicyParams { sr, policy, request_id: None })?;
    out.show(&document, || Ok(record::render(&document["policy"])))?;
    Ok(Exit::OK)
}

/// `KEY=VALUE`; the agent knows the keys.
fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn policy_keys() -> String {
    let keys = catena_types::Policy::KEYS.iter().map(|(name, values)| format!("  {name:<18}  {values}\n"));
    format!("Keys:\n{}", keys.collect::<String>())
}

fn probe(probe: Probe, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let (location, devices) = probe.place.words()?;
    let params = SrProbeParams { kind: probe.kind, location, devices };
    let document = agent.call("SR.probe", &params)?;
    out.show(&document, || Ok(probed(&read(&document)?)))?;
    Ok(Exit::OK)
}

/// What was found, for people.
fn probed(probed: &SrProbed) -> String {
    let mut text = record::line("found", 10, &json!(probed.found));
    let mut say = |name: &str, value: Value| text.push_str(&record::line(name, 10, &value));
    if let (Some(uuid), Some(label), Some(owner)) = (&probed.uuid, &probed.name_label, &probed.owner) {
        say("uuid", json!(uuid));
        say("name_label", json!(label));
        say("owner", json!(if owner.this_host { "this host" } else { &owner.host }));
        say("known", json!(probed.known));
    }
    if !probed.images.is_empty() {
        say("images", json!(probed.images.len()));
    }
    if !probed.text.is_empty() {
        say("text", json!(probed.text));
    }
    text
}

fn list(agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let document = agent.call("SR.list", &ListParams::default())?;
    out.show(&document, || Ok(sr_table(&read_field::<Vec<Sr>>(&document, "srs")?)))?;
    if !out.is_json() {
        for sr in read_field::<Vec<Sr>>(&document, "srs")? {
            if let Some(failure) = sr.error {
                out.say(&format!("{}: {failure}", crate::output::printable(&sr.name_label)));
            }
        }
    }
    Ok(Exit::OK)
}

fn sr_table(srs: &[Sr]) -> String {
    let mut rows = Rows::new(&["NAME", "UUID", "TYPE", "STATE", ">SIZE", ">USED", ">VIRTUAL", ">VDIS"]);
    for sr in srs {
        rows.push([
            sr.name_label.clone(),
            sr.uuid.to_string(),
            sr.kind.clone(),
            record::word(&sr.state),
            sr.physical_size.to_string(),
            sr.physical_utilisation.to_string(),
            sr.virtual_allocation.to_string(),
            sr.vdi_count.to_string(),
        ]);
    }
    rows.render()
}

fn stat(sr: String, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let document = agent.call("SR.stat", &params(sr))?;
    out.show(&document, || {
        const FIELDS: [&str; 6] = [
            "physical_size",
            "physical_utilisation",
            "virtual_allocation",
            "free_space",
            "vdi_count",
            "image_count",
        ];
        Ok(FIELDS.iter().map(|field| record::line(field, 20, &document[field])).collect())
    })?;
    Ok(Exit::OK)
}

fn scan(sr: String, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let job = jobs::run(agent, out, "SR.scan", &params(sr), &[])?;
    let document = job.result.unwrap_or(Value::Null);
    out.show(&document, || match document.get("findings") {
        Some(_) => Ok(report::findings(&read_field::<Vec<Finding>>(&document, "findings")?)),
        None => Ok(String::new()),
    })?;
    Ok(Exit::OK)
}

/// With `--repair` alone this is the plan; it is carried out after a yes.
fn check(asked: Check, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let Check { sr, repair, yes } = asked;
    let (exit, findings) = checked(&sr, yes, agent, out)?;
    let mends = findings.iter().filter(|finding| finding.repair.starts_with("--repair: ")).count();
    if !repair || yes || mends == 0 {
        return Ok(exit);
    }
    if out.is_json() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        out.say("nothing was changed: repeat the command with --yes");
        return Ok(exit);
    }
    eprint!("repair {mends} of {} findings? [y/N] ", findings.len());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| CliError::bad_request(error.to_string()))?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        out.say("nothing was changed");
        return Ok(exit);
    }
    Ok(checked(&sr, true, agent, out)?.0)
}

/// Checks, or repairs, and shows what was found.
fn checked(
    sr: &str,
    repair: bool,
    agent: &mut Client,
    out: &mut Output,
) -> Result<(Exit, Vec<Finding>), CliError> {
    let params = SrCheckParams { sr: sr.to_owned(), repair, request_id: None };
    let job = jobs::run(agent, out, "SR.check", &params, &[])?;
    let document = job.result.unwrap_or(Value::Null);
    let report: CheckReport = read(&document)?;
    let repaired = report.repaired.as_deref().unwrap_or_default();
    out.show(&document, || Ok(report::repaired(repaired) + &report::findings(&report.findings)))?;
    out.say(if report.clean { "clean" } else { "not clean" });
    Ok((if report.clean { Exit::OK } else { Exit::NOT_CLEAN }, report.findings))
}

fn trim(sr: String, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let job = jobs::run(agent, out, "SR.trim", &params(sr), &[])?;
    let document = job.result.unwrap_or(Value::Null);
    let report: TrimReport = read(&document)?;
    out.show(&document, || {
        Ok(match report.discarded {
            Some(discarded) => format!("{discarded} of free space given back\n"),
            None => format!("{} freed in {} images\n", report.freed, report.images),
        })
    })?;
    for TrimSkipped { object, reason } in report.skipped {
        out.say(&format!("{}: {}", crate::output::printable(&object), crate::output::printable(&reason)));
    }
    Ok(Exit::OK)
}

fn grow(asked: Grow, agent: &mut Client, out: &mut Output) -> Result<Exit, CliError> {
    let devices = asked.devices.iter().map(|device| absolute(device)).collect::<Result<_, _>>()?;
    let params = SrGrowParams { sr: asked.sr, devices, request_id: None };
    let job = jobs::run(agent, out, "SR.grow", &params, &[])?;
    let document = job.result.unwrap_or(Value::Null);
    let GrowReport { physical_size, grown_by, free_space, devices } = read(&document)?;
    out.show(&document, || Ok(format!("{grown_by} more: {physical_size}, {free_space} free\n")))?;
    if devices.is_empty() {
        out.say("the storage of this SR grows by itself");
    }
    Ok(Exit::OK)
}
