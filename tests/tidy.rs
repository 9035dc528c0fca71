//! The tree keeps its own rules: who may depend on whom, sizes of files, headers, scripts, links and commands in the documents.
//!
//! Each check is a function from text to complaints, tried on good and bad text at the end of this file; the tests above that
//! run the checks over the tree. The documents are the reference: the table of allowed edges stands in `docs/architecture.md`.

use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The most lines of code in a file, tests aside.
const CODE_LIMIT: usize = 600;
/// The most lines of a program's main.
const MAIN_LIMIT: usize = 60;

/// Each crate with the crates of this workspace that it may depend on.
type Edges = BTreeMap<String, BTreeSet<String>>;

#[test]
fn dependencies_are_those_of_the_architecture() -> Result<()> {
    let allowed = allowed_edges(&read("docs/architecture.md")?)?;
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec()?;
    let names: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let actual: Edges = metadata
        .packages
        .iter()
        .map(|package| {
            let uses = package.dependencies.iter().map(|dependency| dependency.name.clone());
            (package.name.to_string(), uses.filter(|name| names.contains(name)).collect())
        })
        .collect();
    none(&compare_edges(&allowed, &actual))
}

#[test]
fn every_source_file_is_in_order() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files_under(&["src", "sr-plugins", "tests"])?.iter().filter(|path| has_extension(path, "rs"))
    {
        let text = read(path)?;
        complaints.extend(check_source(&text).into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    none(&complaints)
}

#[test]
fn every_main_is_small_and_names_only_its_library() -> Result<()> {
    let mut complaints = Vec::new();
    let mains = files_under(&["src/bin"])?;
    ensure!(mains.len() >= 4, "only {} programs", mains.len());
    for path in &mains {
        let program = path.file_stem().context("a file without a name")?.to_string_lossy();
        complaints.extend(check_main(&program, &read(path)?));
    }
    none(&complaints)
}

#[test]
fn every_script_can_be_run_and_stops_at_errors() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files_under(&["tests", "packaging", ".ci"])?.iter().filter(|path| path.extension().is_none())
    {
        let executable = fs::metadata(root().join(path))?.permissions().mode() & 0o111 == 0o111;
        let what = check_script(&read(path)?, executable);
        complaints.extend(what.into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    none(&complaints)
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    let mut complaints = Vec::new();
    for path in documents()? {
        let folder = root().join(path.parent().context("a document without a folder")?);
        for link in local_links(&read(&path)?) {
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            let found = target.exists()
                && (heading.is_empty() || anchors(&fs::read_to_string(&target)?).contains(heading));
            if !found {
                complaints.push(format!("{}: {link} leads nowhere", path.display()));
            }
        }
    }
    none(&complaints)
}

#[test]
fn commands_in_the_documents_exist() -> Result<()> {
    let catena = env!("CARGO_BIN_EXE_catena");
    let understood = |words: &[&str]| -> Result<bool> {
        let mut command = Command::new(catena);
        let quiet = command.args(words).arg("--help").stdout(Stdio::null()).stderr(Stdio::null());
        Ok(quiet.status()?.success())
    };
    ensure!(!understood(&["no-such-noun", "list"])?, "{catena} understands everything");
    let mut complaints = Vec::new();
    for path in documents()? {
        for command in shell_commands(&read(&path)?) {
            let known = match command.split_once(' ').unwrap_or((&command, "")) {
                ("catena", words) => understood(&words.split(' ').collect::<Vec<_>>())?,
                (script, _) => root().join(script).exists() || script.starts_with("target/debug/catena"),
            };
            if !known {
                complaints.push(format!("{}: there is no command {command}", path.display()));
            }
        }
    }
    none(&complaints)
}

// What the checks read.

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// All files below the folders, relative to the root; what cargo made is left out.
fn files_under(folders: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    while let Some(folder) = pending.pop() {
        let entries =
            fs::read_dir(root().join(&folder)).with_context(|| format!("no folder {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            match entry.file_type()? {
                kind if kind.is_dir() && entry.file_name() != "target" => pending.push(path),
                kind if kind.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    ensure!(!found.is_empty(), "no files below {folders:?}");
    found.sort();
    Ok(found)
}

fn documents() -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    found.extend(files_under(&["docs", "tests"])?.into_iter().filter(|path| has_extension(path, "md")));
    Ok(found)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn none(complaints: &[String]) -> Result<()> {
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

// The checks.

/// Reads the table whose head is `| crate | may depend on |`.
fn allowed_edges(document: &str) -> Result<Edges> {
    let mut lines = document.lines().skip_while(|line| *line != "| crate | may depend on |").skip(2);
    let rows: Edges = lines
        .by_ref()
        .map_while(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once("` |"))
        .map(|(name, uses)| {
            (name.to_owned(), uses.split('`').skip(1).step_by(2).map(str::to_owned).collect())
        })
        .collect();
    ensure!(!rows.is_empty(), "there is no table of allowed edges");
    Ok(rows)
}

fn compare_edges(allowed: &Edges, actual: &Edges) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, uses) in actual {
        match allowed.get(name) {
            None => complaints.push(format!("{name} is not in the table")),
            Some(may) => {
                complaints
                    .extend(uses.difference(may).map(|other| format!("{name} must not depend on {other}")));
            }
        }
    }
    let gone = allowed.keys().filter(|name| !actual.contains_key(*name));
    complaints.extend(gone.map(|name| format!("{name} is in the table and not in the workspace")));
    complaints
}

fn check_source(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if !text.starts_with("//!") {
        complaints.push("does not begin with what it is for (//!)".to_owned());
    }
    let lines = code_lines(text);
    if lines > CODE_LIMIT {
        complaints.push(format!("{lines} lines of code, the limit is {CODE_LIMIT}"));
    }
    // Put together here, so that this file may name them.
    let unwanted =
        [concat!("#[ig", "nore"), concat!("to", "do!("), concat!("TO", "DO"), concat!("FIX", "ME")];
    complaints.extend(unwanted.iter().filter(|word| text.contains(**word)).map(|word| format!("has {word}")));
    complaints
}

/// Lines that are neither blank nor comment, up to the tests at the end.
fn code_lines(text: &str) -> usize {
    let end = text.rfind("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// A main may name one library of ours; the keeper's also the back ends.
fn check_main(program: &str, text: &str) -> Vec<String> {
    let library = match program {
        "catena" => "catena_cli".to_owned(),
        "catenad" => "catena_agent".to_owned(),
        other => other.replace('-', "_"),
    };
    let allowed = |name: &str| {
        name == library
            || (program == "catena-keeper" && name.starts_with("catena_sr_") && name != "catena_sr_api")
    };
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named: BTreeSet<&str> = code
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with("catena_"))
        .collect();
    let mut complaints = Vec::new();
    if !named.contains(library.as_str()) {
        complaints.push(format!("{program} does not use {library}"));
    }
    let others = named.iter().filter(|name| !allowed(name));
    complaints.extend(others.map(|name| format!("{program} must not name {name}")));
    let lines = text.lines().count();
    if lines > MAIN_LIMIT {
        complaints.push(format!("{program} has {lines} lines, the limit is {MAIN_LIMIT}"));
    }
    complaints
}

/// A shell script's first command is `set -eu` with whatever else.
fn check_script(text: &str, executable: bool) -> Vec<&'static str> {
    let mut complaints = Vec::new();
    let first = text.lines().next().unwrap_or_default();
    if !executable {
        complaints.push("is not executable");
    }
    if !first.starts_with("#!") {
        complaints.push("does not begin with #!");
    }
    let mut commands = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    if first.ends_with("sh") && !commands.next().is_some_and(|line| line.starts_with("set -eu")) {
        complaints.push("does not begin with set -eu");
    }
    complaints
}

/// Targets of the links of a Markdown text that lead neither to the web nor to an address.
fn local_links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains(':')).map(str::to_owned).collect()
}

/// The anchors that a Markdown text's headings have.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let plain = heading.to_lowercase().replace(' ', "-");
            plain.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect()
}

/// What a reader is told to type, as far as it is ours: `catena NOUN VERB`, and the path of a script of this tree.
fn shell_commands(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        let mut words = line.split_whitespace().skip_while(|word| word.contains('='));
        match words.next() {
            Some("catena") if inside => {
                let command: Vec<&str> = words
                    .take(2)
                    .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
                    .collect();
                found.insert(format!("catena {}", command.join(" ")));
            }
            Some(path) if inside && path.contains('/') => {
                found.insert(path.to_owned());
            }
            _ => {}
        }
    }
    found
}

