//! Every command with `--json` against a live agent: what it prints is what `Agent.schema` says. A command that is not called
//! here fails the test.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::Agent;
use jsonschema::Validator;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Commands that print no document.
const NONE: &[&str] = &["demo"];

/// An agent, its schema, and the commands that were tried.
struct Scene {
    agent: Agent,
    schema: Value,
    seen: BTreeSet<String>,
}

impl Scene {
    fn start() -> Result<Self> {
        let agent = Agent::start()?;
        let schema = agent.call("Agent.schema", &json!({}))?.ok().context("Agent.schema")?;
        Ok(Self { agent, schema, seen: BTreeSet::new() })
    }

    /// Fails where the document is not what the schema has at `at`: `methods/SR.list/answer`.
    fn validate(&self, at: &str, document: &Value) -> Result<()> {
        let mut schema = self.schema.clone();
        ensure!(schema.pointer(&format!("/{at}")).is_some(), "the schema has no {at}");
        schema["$ref"] = json!(format!("#/{at}"));
        let validator: Validator = jsonschema::options().should_validate_formats(true).build(&schema)?;
        let errors: Vec<String> = validator
            .iter_errors(document)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect();
        ensure!(errors.is_empty(), "{at}: {errors:#?}\n{document:#}");
        Ok(())
    }

    /// Runs `catena --json` and validates its document.
    fn run(&mut self, at: &str, words: &[&str]) -> Result<Value> {
        let document = self.agent.json(words)?;
        ensure!(document["schema_version"] == 1, "{words:?}: {document}");
        self.validate(at, &document)?;
        self.seen.insert(words[..2].join(" "));
        Ok(document)
    }

