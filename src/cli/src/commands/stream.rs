//! `vdi import`, `export`, `write`, `read`: the command line opens the file, the agent gets its descriptor.

use crate::client::{Client, read_field};
use crate::errors::CliError;
use crate::files::{Source, Target};
use crate::jobs;
use crate::output::Output;
use catena_rpc::{ReadWriteParams, VdiExportParams, VdiImportParams};
use catena_types::Bytes;
use clap::Args;
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// An image to make a disk of.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The image; - is stdin
    file: PathBuf,
    /// The SR
    #[arg(long)]
    sr: String,
    /// The image's format
    #[arg(long, value_parser = ["auto", "raw", "vhd"], default_value = "auto")]
    format: String,
    /// The disk's name; the file's by default
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
}

/// A disk to write to a file.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The disk or snapshot, or the uuid of a base copy's image
    vdi: String,
    /// The file, which must not exist; - is stdout
    file: PathBuf,
    /// The file's format; vhd (a dynamic one) for a file named *.vhd, otherwise raw
    #[arg(long, value_parser = ["raw", "vhd", "vhd-fixed"])]
    format: Option<String>,
    /// Where the chain of a disk in use is too long, wait until it has been merged
    #[arg(long)]
    wait: bool,
}

/// Bytes to write.
#[derive(Debug, Args)]
pub(crate) struct WriteAt {
    /// The disk
    vdi: String,
    /// Where on the disk
    #[arg(long, default_value = "0")]
    offset: Bytes,
    /// How many bytes; the file's size by default
    #[arg(long)]
    length: Option<Bytes>,
    /// What to write; - is stdin
    file: PathBuf,
}

/// Bytes to read.
#[derive(Debug, Args)]
pub(crate) struct ReadAt {
    /// The disk
    vdi: String,
    /// Where on the disk
    #[arg(long, default_value = "0")]
    offset: Bytes,
    /// How many bytes
    #[arg(long)]
    length: Bytes,
    /// Where to write them: a new file; - is stdout
    file: PathBuf,
}

/// Imports and shows the new disk's uuid.
pub(crate) fn import(import: Import, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let source = Source::open(&import.file)?;
    let name_label = import.name.unwrap_or_else(|| name_of(&import.file));
    let params =
        VdiImportParams { sr: import.sr, format: Some(import.format), name_label, fd: 0, request_id: None };
    let job = jobs::run(agent, out, "VDI.import", &params, &[source.as_fd()])?;
    let document = job.result.unwrap_or(Value::Null);
    out.show(&document, || Ok(read_field::<String>(&document, "uuid")? + "\n"))
}

/// Exports to a new file, which is there afterwards only if it is whole.
pub(crate) fn export(export: Export, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    refuse_json_on_stdout(&export.file, out)?;
    let target = Target::create(&export.file)?;
    let format = export.format.unwrap_or_else(|| format_of(&export.file).to_owned());
    let params =
        VdiExportParams { vdi: export.vdi, format: Some(format), fd: 0, wait: export.wait, request_id: None };
    let job = jobs::run(agent, out, "VDI.export", &params, &[target.as_fd()])?;
    target.keep()?;
    out.say(&format!("{} exported", job.bytes_done));
    show_unless_stdout(&export.file, &job.result.unwrap_or(Value::Null), out)
}

/// Writes a file's bytes to the disk.
pub(crate) fn write(write: WriteAt, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    let source = Source::open(&write.file)?;
    let length = write.length.or_else(|| source.size().map(Bytes));
    let length = length.ok_or_else(|| CliError::bad_request("a pipe has no size: give --length"))?;
    let params = ReadWriteParams { vdi: write.vdi, offset: write.offset.0, length, fd: 0 };
    let document = agent.call_to_end("VDI.write", &params, &[source.as_fd()])?;
    out.show(&document, || Ok(String::new()))
}

/// Reads bytes of the disk into a new file.
pub(crate) fn read(read: ReadAt, agent: &mut Client, out: &mut Output) -> Result<(), CliError> {
    refuse_json_on_stdout(&read.file, out)?;
    let target = Target::create(&read.file)?;
    let params = ReadWriteParams { vdi: read.vdi, offset: read.offset.0, length: read.length, fd: 0 };
    let document = agent.call_to_end("VDI.read", &params, &[target.as_fd()])?;
    target.keep()?;
    show_unless_stdout(&read.file, &document, out)
}

fn is_dash(file: &Path) -> bool {
    file == Path::new("-")
}

fn refuse_json_on_stdout(file: &Path, out: &Output) -> Result<(), CliError> {
    if is_dash(file) && out.is_json() {
        return Err(CliError::bad_request("stdout carries the bytes: --json needs a file"));
    }
    Ok(())
}

/// The agent has written to stdout behind our back where the file is `-`; nothing may follow there.
fn show_unless_stdout(file: &Path, document: &Value, out: &mut Output) -> Result<(), CliError> {
    if is_dash(file) { Ok(()) } else { out.show(document, || Ok(String::new())) }
}

/// What a disk is called that comes from this file.
fn name_of(file: &Path) -> String {
    match file.file_stem() {
        Some(stem) if !is_dash(file) => stem.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}

fn format_of(file: &Path) -> &'static str {
    if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd")) {
        "vhd"
    } else {
        "raw"
    }
}
