//! What arrives at the socket from outside: no line, however wrong, changes anything, keeps a descriptor, or ends the agent.

mod harness;

use anyhow::{Context, Result, ensure};
use harness::{Agent, PATIENCE, seed, wait_until};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

/// What a line may hold.
const LINE_LIMIT: usize = 1 << 20;

/// An agent with an SR and a disk.
fn with_disk() -> Result<(Agent, String, String)> {
    let agent = Agent::start()?;
    let place = agent.path("sr").to_string_lossy().into_owned();
    let sr = agent.ok(&["sr", "create", "--type", "file", "--name", "store", "--location", &place])?;
    let vdi = agent.ok(&["vdi", "create", "--sr", &sr, "--size", "4MiB", "--name", "disk"])?;
    agent.write(&vdi, 0, &[3; 4096])?;
    Ok((agent, sr, vdi))
}

/// A connection that lines are written to as they are.
struct Raw {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Raw {
    fn new(agent: &Agent) -> Result<Self> {
        let stream = UnixStream::connect(agent.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    fn send(&mut self, line: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(&[line, b"\n"].concat())?)
    }

    /// The next answer; `None` when the agent has hung up.
    fn answer(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}

/// What is in the SR, its jobs included.
fn picture(agent: &Agent) -> Result<Value> {
    Ok(json!([
        agent.json(&["vdi", "list"])?,
        agent.json(&["job", "list"])?,
        agent.json(&["sr", "list"])?["srs"][0]["state"],
    ]))
}

/// How many descriptors the front has open.
fn open_files(agent: &Agent) -> Result<usize> {
    let pid = agent.pid().context("the agent runs")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn lines_that_are_no_requests_are_refused_and_the_connection_goes_on() -> Result<()> {
    let (agent, ..) = with_disk()?;
    let before = picture(&agent)?;
    let mut raw = Raw::new(&agent)?;
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let lines: &[&[u8]] = &[
        b"",
        b"{",
        b"nonsense",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        br#""VDI.destroy""#,
        br#"{"jsonrpc":"2.0","id":1}"#,
        br#"{"jsonrpc":"1.0","id":1,"method":"SR.list"}"#,
        br#"{"jsonrpc":"2.0","id":{},"method":"SR.list"}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":7}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":"SR.list","params":7}"#,
        br#"{"jsonrpc":"2.0","id":1,"method":"SR.list"} trailing"#,
        &deep,
    ];
    for line in lines {
        raw.send(line)?;
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        let answer = raw.answer()?.with_context(|| format!("{shown}: hung up"))?;
        ensure!(answer["error"]["code"] == 143, "{shown}: {answer}");
        raw.send(br#"{"jsonrpc":"2.0","id":9,"method":"Agent.version"}"#)?;
        let after = raw.answer()?.with_context(|| format!("{shown}: hung up afterwards"))?;
        ensure!(after["id"] == 9 && after["result"].is_object(), "{shown}: {after}");
    }
    ensure!(picture(&agent)? == before);
    Ok(())
}

#[test]
fn parameters_of_a_wrong_kind_are_refused_for_every_method() -> Result<()> {
    let (agent, sr, vdi) = with_disk()?;
    let before = picture(&agent)?;
    let schema = agent.call("Agent.schema", &json!({}))?.ok().context("Agent.schema")?;
    let methods = schema["methods"].as_object().context("methods")?;
    ensure!(methods.len() > 30, "{} methods", methods.len());
    let huge = json!(1e300);
    let mut tried = 0;
    for (method, entry) in methods {
        let name = entry["params"]["$ref"].as_str().and_then(|to| to.strip_prefix("#/$defs/"));
        let fields = name.and_then(|name| schema["$defs"][name]["properties"].as_object());
        let fields: Vec<&String> = fields.into_iter().flat_map(|fields| fields.keys()).collect();
        let mut wrong = vec![json!({"no_such_parameter": 1})];
        for field in fields {
            for value in [&huge, &json!({"a": []}), &json!([[1]])] {
                // Everything else as it should be, so that this field alone can be the reason.
                let mut params = json!({"sr": sr, "vdi": vdi});
                params[field.as_str()] = value.clone();
                wrong.push(params);
            }
        }
        for params in wrong {
            let answer = agent.call(method, &params)?;
            let refused = answer.as_ref().err().and_then(|error| error["data"]["name"].as_str());
            ensure!(refused.is_some_and(|name| name != "io_error"), "{method} {params}: {answer:?}");
            tried += 1;
        }
    }
    ensure!(tried > 100, "{tried}");
    ensure!(picture(&agent)? == before);
    Ok(())
}

#[test]
fn descriptors_that_nobody_names_are_closed() -> Result<()> {
    let (agent, sr, vdi) = with_disk()?;
    let path = agent.path("some.raw");
    fs::write(&path, [1; 4096])?;
    let file = File::options().read(true).write(true).open(&path)?;
    // What the front keeps open between requests is open now.
    agent.call("VDI.read", &json!({"vdi": vdi, "offset": 0, "length": 512, "fd": 7}))?.unwrap_err();
    let (before, files) = (picture(&agent)?, open_files(&agent)?);
    let requests = [
        ("VDI.import", json!({"sr": sr, "format": "raw", "name_label": "x", "fd": 1})),
        ("VDI.import", json!({"sr": sr, "format": "raw", "name_label": "x"})),
        ("VDI.import", json!({"sr": sr, "format": "raw", "name_label": "x", "fd": -1})),
        ("VDI.import", json!({"sr": sr, "format": "none", "name_label": "x", "fd": 0})),
        ("VDI.export", json!({"vdi": vdi, "format": "raw", "fd": 32})),
        ("VDI.write", json!({"vdi": vdi, "offset": 0, "length": 512, "fd": 4_000_000_000_u64})),
        ("VDI.write", json!({"vdi": vdi, "offset": 4 << 20, "length": 512, "fd": 0})),
        ("VDI.destroy", json!({"vdi": "nothing"})),
        ("Nonsense", json!({})),
    ];
    for (method, params) in requests {
        let answer = agent.call_with(method, &params, &[file.as_fd()])?;
        ensure!(answer.is_err(), "{method} {params}: {answer:?}");
    }
    // A list needs no descriptor, and does not keep one: not even as many as a message can carry.
    let mut raw = Raw::new(&agent)?;
    let many = vec![file.as_raw_fd(); 32];
    for _ in 0..40 {
        let rights = [ControlMessage::ScmRights(&many)];
        let line = [IoSlice::new(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"SR.list\"}\n")];
        sendmsg::<UnixAddr>(raw.stream.as_raw_fd(), &line, &rights, MsgFlags::empty(), None)?;
        let answer = raw.answer()?.context("hung up")?;
        ensure!(answer["result"]["srs"].is_array(), "{answer}");
    }
    drop(raw);
    wait_until("all descriptors are closed", || Ok(open_files(&agent)? <= files))?;
    ensure!(picture(&agent)? == before);
    Ok(())
}

#[test]
fn a_line_without_an_end_costs_its_connection_alone() -> Result<()> {
    let (agent, ..) = with_disk()?;
    let mut raw = Raw::new(&agent)?;
    // The agent may hang up while this is still being sent.
    let sent = raw.stream.write_all(&vec![b'x'; 2 * LINE_LIMIT]);
    match (sent, raw.answer()) {
        (_, Ok(Some(answer))) => ensure!(answer["error"]["code"] == 143, "{answer}"),
        (Err(_), _) | (_, Err(_) | Ok(None)) => {}
    }
    ensure!(!matches!(raw.answer(), Ok(Some(_))), "it still answers");
    agent.ok(&["vdi", "list"])?;
    Ok(())
}

#[test]
fn requests_too_many_are_told_to_come_again() -> Result<()> {
    let (agent, sr, _) = with_disk()?;
    agent.ok(&["coalesce", "pause", &sr])?;
    let job = agent.call("SR.check", &json!({"sr": sr}))?.ok().context("a job")?;
    agent.call("Job.wait", &json!({"job": job["id"]}))?.map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut raw = Raw::new(&agent)?;
    let count = 400;
    for id in 0..count {
        let params = json!({"sr": sr, "virtual_size": 4 << 20, "name_label": format!("n{id}")});
        let line = json!({"jsonrpc": "2.0", "id": id, "method": "VDI.create", "params": params});
        raw.send(line.to_string().as_bytes())?;
    }
    let (mut made, mut refused) = (0, 0);
    for _ in 0..count {
        let answer = raw.answer()?.context("hung up")?;
        if answer["result"]["uuid"].is_string() {
            made += 1;
        } else {
            ensure!(
                answer["error"]["data"]["name"] == "try_again" && answer["error"]["data"]["retry"] == true,
                "{answer}"
            );
            refused += 1;
        }
    }
    ensure!(made >= 64 && refused > 0, "{made} made, {refused} refused");
    let vdis = agent.json(&["vdi", "list"])?;
    ensure!(vdis["vdis"].as_array().map(Vec::len) == Some(made + 1), "what is made is what was said");
    Ok(())
}

#[test]
fn noise_changes_nothing() -> Result<()> {
    let (agent, ..) = with_disk()?;
    let before = picture(&agent)?;
    let seed = seed("noise_changes_nothing");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let good = br#"{"jsonrpc":"2.0","id":1,"method":"VDI.destroy","params":{"vdi":"disk","request_id":"x"}}"#;
    for round in 0..300 {
        let mut line = good.to_vec();
        for _ in 0..=rng.next_u32() % 8 {
            let at = rng.next_u32() as usize % line.len();
            match rng.next_u32() % 3 {
                0 => line[at] = rng.next_u32().to_le_bytes()[0],
                1 => drop(line.remove(at)),
                _ => line.insert(at, b"{}[],:\"0"[rng.next_u32() as usize % 8]),
            }
        }
        // One that still means what it meant would be carried out, and rightly.
        let meant = serde_json::from_slice::<Value>(&line).is_ok_and(|it| it["method"] == "VDI.destroy");
        if meant || line.contains(&b'\n') {
            continue;
        }
        let mut raw = Raw::new(&agent)?;
        raw.send(&line)?;
        let answer = raw.answer()?.with_context(|| format!("round {round}: hung up"))?;
        ensure!(answer["error"]["code"].is_i64(), "round {round}: {answer}");
    }
    ensure!(picture(&agent)? == before);
    Ok(())
}
