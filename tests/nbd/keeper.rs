//! The side door: what the keeper asks, in which order it is answered, and that the disk does not care whether there is a keeper.

use crate::harness::nbd::{FLUSH, READ, WRITE};
use crate::harness::wait_until;
use crate::stage::{MIB, Stage};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Says hello over the control socket, and prints the answer, or that there is none.
const HELLO: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
try:
    s.send(b'{"ask":"hello"}')
    print(s.recv(1 << 16).decode() or "closed")
except (BrokenPipeError, ConnectionResetError):
    print("closed")
"#;

#[test]
fn hello_and_figures() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&["--engine", "threads"])?;
    let keeper = stage.served.keeper()?;
    let hello = keeper.ask(&json!({"ask": "hello"}))?;
    ensure!(hello["told"] == "hello" && hello["vdi"] == stage.vdi, "{hello}");
    ensure!(hello["pid"] == stage.served.pid()?.as_raw() && hello["read_only"] == false, "{hello}");
    ensure!(hello["chain"].as_array().map(Vec::len) == Some(3) && hello["quiesced"].is_null(), "{hello}");

    let mut client = stage.served.client()?;
    ensure!(client.write(0, &[7; 8192], 0)? == 0, "a write");
    ensure!(client.read(0, 4096)?.is_ok() && client.read(0, 512)?.is_ok(), "reads");
    ensure!(client.ask(FLUSH, 0, 0, 0)? == 0, "a flush");
    // What is refused before it reaches the disk is nobody's figure.
    ensure!(client.ask(READ, 0, 1 << 40, 512)? == 22, "a read past the end");
    let stats = keeper.ask(&json!({"ask": "stats"}))?;
    ensure!(
        stats["connections"] == 1 && stats["queue_depth"] == 0 && stats["engine"] == "threads",
        "{stats}"
    );
    let figures = ["read", "write", "flush"].map(|kind| {
        let of = &stats[kind];
        let timed: u64 = of["latency"].as_array().into_iter().flatten().filter_map(Value::as_u64).sum();
        [of["count"].as_u64(), of["bytes"].as_u64(), of["failed"].as_u64(), Some(timed)]
    });
    let expected = [[2, 4608, 0, 2], [1, 8192, 0, 1], [1, 0, 0, 1]];
    ensure!(figures == expected.map(|kind| kind.map(Some)), "{stats}");
    client.disconnect()?;
    stage.served.stop()
}

#[test]
fn answers_come_in_order_and_nonsense_is_refused() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let keeper = stage.served.keeper()?;
    let questions = [
        json!({"ask": "stats"}),
        json!({"ask": "tell me"}),
        json!({"ask": "prepare", "generation": 1, "leaf": {"id": "00000000-0000-0000-0000-000000000001", "format": "vhd"}}),
        json!({"ask": "hello"}),
    ];
    for question in &questions {
        keeper.send(question)?;
    }
    let mut answers = Vec::new();
    while answers.len() < questions.len() {
        match keeper.receive()? {
            Some(said) => answers.push(said["answer"].clone()),
            None => anyhow::bail!("the connection ended after {answers:?}"),
        }
    }
    ensure!(answers[0]["Ok"]["told"] == "stats", "{answers:#?}");
    ensure!(answers[1]["Err"]["kind"] == "unsupported", "{answers:#?}");
    let why = answers[2]["Err"]["message"].as_str().unwrap_or_default();
    ensure!(why.contains("descriptors"), "{answers:#?}");
    ensure!(answers[3]["Ok"]["told"] == "hello", "{answers:#?}");

    let quiesced = keeper.ask(&json!({"ask": "quiesce", "generation": 1}))?;
    ensure!(quiesced["told"] == "quiesced" && quiesced["leaf_is_empty"] == false, "{quiesced}");
    ensure!(keeper.ask(&json!({"ask": "hello"}))?["quiesced"] == 1, "it is quiesced");
    keeper.ask(&json!({"ask": "resume", "generation": 1, "swap": false}))?;
    ensure!(keeper.ask(&json!({"ask": "hello"}))?["quiesced"].is_null(), "it is not quiesced any more");
    // A keeper may change its mind before it has its answer.
    keeper.send(&json!({"ask": "quiesce", "generation": 2}))?;
    keeper.send(&json!({"ask": "resume", "generation": 2, "swap": false}))?;
    let first = keeper.receive()?.unwrap_or_default();
    ensure!(
        first["answer"]["Ok"]["told"] == "quiesced" || first["answer"]["Err"]["kind"] == "stopped",
        "{first}"
    );
    let second = keeper.receive()?.unwrap_or_default();
    ensure!(second["answer"]["Ok"]["told"] == "done", "{second}");
    let stats = keeper.ask(&json!({"ask": "stats"}))?;
    ensure!(stats["pauses"].as_u64() >= Some(1), "{stats}");
    stage.served.stop()
}

