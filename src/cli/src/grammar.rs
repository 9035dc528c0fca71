//! The grammar as the shell, the manual and the parser see it: the declared commands, with examples in their help and with
//! completions for the names of SRs, VDIs and jobs. Both are put in by rule here, so that a new command cannot lack them.

use crate::args::Cli;
use crate::{complete, examples};
use clap::{Arg, Command, CommandFactory, FromArgMatches};
use clap_complete::engine::ArgValueCandidates;

/// The whole grammar.
pub(crate) fn grammar() -> Command {
    decorated(Cli::command(), "")
}

/// The command line of this process.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut grammar = grammar();
    let matches = grammar.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut grammar))
}

/// `command`, whose path below `catena` is `path`, and all below it.
fn decorated(command: Command, path: &str) -> Command {
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let mut command = command.mut_args(completed);
    if let Some(text) = examples::help(path) {
        let own = command.get_after_help().map(|own| format!("{own}\n")).unwrap_or_default();
        command = command.after_help(own + &text);
    }
    for name in verbs {
        let below = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(name, |verb| decorated(verb, &below));
    }
    command
}

/// An argument, with completions where its name says what it takes.
fn completed(argument: Arg) -> Arg {
    let candidates: fn() -> Vec<clap_complete::CompletionCandidate> = match argument.get_id().as_str() {
        "sr" => complete::srs,
        "vdi" | "vdis" | "snapshot" => complete::vdis,
        "job" => complete::jobs,
        "set" => complete::policy_keys,
        "name" if argument.is_positional() => complete::srs_and_vdis,
        _ => return argument,
    };
    argument.add(ArgValueCandidates::new(candidates))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every visible command that does something, with its path.
    fn commands() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        let mut waiting = vec![(String::new(), grammar())];
        while let Some((path, command)) = waiting.pop() {
            let below: Vec<&Command> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
            for verb in &below {
                waiting.push((format!("{path} {}", verb.get_name()).trim().to_owned(), (*verb).clone()));
            }
            if below.is_empty() {
                found.push((path, command));
            }
        }
        found
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        grammar().debug_assert();
        for (path, command) in commands() {
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
        }
    }

    #[test]
    fn every_command_has_examples_that_the_parser_accepts() {
        for (path, _) in commands() {
            let lines = examples::of(&path)
                .unwrap_or_else(|| panic!("no example of {path}: src/cli/src/examples.rs"));
            for line in lines {
                assert!(line.contains(path.as_str()), "{line} is no example of {path}");
                let ours = line.split(" | ").find(|part| part.starts_with("catena ")).unwrap();
                let words = ours.split_whitespace().take_while(|word| *word != ">");
                if let Err(error) = grammar().try_get_matches_from(words) {
                    panic!("{line}: {error}");
                }
            }
        }
        let paths: Vec<String> = commands().into_iter().map(|(path, _)| path).collect();
        for path in examples::paths() {
            assert!(paths.iter().any(|known| known == path), "there is no command {path}");
        }
    }
}
