//! A disk served over NBD by `catena-datapath serve` alone, as clients that were not written here find it: what it says of itself,
//! what they copy, what they may not do. `hostile` has clients that misbehave, `death` what outlives a killed process, `keeper`
//! the side door.

mod death;
mod device;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod keeper;
mod stage;

use anyhow::{Result, ensure};
use harness::serving::Served;
use harness::{Agent, peer, qemu_img, sha256, text};
use serde_json::Value;
use stage::{ENGINES, MIB, Stage, noise};
use std::fs;

#[test]
fn nbdinfo_finds_what_is_promised() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let uri = stage.served.uri();
    let told: Value = serde_json::from_str(&peer("libnbd-bin", "nbdinfo", &["--json", &uri])?)?;
    let export = &told["exports"][0];
    ensure!(told["protocol"] == "newstyle-fixed" && told["structured"] == true, "{told}");
    ensure!(export["export-size"] == stage.content.len() && export["export-name"] == stage.vdi, "{export}");
    ensure!(
        export["contexts"] == serde_json::json!(["base:allocation", "qemu:allocation-depth"]),
        "{export}"
    );
    let can = [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_cache",
        "can_df",
        "can_multi_conn",
    ];
    ensure!(can.iter().all(|what| export[what] == true) && export["is_read_only"] == false, "{export}");
    let sizes =
        ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|size| &export[size]);
    ensure!(sizes == [1, 4096, 32 << 20], "{export}");
    peer("libnbd-bin", "nbdinfo", &["--can", "write", &uri])?;
    stage.served.stop()?;

    stage.served.start(&["--read-only"])?;
    peer("libnbd-bin", "nbdinfo", &["--is", "read-only", &uri])?;
    stage.expect_content()?;
    stage.served.stop()
}

#[test]
fn maps_tell_who_owns_what() -> Result<()> {
    let mut stage = Stage::chain()?;
    stage.served.start(&[])?;
    let uri = stage.served.uri();
    for (option, key, of) in [
        (
            "--map=qemu:allocation-depth",
            "type",
            Box::new(|owner: u8| i64::from(owner)) as Box<dyn Fn(u8) -> i64>,
        ),
        ("--map", "type", Box::new(|owner| if owner == 0 { 3 } else { 0 })),
    ] {
        let map: Value = serde_json::from_str(&peer("libnbd-bin", "nbdinfo", &[option, "--json", &uri])?)?;
        let mut at = 0;
        for extent in map.as_array().into_iter().flatten() {
            let len = usize::try_from(extent["length"].as_u64().unwrap_or_default())?;
            ensure!(extent["offset"] == at, "a gap at {at}: {map}");
            let owners = &stage.owners[at / 512..(at + len) / 512];
            let wrong = owners.iter().position(|owner| extent[key] != of(*owner));
            ensure!(wrong.is_none(), "{option}: {extent}, but sector {wrong:?} of it");
            at += len;
        }
        ensure!(at == stage.content.len(), "the map ends at {at}");
    }
    let map = qemu_img(&["map", "--output=json", "-f", "raw", &uri])?;
    let map: Value = serde_json::from_str(&map)?;
    let zeros = map.as_array().into_iter().flatten().filter(|extent| extent["zero"] == true);
    let zeros: u64 = zeros.filter_map(|extent| extent["length"].as_u64()).sum();
    let expected = stage.owners.iter().filter(|owner| **owner == 0).count() * 512;
    ensure!(zeros == expected as u64, "qemu finds {zeros} bytes of zeros, not {expected}");
    stage.served.stop()
}

#[test]
fn the_map_of_a_large_disk_is_whole() -> Result<()> {
    let mut agent = Agent::start()?;
    let directory = agent.path("sr");
    agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &text(&directory)])?;
    let vdi = agent.ok(&["vdi", "create", "--sr", "disks", "--size", "10GiB", "--name", "large"])?;
    // More than one answer covers, on both sides of where one ends, and at the end.
    let (border, end) = (128 * MIB as u64, 10 << 30);
    for (at, length) in [(border - 4096, 8192), (5 << 30, 512), (end - 4096, 4096)] {
        agent.write(&vdi, at, &noise(at, length))?;
    }
    let mut served = Served::new(&agent, &directory, &vdi)?;
    agent.stop()?;
    served.start(&[])?;
    let map = peer("libnbd-bin", "nbdinfo", &["--map=qemu:allocation-depth", "--json", &served.uri()])?;
    let map: Vec<Value> = serde_json::from_str(&map)?;
    let told: Vec<_> =
        map.iter().map(|part| ["offset", "length", "type"].map(|key| part[key].as_u64())).collect();
    let places = [border - 4096, border + 4096, 5 << 30, (5 << 30) + 512, end - 4096, end];
    let mut expected = vec![[0, border - 4096, 0].map(Some)];
    expected.extend(
        places
            .windows(2)
            .enumerate()
            .map(|(nth, pair)| [pair[0], pair[1] - pair[0], u64::from(nth % 2 == 0)].map(Some)),
    );
    ensure!(told == expected, "{told:?}");
    served.stop()
}

