//! Every error that users can meet is provoked through the real programs: exit code, number, name, one line of reason, a hint,
//! and nothing changed. `table` has a row for each refusal; a name of the code that no row provokes and that `table::NEVER` does
//! not explain fails, and so does one that the documentation lacks.

#[path = "../harness/mod.rs"]
mod harness;
mod photo;
mod stage;
mod table;

use anyhow::{Context, Result, bail, ensure};
use harness::{Agent, Said};
use photo::Photo;
use serde_json::{Value, json};
use stage::{Ground, Stage};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use table::{NEVER, ROWS, Row};

/// Numbers and exit codes by name, as the documentation has them.
fn documented() -> Result<BTreeMap<String, (i64, i32)>> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/interface.md"))?;
    let rows = page.split_once("## Errors").context("the errors' section")?.1;
    let mut found = BTreeMap::new();
    for line in rows.lines().filter(|line| line.starts_with("| `")).take_while(|line| line.contains('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Ok(code), Ok(exit)) = (cells[2].parse(), cells[3].parse()) {
            found.insert(cells[1].trim_matches('`').to_owned(), (code, exit));
        }
    }
    Ok(found)
}

/// The names of the code, as it describes itself.
fn names_of_the_code(agent: &Agent) -> Result<BTreeSet<String>> {
    let schema = agent.call("Agent.schema", &json!({}))?.ok().context("a schema")?;
    let kind = &schema["$defs"]["ErrorName"];
    let one_of = kind["oneOf"].as_array().into_iter().flatten().map(|one| &one["const"]);
    let plain = kind["enum"].as_array().into_iter().flatten();
    Ok(one_of.chain(plain).filter_map(Value::as_str).map(str::to_owned).collect())
}

#[test]
fn every_name_is_documented_and_provoked_or_explained() -> Result<()> {
    let agent = Agent::start()?;
    let known = names_of_the_code(&agent)?;
    let documented: BTreeSet<String> = documented()?.into_keys().collect();
    ensure!(
        known == documented && known.len() > 20,
        "not in the documentation or not in the code: {:?}",
        known.symmetric_difference(&documented).collect::<Vec<_>>()
    );
    let provoked: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    let never: BTreeSet<&str> = NEVER.iter().map(|(name, _)| *name).collect();
    ensure!(provoked.is_disjoint(&never), "it does happen: {:?}", provoked.intersection(&never));
    let covered: BTreeSet<String> = provoked.union(&never).map(|name| (*name).to_owned()).collect();
    ensure!(
        covered == known,
        "without a row or without a meaning: {:?}",
        covered.symmetric_difference(&known).collect::<Vec<_>>()
    );
    Ok(())
}

#[test]
fn refusals_of_a_plain_sr() -> Result<()> {
    play(Ground::Plain)
}

#[test]
fn refusals_where_storage_is_full() -> Result<()> {
    play(Ground::Full)
}

#[test]
fn refusals_at_the_end_of_a_chain() -> Result<()> {
    play(Ground::Long)
}

#[test]
fn refusals_of_what_is_broken() -> Result<()> {
    play(Ground::Broken)
}

#[test]
fn refusals_while_another_job_is_at_work() -> Result<()> {
    play(Ground::Busy)
}

#[test]
fn refusals_of_disks_that_are_attached() -> Result<()> {
    play(Ground::Served)
}