#[test]
fn the_newest_keeper_counts_and_a_pause_outlives_them_all() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let first = stage.served.keeper()?;
    first.ask(&json!({"ask": "quiesce", "generation": 5}))?;

    let mut client = stage.served.client()?;
    let bytes = vec![9; MIB];
    let write = client.send(WRITE, 0, 0, u32::try_from(MIB)?, &bytes)?;
    let mut reader = stage.served.client()?;
    ensure!(reader.read(0, 4096)?.is_ok_and(|found| found == stage.content[..4096]), "reads go on");

    let second = stage.served.keeper()?;
    let hello = second.ask(&json!({"ask": "hello"}))?;
    ensure!(hello["quiesced"] == 5 && hello["generation"] == 5, "{hello}");
    ensure!(first.receive()?.is_none(), "the older connection is closed");
    drop((first, second));
    ensure!(reader.read(0, 4096)?.is_ok_and(|found| found == stage.content[..4096]), "nothing was written");
    let stats = stage.served.ask(&json!({"ask": "stats"}))?;
    ensure!(stats["queue_depth"] == 1, "{stats}");

    stage.served.ask(&json!({"ask": "resume", "generation": 5, "swap": false}))?;
    let reply = client.receive()?;
    ensure!((reply.cookie, reply.error) == (write, 0), "{reply:?}");
    stage.content[..MIB].copy_from_slice(&bytes);
    stage.expect_content()?;
    stage.served.stop()?;
    stage.agree_detached()
}

#[test]
fn a_keeper_ends_it_and_a_lost_terminal_does_not() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    stage.served.signal(Signal::SIGHUP)?;
    let mut client = stage.served.client()?;
    ensure!(client.write(512, &[5; 1024], 0)? == 0, "it still serves");
    stage.content[512..1536].fill(5);
    let keeper = stage.served.keeper()?;
    keeper.ask(&json!({"ask": "stop"}))?;
    ensure!(keeper.receive()?.is_none(), "nothing follows");
    stage.served.ended()?;
    ensure!(client.receive().is_err(), "the connection is closed");
    stage.agree_detached()
}

#[test]
fn whoever_dies_quiesced_is_followed_by_one_who_is_not() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    stage.served.ask(&json!({"ask": "quiesce", "generation": 2}))?;
    stage.served.kill()?;
    stage.served.start(&[])?;
    wait_until("a write is answered", || Ok(stage.served.client()?.write(0, &[1; 512], 0)? == 0))?;
    stage.content[..512].fill(1);
    stage.served.stop()?;
    stage.agree_detached()
}

/// Whoever can reach the socket: who asks is looked at by the process itself.
#[test]
fn somebody_else_is_no_keeper() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let keeper = stage.served.keeper()?;
    keeper.ask(&json!({"ask": "hello"}))?;
    let socket = stage.served.path("control.sock");
    set_permissions(socket.parent().context("its directory")?, Permissions::from_mode(0o711))?;
    set_permissions(&socket, Permissions::from_mode(0o666))?;
    let hello_as = |user: u32| -> Result<String> {
        let mut command = Command::new("/usr/bin/python3");
        let output = command.args(["-c", HELLO]).arg(&socket).uid(user).gid(user).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the test needs root and /usr/bin/python3: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let said = hello_as(65_534)?;
    ensure!(said.trim() == "closed", "nobody was answered: {said}");
    keeper.ask(&json!({"ask": "hello"})).context("the keeper has lost its connection to nobody")?;
    let said = hello_as(0)?;
    ensure!(said.contains(r#""told":"hello""#), "root was not answered: {said}");
    ensure!(keeper.receive()?.is_none(), "the newest keeper counts");
    stage.served.stop()
}
