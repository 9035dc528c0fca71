//! The grammar above the nouns: global options and the list of nouns. The verbs of a noun stand with what they do, in
//! `commands`.

use crate::commands::{
    coalesce::CoalesceCommand, event::EventCommand, generate::GenerateCommand, job::JobCommand,
    sr::SrCommand, vdi::VdiCommand,
};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

const DEFAULT_SOCKET: &str = "/run/catena/agent.sock";

/// Manages storage repositories: disks, snapshots, clones and the merging of their chains.
#[derive(Debug, Parser)]
#[command(
    name = "catena",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "An SR or VDI is named by uuid, by a unique prefix of its uuid (8 digits or more), or by a unique label.\n\
                  Exit codes: 0 success, 1 failure, 2 usage, 3 not found or not attached, 4 in use, 5 no space,\n\
                  6 chain too long, 7 damage found, 8 not supported, 75 try again later, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The agent's socket [env: CATENA_SOCKET] [default: /run/catena/agent.sock]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "root")]
    pub(crate) socket: Option<PathBuf>,
    /// Talk to the agent that was started with this --root
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but data and errors
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Storage repositories
    #[command(subcommand, arg_required_else_help = true)]
    Sr(SrCommand),
    /// Virtual disks and their snapshots
    #[command(subcommand, arg_required_else_help = true)]
    Vdi(VdiCommand),
    /// The worker that shortens chains
    #[command(subcommand, arg_required_else_help = true)]
    Coalesce(CoalesceCommand),
    /// Long work
    #[command(subcommand, arg_required_else_help = true)]
    Job(JobCommand),
    /// What happened
    #[command(subcommand, arg_required_else_help = true)]
    Event(EventCommand),
    /// Files made of the commands themselves, for packages
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
    /// Show everything on a private agent in a temporary directory
    Demo,
}

impl Global {
    /// Where the agent listens: the options first, then `environment` (`CATENA_SOCKET`), then the default.
    pub(crate) fn socket_path(&self, environment: Option<OsString>) -> PathBuf {
        match (&self.socket, &self.root, environment) {
            (Some(path), _, _) => path.clone(),
            (None, Some(root), _) => root.join("run/catena/agent.sock"),
            (None, None, Some(path)) if !path.is_empty() => path.into(),
            _ => DEFAULT_SOCKET.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("catena").chain(line.split_whitespace()))
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_interface_is_understood() {
        for line in [
            "sr create --type file --name disks --location /srv/disks --allocation thin",
            "sr introduce --type file --location /srv/xen --dry-run",
            "sr introduce --type file --location /srv/disks --take-over",
            "sr probe --type file --location /srv/disks",
            "sr list",
            "sr list --json",
            "--root /tmp/x --quiet sr show disks",
            "sr stat disks",
            "sr scan disks",
            "sr check disks",
            "sr policy disks",
            "sr policy disks coalesce.rate=20MiB coalesce.window=22:00-06:00",
            "sr check disks --repair --yes",
            "sr trim disks",
            "sr grow disks",
            "sr grow disks --devices /dev/sdd,/dev/sde",
            "sr attach disks --take-over",
            "sr detach disks",
            "sr forget disks",
            "sr destroy disks --yes",
            "vdi create --sr disks --size 10GiB --name web01",
            "vdi list --sr disks",
            "vdi show web01",
            "vdi tree",
            "vdi tree web01 --dot",
            "vdi snapshot web01 --name before --wait",
            "vdi snapshot web01 web02 --name before",
            "vdi clone web01 --name desk --count 40 --wait",
            "vdi revert web01 before",
            "vdi copy web01 --sr other --name copy",
            "vdi resize web01 20GiB",
            "vdi set web01 name_label=web other_config.owner=me other_config.old=",
            "vdi destroy a b c --yes",
            "vdi import - --sr disks --format auto --name web01",
            "vdi export web01 - --format vhd",
            "vdi write web01 --offset 512 -",
            "vdi read web01 --offset 0 --length 1MiB out.raw",
            "coalesce status",
            "coalesce status disks --watch",
            "coalesce run disks --wait",
            "coalesce pause disks --until 2030-01-01T07:00:00Z",
            "coalesce resume disks",
            "job list",
            "job show 12345678-1",
            "job wait 12345678-1",
            "job cancel 12345678-1",
            "event list --since 1h",
            "event watch",
            "generate man /tmp/man",
            "demo",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for (line, kind) in [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("sr", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("disk list", ErrorKind::InvalidSubcommand),
            ("sr show", ErrorKind::MissingRequiredArgument),
            ("sr create --name x --location /x", ErrorKind::MissingRequiredArgument),
            ("--socket a --root b sr list", ErrorKind::ArgumentConflict),
            ("vdi create --sr a --name b --size 10GB", ErrorKind::ValueValidation),
            ("vdi clone a --count 0", ErrorKind::ValueValidation),
            ("vdi snapshot", ErrorKind::MissingRequiredArgument),
            ("vdi resize a", ErrorKind::MissingRequiredArgument),
            ("vdi set a", ErrorKind::MissingRequiredArgument),
            ("vdi destroy", ErrorKind::MissingRequiredArgument),
            ("vdi export a b --format qcow2", ErrorKind::InvalidValue),
            ("event list --since never", ErrorKind::ValueValidation),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}");
            assert!(error.use_stderr(), "{line}");
        }
    }

    #[test]
    fn the_socket_comes_from_options_then_environment() {
        let socket = |line: &str, env: Option<&str>| {
            parse(line).unwrap().global.socket_path(env.map(OsString::from)).display().to_string()
        };
        assert_eq!(socket("sr list", None), DEFAULT_SOCKET);
        assert_eq!(socket("sr list", Some("")), DEFAULT_SOCKET);
        assert_eq!(socket("sr list", Some("/e")), "/e");
        assert_eq!(socket("--socket /s sr list", Some("/e")), "/s");
        assert_eq!(socket("sr list --root /r", Some("/e")), "/r/run/catena/agent.sock");
    }
}