/// Plays all rows of a ground, also after one has failed, and says which have.
fn play(ground: Ground) -> Result<()> {
    let table = documented()?;
    let stage = Stage::build(ground)?;
    let mut failed = Vec::new();
    for row in ROWS.iter().filter(|row| row.ground == ground) {
        if let Err(error) = refused(&stage, row, &table) {
            failed.push(format!("{}: {error:#}", row.command));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}\n{}", failed.join("\n"), stage.agent.log()) }
}

/// Runs a row twice, for people and for programs; afterwards everything is as before.
fn refused(stage: &Stage, row: &Row, table: &BTreeMap<String, (i64, i32)>) -> Result<()> {
    let (code, exit) = *table.get(row.name).context("an unknown name")?;
    let command = stage.words_of(row.command)?;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let before = Photo::take(stage, row.leaves_a_job)?;

    let said = stage.agent.catena(&words)?;
    ensure!(said.code == exit && said.out.is_empty(), "for people: {said:?}");
    let lines: Vec<&str> = said.err.lines().collect();
    let reason = stage.fill(row.reason)?;
    ensure!(lines[0].starts_with("catena: ") && lines[0].contains(&reason), "the reason: {said:?}");
    match (stage.fill(row.hint)?.as_str(), &lines[1..]) {
        ("", []) => {}
        ("", more) => bail!("more than a line: {more:?}"),
        (hint, [line]) => ensure!(line.starts_with("hint: ") && line.contains(hint), "the hint: {said:?}"),
        (_, more) => bail!("a hint is one line, not {more:?} of {said:?}"),
    }

    let said = stage.agent.catena(&[&["--json"], &words[..]].concat())?;
    let told: Value = serde_json::from_str(&said.err).with_context(|| format!("for programs: {said:?}"))?;
    let error = &told["error"];
    ensure!(said.code == exit && said.out.is_empty(), "for programs: {said:?}");
    ensure!(error["name"] == row.name && error["code"] == code, "name and number: {error}");
    ensure!(told["schema_version"] == 1 && error["retry"].is_boolean(), "the document: {told}");

    before.compare(&Photo::take(stage, row.leaves_a_job)?)
}

#[test]
fn a_usage_error_prints_the_usage() -> Result<()> {
    let agent = Agent::stopped()?;
    for line in [
        "vdi",
        "vdi explode",
        "vdi create --sr disks",
        "--nonsense",
        "vdi create --sr store --size 10GB --name x",
        "vdi clone x --count 0",
        "event list --since yesterday",
        "coalesce pause store --until never",
        "vdi export x y --format qcow2",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let said = agent.catena(&words)?;
        let help = said.err.contains("Usage:") || said.err.contains("--help");
        ensure!(said.code == 2 && said.out.is_empty() && help, "{line}: {said:?}");
    }
    Ok(())
}

#[test]
fn nobody_at_the_socket() -> Result<()> {
    let agent = Agent::stopped()?;
    let said = agent.catena(&["sr", "list"])?;
    ensure!(
        said.code == 3 && said.err.contains("no agent answers") && said.err.contains("hint: "),
        "{said:?}"
    );
    Ok(())
}

/// Starts a `catenad` that must not start.
fn no_start(arguments: &[&str]) -> Result<Said> {
    let output = Command::new(env!("CARGO_BIN_EXE_catenad")).args(arguments).output()?;
    Ok(Said::from(output))
}

#[test]
fn an_agent_that_cannot_start_says_why() -> Result<()> {
    let home = tempfile::tempdir()?;
    let long = home.path().join("a-directory-whose-name-is-long").join("and-another-one");
    let said = no_start(&["--root", &long.to_string_lossy()])?;
    ensure!(said.code == 2 && said.err.contains("longer than 40 bytes") && !long.exists(), "{said:?}");

    let root = tempfile::Builder::new().prefix("cat").tempdir_in("/tmp")?;
    let etc = root.path().join("etc/catena");
    fs::create_dir_all(&etc)?;
    for (text, named) in [
        ("sokcet = '/run/x'\n", "sokcet"),
        ("socket = 7\n", "socket"),
        ("socket = \n", "catenad.toml"),
        ("log = 'lou=der=[\n'\n", "catenad.toml"),
        ("log = \"a=b=c\"\n", "log"),
    ] {
        fs::write(etc.join("catenad.toml"), text)?;
        let said = no_start(&["--root", &root.path().to_string_lossy()])?;
        ensure!(said.code == 1 && said.err.contains(named), "{text}: {said:?}");
        ensure!(!root.path().join("run").exists(), "{text}: nothing was begun");
    }

    let agent = Agent::start()?;
    let said = no_start(&["--root", &agent.path("").to_string_lossy()])?;
    ensure!(said.code == 1 && said.err.contains("another catenad is running"), "a second agent: {said:?}");
    agent.ok(&["sr", "list"])?;
    Ok(())
}
