//! Images on block devices, of which others have left the bytes: served as those in files are, and no such byte is shown to a guest, or
//! to programs that ignore the bitmaps of a root; and a device that becomes larger while its disk is in use.

use crate::harness::device::Device;
use crate::harness::mounted::Mounted;
use crate::harness::nbd::{FLUSH, TRIM, WRITE, WRITE_ZEROES};
use crate::harness::serving::Served;
use crate::harness::{Agent, peer, qemu_img, text};
use crate::stage::{ENGINES, MIB, noise, same};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Blocks of the disk.
const BLOCKS: u64 = 8;
const SIZE: usize = 8 * 2 * MIB;

/// A disk of one image, on a device with room for so many blocks.
struct Scene {
    agent: Agent,
    device: Device,
    served: Served,
    id: String,
    content: Vec<u8>,
}

impl Scene {
    fn set(blocks: u64) -> Result<Self> {
        let mut agent = Agent::start()?;
        let directory = agent.path("sr");
        agent.ok(&["sr", "create", "--type", "file", "--name", "disks", "--location", &text(&directory)])?;
        let vdi =
            agent.ok(&["vdi", "create", "--sr", "disks", "--size", &SIZE.to_string(), "--name", "disk"])?;
        let mut content = vec![0; SIZE];
        let first = noise(1, 5000);
        agent.write(&vdi, 3000, &first)?;
        content[3000..8000].copy_from_slice(&first);
        let (file, id) = Served::new(&agent, &directory, &vdi)?.leaf().context("a leaf")?;
        agent.stop()?;
        let device = Device::holding(&file, blocks)?;
        let served = Served::of(vec![(device.path().to_owned(), id.clone())], vdi)?;
        Ok(Self { agent, device, served, id, content })
    }

    /// What others who read the image find, who do not look at its bitmaps.
    fn others_agree(&self) -> Result<()> {
        let raw = self.served.path("raw");
        // Without its lock: whoever serves has one of his own.
        let node = text(self.device.path());
        let image = format!("driver=vpc,file.driver=host_device,file.locking=off,file.filename={node}");
        qemu_img(&["convert", "-U", "--image-opts", &image, "-O", "raw", &text(&raw)])?;
        same(&fs::read(&raw)?, &self.content).context("qemu-img")?;
        let mounted = Mounted::new(self.device.path(), self.agent.path("mnt"))?;
        let found = fs::read(mounted.layer(1))?;
        drop(mounted);
        fs::remove_dir(self.agent.path("mnt"))?;
        same(&found, &self.content).context("vhdimount")
    }

    fn guests_agree(&self) -> Result<()> {
        let raw = self.served.path("guest");
        peer("libnbd-bin", "nbdcopy", &[&self.served.uri(), &text(&raw)])?;
        same(&fs::read(&raw)?, &self.content).context("a guest")
    }
}

#[test]
fn nobody_sees_what_others_have_left_on_a_device() -> Result<()> {
    for engine in ENGINES {
        let mut scene = Scene::set(BLOCKS)?;
        scene.others_agree()?;
        scene.served.start(&["--engine", engine])?;
        let mut client = scene.served.client()?;
        // Alone in their blocks, aligned and not, over borders, and in the last sector.
        let places = [(2 * MIB + 700, 100), (4 * MIB - 512, 1024), (9 * MIB, 70_000), (SIZE - 512, 512)];
        for (seed, (at, length)) in places.into_iter().enumerate() {
            let bytes = noise(seed as u64, length);
            ensure!(client.write(at as u64, &bytes, 0)? == 0);
            scene.content[at..at + length].copy_from_slice(&bytes);
        }
        ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
        scene.guests_agree()?;
        scene.others_agree().context("while it is served")?;
        // A part of a block, and a whole one, whose place another takes.
        for (command, at, length) in
            [(WRITE_ZEROES, 9 * MIB + 4096, 30_000), (TRIM, 9 * MIB + 40_960, 8192), (TRIM, 2 * MIB, 2 * MIB)]
        {
            ensure!(client.ask(command, 0, at as u64, u32::try_from(length)?)? == 0);
            scene.content[at..at + length].fill(0);
        }
        ensure!(client.write(13 * MIB as u64, &[5; 512], 0)? == 0);
        scene.content[13 * MIB..13 * MIB + 512].fill(5);
        ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
        scene.guests_agree()?;
        client.disconnect()?;
        scene.served.kill()?;
        scene.others_agree().context("after a kill")?;
        scene.served.start(&["--engine", engine])?;
        scene.guests_agree()?;
        scene.served.stop()?;
        scene.others_agree().context("closed")?;
    }
    Ok(())
}

#[test]
fn a_device_that_becomes_larger_is_made_use_of_at_once() -> Result<()> {
    let mut scene = Scene::set(3)?;
    scene.served.start(&[])?;
    let keeper = scene.served.keeper()?;
    keeper.ask(&json!({"ask": "watermark", "room": 2 * MIB, "chunk": 4 * MIB}))?;
    let mut client = scene.served.client()?;
    for block in 1..BLOCKS {
        let at = block * 2 * MIB as u64;
        client.send(WRITE, 0, at, 512, &[u8::try_from(block)?; 512])?;
        scene.content[usize::try_from(at)?..][..512].fill(u8::try_from(block)?);
    }
    let mut written = 0;
    while written < 2 {
        ensure!(client.receive()?.error == 0);
        written += 1;
    }
    let asked = keeper.receive()?.context("news")?;
    ensure!(asked["news"]["news"] == "grow" && asked["news"]["image"] == scene.id.as_str(), "{asked}");
    let size = scene.device.enlarge(BLOCKS)?;
    ensure!(asked["news"]["size"].as_u64().is_some_and(|wanted| wanted <= size), "{asked}");
    keeper.ask(&json!({"ask": "enlarged", "image": scene.id, "size": size}))?;
    while written < BLOCKS - 1 {
        ensure!(client.receive()?.error == 0);
        written += 1;
    }
    ensure!(client.ask(FLUSH, 0, 0, 0)? == 0);
    scene.guests_agree()?;
    scene.others_agree()?;
    ensure!(footer_at_end(scene.device.path(), size)?, "the footer is not at the new end");
    client.disconnect()?;
    scene.served.stop()?;
    scene.others_agree()
}

fn footer_at_end(device: &Path, size: u64) -> Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut footer = [0; 512];
    fs::File::open(device)?.read_exact_at(&mut footer, size - 512)?;
    Ok(footer.starts_with(b"conectix"))
}