    /// Runs a command that goes on, until its first document or until `cause` has made it print one; then ends it with Ctrl-C.
    fn stream(&mut self, at: &str, words: &[&str], cause: impl Fn(&Agent) -> Result<()>) -> Result<()> {
        let mut all = vec!["--json"];
        all.extend(words);
        let mut child = self.agent.command(&all).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (sender, lines) = std::sync::mpsc::channel();
        let stdout = child.stdout.take().context("stdout")?;
        let reading = std::thread::spawn(move || {
            // The end of the test has ended the program, and with it this loop.
            BufReader::new(stdout).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let line = loop {
            cause(&self.agent)?;
            if let Ok(line) = lines.recv_timeout(std::time::Duration::from_millis(200)) {
                break line;
            }
        };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        ensure!(child.wait()?.code() == Some(130), "{words:?} ends with 130");
        drop(lines);
        reading.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
        let document: Value = serde_json::from_str(&line)?;
        self.seen.insert(words[..2].join(" "));
        self.validate(at, &document)
    }

    /// The answer to a method that has no command of its own.
    fn method(&self, name: &str, params: &Value) -> Result<()> {
        let answer = self.agent.call(name, params)?;
        let answer = answer.map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        self.validate(&format!("methods/{name}/answer"), &answer)
    }
}

/// Each command has a manual page.
fn all_commands(agent: &Agent) -> Result<BTreeSet<String>> {
    let directory = agent.path("man");
    agent.ok(&["generate", "man", &directory.to_string_lossy()])?;
    let mut commands = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let words: Vec<&str> = name.trim_end_matches(".1").split('-').skip(1).collect();
        commands.insert(words.join(" "));
    }
    // `catena` itself and the nouns only print their help.
    let nouns: BTreeSet<String> =
        commands.iter().filter_map(|name| name.split_once(' ')).map(|(noun, _)| noun.to_owned()).collect();
    commands.retain(|name| !name.is_empty() && !nouns.contains(name));
    Ok(commands)
}

#[test]
fn every_command_prints_what_the_schema_says() -> Result<()> {
    let mut scene = Scene::start()?;
    srs(&mut scene)?;
    let sr = scene.agent.ok(&["sr", "list", "--json"])?;
    let sr: Value = serde_json::from_str(&sr)?;
    let sr = sr["srs"][0]["uuid"].as_str().context("an SR")?.to_owned();
    disks(&mut scene, &sr)?;
    watching(&mut scene, &sr)?;
    scene.method("Agent.version", &json!({}))?;
    scene.method("Agent.stats", &json!({}))?;
    end(&mut scene, &sr)?;
    let mut commands = all_commands(&scene.agent)?;
    for name in NONE {
        ensure!(commands.remove(*name), "there is no command {name}");
    }
    let missing: Vec<&String> = commands.difference(&scene.seen).collect();
    ensure!(missing.is_empty(), "not called in tests/schema.rs: {missing:?}");
    scene.agent.stop()
}

fn srs(scene: &mut Scene) -> Result<()> {
    let place = scene.agent.path("sr").to_string_lossy().into_owned();
    let xen = scene.agent.path("xen");
    fs::create_dir(&xen)?;
    harness::unpack_golden(&xen)?;
    let xen = xen.join("chain3").to_string_lossy().into_owned();
    scene.run("methods/SR.probe/answer", &["sr", "probe", "--type", "file", "--location", &xen])?;
    let introduce = ["sr", "introduce", "--type", "file", "--location", &xen];
    scene.run("documents/survey", &[&introduce[..], &["--dry-run"]].concat())?;
    let xen = scene.run("methods/SR.introduce/result", &introduce)?;
    let xen = xen["uuid"].as_str().context("uuid")?;
    scene.run("methods/VDI.get_tree/answer", &["vdi", "tree", xen])?;
    scene.agent.ok(&["sr", "detach", xen])?;
    scene.agent.ok(&["sr", "forget", xen])?;
    let create = ["sr", "create", "--type", "file", "--name", "store", "--location", &place];
    scene.run("methods/SR.create/answer", &create)?;
    scene.run("methods/SR.probe/answer", &["sr", "probe", "--type", "file", "--location", &place])?;
    scene.run("methods/SR.list/answer", &["sr", "list"])?;
    scene.run("methods/SR.get_record/answer", &["sr", "show", "store"])?;
    scene.run("methods/SR.stat/answer", &["sr", "stat", "store"])?;
    scene.run("methods/SR.set_policy/answer", &["sr", "policy", "store", "coalesce.rate=1GiB"])?;
    fs::write(scene.agent.path("sr/stranger"), "not ours")?;
    scene.run("methods/SR.scan/result", &["sr", "scan", "store"])?;
    scene.run("methods/SR.check/result", &["sr", "check", "store"])?;
    scene.run("methods/SR.check/result", &["sr", "check", "store", "--repair", "--yes"])?;
    scene.run("methods/SR.trim/result", &["sr", "trim", "store"])?;
    scene.run("methods/SR.grow/result", &["sr", "grow", "store"])?;
    Ok(())
}

fn disks(scene: &mut Scene, sr: &str) -> Result<()> {
    scene.run(
        "methods/VDI.create/answer",
        &["vdi", "create", "--sr", sr, "--size", "8MiB", "--name", "web"],
    )?;
    scene.agent.write("web", 0, &[7; 4096])?;
    scene.run("methods/VDI.snapshot/answer", &["vdi", "snapshot", "web", "--name", "before"])?;
    serving(scene)?;
    scene.run("methods/VDI.clone/answer", &["vdi", "clone", "web", "--name", "desk"])?;
    scene.run("methods/VDI.list/answer", &["vdi", "list"])?;
    scene.run("methods/VDI.get_record/answer", &["vdi", "show", "web"])?;
    scene.run("methods/VDI.get_tree/answer", &["vdi", "tree"])?;
    scene.run("methods/VDI.set/answer", &["vdi", "set", "web", "other_config.owner=me"])?;
    scene.run("methods/VDI.resize/answer", &["vdi", "resize", "web", "10MiB"])?;
    scene.run("methods/VDI.revert/answer", &["vdi", "revert", "web", "before"])?;
    scene.run("methods/VDI.copy/result", &["vdi", "copy", "web", "--name", "second"])?;
    let file = scene.agent.path("web.vhd").to_string_lossy().into_owned();
    scene.run("methods/VDI.export/result", &["vdi", "export", "web", &file])?;
    scene.run("methods/VDI.import/result", &["vdi", "import", &file, "--sr", sr, "--name", "copy"])?;
    scene.run("documents/destroyed", &["vdi", "destroy", "copy", "--yes"])?;
    let refused = scene.agent.catena(&["--json", "vdi", "show", "nothing"])?;
    ensure!(refused.code == 3 && refused.out.is_empty(), "{refused:?}");
    scene.validate("documents/error_document", &serde_json::from_str(&refused.err)?)?;
    let refused =
        scene.agent.call("VDI.get_record", &json!({"vdi": "nothing"}))?.err().context("a refusal")?;
    scene.validate("documents/error", &refused)
}

/// A disk while it is served: its record has figures then.
fn serving(scene: &mut Scene) -> Result<()> {
    let attached = scene.run("methods/VDI.attach/answer", &["vdi", "attach", "web"])?;
    ensure!(attached["mode"] == "rw", "{attached}");
    let record = scene.run("methods/VDI.get_record/answer", &["vdi", "show", "web"])?;
    ensure!(record["attached"] == "rw" && record["serving"]["vdi"] == record["uuid"], "{record}");
    let stats = scene.agent.call("Agent.stats", &json!({}))?.ok().context("Agent.stats")?;
    scene.validate("methods/Agent.stats/answer", &stats)?;
    ensure!(stats["disks"][0]["pid"] == record["serving"]["pid"], "{stats}");
    scene.run("methods/VDI.get_tree/answer", &["vdi", "tree"])?;
    scene.run("methods/VDI.detach/answer", &["vdi", "detach", "web"])?;
    Ok(())
}

fn watching(scene: &mut Scene, sr: &str) -> Result<()> {
    scene.run("methods/Coalesce.pause/answer", &["coalesce", "pause", sr])?;
    scene.run("methods/Coalesce.resume/answer", &["coalesce", "resume", sr])?;
    scene.run("methods/Coalesce.run/answer", &["coalesce", "run", sr, "--wait"])?;
    scene.run("methods/Coalesce.status/answer", &["coalesce", "status"])?;
    scene.stream("methods/Coalesce.status/answer", &["coalesce", "status", "--watch"], |_| Ok(()))?;
    scene.stream("documents/event", &["event", "watch"], |agent| {
        agent.ok(&["vdi", "create", "--sr", sr, "--size", "2MiB", "--name", "news"]).map(drop)
    })?;
    scene.run("methods/Event.list/answer", &["event", "list"])?;
    let jobs = scene.run("methods/Job.list/answer", &["job", "list"])?;
    let job = jobs["jobs"][0]["id"].as_str().context("a job")?;
    scene.run("methods/Job.get/answer", &["job", "show", job])?;
    scene.run("methods/Job.wait/answer", &["job", "wait", job])?;
    // A job that is over: cancelling it is refused or does nothing.
    let said = scene.agent.catena(&["--json", "job", "cancel", job])?;
    let (at, text) = match said.code {
        0 => ("methods/Job.cancel/answer", &said.out),
        _ => ("documents/error_document", &said.err),
    };
    scene.seen.insert("job cancel".to_owned());
    scene.validate(at, &serde_json::from_str(text)?)
}

fn end(scene: &mut Scene, sr: &str) -> Result<()> {
    let vdis = scene.agent.json(&["vdi", "list", "--sr", sr])?;
    for vdi in vdis["vdis"].as_array().context("vdis")? {
        scene.agent.ok(&["vdi", "destroy", vdi["uuid"].as_str().context("uuid")?])?;
    }
    scene.run("methods/SR.detach/answer", &["sr", "detach", sr])?;
    scene.run("methods/SR.attach/answer", &["sr", "attach", sr])?;
    scene.run("methods/SR.destroy/answer", &["sr", "destroy", sr, "--yes"])?;
    let place = scene.agent.path("more").to_string_lossy().into_owned();
    let more = scene.agent.ok(&["sr", "create", "--type", "file", "--name", "more", "--location", &place])?;
    scene.agent.ok(&["sr", "detach", &more])?;
    scene.run("methods/SR.forget/answer", &["sr", "forget", &more])?;
    Ok(())
}

#[test]
fn the_schema_can_be_had_without_an_agent() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_catena")).args(["generate", "schema"]).output()?;
    ensure!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout)?;
    jsonschema::meta::validate(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(schema["methods"]["VDI.create"]["params"]["$ref"] == "#/$defs/VdiCreateParams", "{schema}");
    Ok(())
}