mod checks {
    //! The checks themselves, on text that is wrong in one way.

    use super::*;

    fn edges(rows: &[(&str, &[&str])]) -> Edges {
        rows.iter()
            .map(|(name, uses)| ((*name).into(), uses.iter().map(|other| (*other).into()).collect()))
            .collect()
    }

    #[test]
    fn the_table_of_edges_is_read_to_its_end() {
        let text = "# A\n\n| crate | may depend on |\n|---|---|\n| `a` | |\n| `b` | `a` |\n| `c` | `a` `b` |\n\n| `d` | `a` |\n";
        let table = allowed_edges(text).unwrap();
        assert_eq!(table, edges(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b"])]));
        assert!(allowed_edges("# A\n\nno table\n").is_err());
    }

    #[test]
    fn an_edge_a_crate_or_a_row_too_many_is_found() {
        let table = edges(&[("a", &[]), ("b", &["a"])]);
        assert_eq!(compare_edges(&table, &edges(&[("a", &[]), ("b", &[])])), [""; 0]);
        assert_eq!(
            compare_edges(&table, &edges(&[("a", &["b"]), ("b", &["a"])])),
            ["a must not depend on b"]
        );
        assert_eq!(
            compare_edges(&table, &edges(&[("a", &[]), ("c", &[])])),
            ["c is not in the table", "b is in the table and not in the workspace"]
        );
    }

    #[test]
    fn faults_of_a_source_file_are_found() {
        let long = |lines: usize| format!("//! X.\n{}", "x();\n".repeat(lines));
        assert_eq!(check_source(&long(600)), [""; 0]);
        assert_eq!(check_source(&long(601)), ["601 lines of code, the limit is 600"]);
        assert_eq!(check_source("// X.\n").len(), 1);
        for word in [
            concat!("#[ig", "nore]"),
            concat!("to", "do!()"),
            concat!("// TO", "DO"),
            concat!("// FIX", "ME"),
        ] {
            assert_eq!(check_source(&format!("//! X.\n{word}\n")).len(), 1, "{word}");
        }
    }

    #[test]
    fn comments_blank_lines_and_the_tests_at_the_end_are_no_code() {
        let text = "//! X.\n\nfn a() {}\n    // b\n/// c\nfn d() {}\n\n#[cfg(test)]\nmod tests {\n    fn e() {}\n}\n";
        assert_eq!(code_lines(text), 2);
        assert_eq!(code_lines("#[cfg(test)]\nmod fake;\nfn a() {}\n"), 3);
    }

    #[test]
    fn a_main_that_knows_too_much_is_found() {
        let uses = |name: &str| format!("//! X, see catena_vhd.\nfn main() {{\n    {name}::main()\n}}\n");
        assert_eq!(check_main("catenad", &uses("catena_agent")), [""; 0]);
        assert_eq!(check_main("catena", &uses("catena_cli")), [""; 0]);
        assert_eq!(check_main("catena-datapath", &uses("catena_datapath")), [""; 0]);
        assert_eq!(check_main("catena-keeper", &uses("catena_keeper::run(catena_sr_file)")), [""; 0]);
        assert_eq!(
            check_main("catena", &uses("catena_cli(catena_sr_file)")),
            ["catena must not name catena_sr_file"]
        );
        assert_eq!(check_main("catena-keeper", &uses("catena_keeper(catena_vhd)")).len(), 1);
        assert_eq!(check_main("catenad", "//! X.\nfn main() {}\n"), ["catenad does not use catena_agent"]);
        assert_eq!(check_main("catenad", &(uses("catena_agent") + &"\n".repeat(60))).len(), 1);
    }

    #[test]
    fn faults_of_a_script_are_found() {
        let good = "#!/usr/bin/env bash\n# What.\n\nset -euo pipefail\ntrue\n";
        assert_eq!(check_script(good, true), [""; 0]);
        assert_eq!(check_script("#!/usr/bin/env python3\npass\n", true), [""; 0]);
        assert_eq!(check_script(good, false), ["is not executable"]);
        assert_eq!(check_script("set -eu\n", true), ["does not begin with #!"]);
        assert_eq!(check_script("#!/bin/sh\ntrue\nset -eu\n", true), ["does not begin with set -eu"]);
    }

    #[test]
    fn links_and_anchors_are_read_as_readers_see_them() {
        let text = "[a](b.md#c) [d](https://e/f) [g](mailto:h) ([i](j))";
        assert_eq!(local_links(text), ["b.md#c", "j"]);
        assert_eq!(
            anchors("# A\ntext\n## What's `not` there yet\n"),
            ["a", "whats-not-there-yet"].map(str::to_owned).into()
        );
    }

    #[test]
    fn commands_are_read_from_shell_blocks_only() {
        let text = "catena no no\n```\ncatena no no\n```\n```sh\ncatena sr list --json  # why\nA=b catena vdi tree\ncatena demo # all\n\
                    tests/run --nightly\nls\n```\ncatena no no\n";
        let found = ["catena demo", "catena sr list", "catena vdi tree", "tests/run"];
        assert_eq!(shell_commands(text), found.map(str::to_owned).into());
    }
}