#[test]
fn copies_in_and_out_are_the_same_bytes() -> Result<()> {
    for engine in ENGINES {
        let mut stage = Stage::chain()?;
        stage.served.start(&["--engine", engine])?;
        let uri = stage.served.uri();
        stage.expect_content()?;
        let (source, back) = (stage.served.path("source"), stage.served.path("back"));
        let mut content = noise(77, stage.content.len());
        content[(3 * MIB)..(9 * MIB + 512)].fill(0);
        fs::write(&source, &content)?;
        peer("libnbd-bin", "nbdcopy", &["--connections=4", "--flush", &text(&source), &uri])?;
        peer("libnbd-bin", "nbdcopy", &["--connections=4", &uri, &text(&back)])?;
        ensure!(sha256(&source)? == sha256(&back)?, "nbdcopy with {engine}");
        qemu_img(&["compare", "-f", "raw", "-F", "raw", &uri, &text(&source)])?;
        let qcow2 = stage.served.path("qcow2");
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &uri, &text(&qcow2)])?;
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &text(&qcow2), &text(&source)])?;
        stage.served.stop()?;
        stage.content = content;
        stage.agree_detached()?;
    }
    Ok(())
}

#[test]
fn qemu_io_reads_what_it_wrote_at_any_place() -> Result<()> {
    for engine in ENGINES {
        let mut stage = Stage::chain()?;
        stage.served.start(&["--engine", engine])?;
        let commands = [
            "write -P 17 100 1000",
            "read -P 17 100 1000",
            "write -P 18 2097000 70000",
            "read -P 18 2097000 70000",
            "write -z 5000001 3000000",
            "read -P 0 5000001 3000000",
            "write -z -u 10M 4M",
            "read -P 0 10M 4M",
            "write -f -P 19 12M 64k",
            "read -P 19 12M 64k",
            "discard 14M 2M",
            "aio_write -P 20 20M 1M",
            "aio_write -P 21 21M 1M",
            "aio_flush",
            "read -P 20 20M 1M",
            "read -P 21 21M 1M",
            "flush",
        ];
        let uri = stage.served.uri();
        let mut words = vec!["-f", "raw"];
        words.extend(commands.iter().flat_map(|command| ["-c", command]));
        words.push(&uri);
        let said = peer("qemu-utils", "qemu-io", &words)?;
        ensure!(!said.contains("failed") && !said.contains("error"), "{engine}: {said}");
        for (value, range) in [
            (17, 100..1100),
            (18, 2_097_000..2_167_000),
            (0, 5_000_001..8_000_001),
            (0, 10 * MIB..14 * MIB),
            (19, 12 * MIB..12 * MIB + 65_536),
            (20, 20 * MIB..21 * MIB),
            (21, 21 * MIB..22 * MIB),
        ] {
            stage.content[range].fill(value);
        }
        // What a discarded range reads as is not promised; afterwards it is known.
        let mut client = stage.served.client()?;
        let discarded = client.read(14 << 20, 2 << 20)?;
        stage.content[14 * MIB..16 * MIB].copy_from_slice(&discarded.ok().unwrap_or_default());
        stage.expect_content()?;
        stage.served.stop()?;
        stage.agree_detached()?;
    }
    Ok(())
}

#[test]
fn fio_verifies_what_it_writes_at_random() -> Result<()> {
    for engine in ENGINES {
        let mut stage = Stage::chain()?;
        stage.served.start(&["--engine", engine])?;
        let uri = format!("--uri={}", stage.served.uri());
        let common = [
            "--ioengine=nbd",
            &uri,
            "--verify=crc32c",
            "--verify_fatal=1",
            "--rw=randwrite",
            "--output-format=terse",
            "--verify_state_save=0",
        ];
        let small = ["--name=small", "--bs=4k", "--size=16m", "--iodepth=32", "--fsync=64"];
        let mixed = ["--name=mixed", "--bsrange=512-256k", "--offset=16m", "--size=16m", "--iodepth=8"];
        let words: Vec<&str> = common.into_iter().chain(small).chain(mixed).collect();
        peer("fio", "fio", &words)?;
        stage.served.stop()?;
        stage.check_detached()?;
    }
    Ok(())
}
