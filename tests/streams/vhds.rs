//! VHDs that others made, and those that we make for others: field by field, and read by their own programs.

use crate::harness::mounted::Mounted;
use crate::harness::{qemu_img, sha256, text};
use crate::{MIB, export_piped, hex, import_piped, layered, noise, state, with_sr};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

#[test]
fn images_of_qemu_come_through_a_pipe() -> Result<()> {
    let (agent, _) = with_sr()?;
    let raw = agent.path("in.raw");
    let mut bytes = noise(7, 3 * MIB);
    bytes.resize(9 << 20, 0);
    bytes.extend(noise(8, MIB + 512));
    fs::write(&raw, &bytes)?;
    for options in ["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on", "subformat=dynamic"] {
        let (vhd, back) = (agent.path("qemu.vhd"), agent.path("back.raw"));
        let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", options, &text(&raw), &text(&vhd)];
        qemu_img(&convert)?;
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", &text(&vhd), &text(&back)])?;
        let mut expected = fs::read(&back)?;
        expected.resize(expected.len().next_multiple_of(2 << 20), 0);
        for format in ["auto", "vhd"] {
            let name = format!("{options}-{format}");
            let said = import_piped(&agent, &fs::read(&vhd)?, format, &name)?;
            ensure!(said.code == 0, "{name}: {said:?}");
            ensure!(agent.hash(&name)? == hex(&expected), "{name} is what qemu reads");
        }
    }
    Ok(())
}

#[test]
fn the_largest_disk_comes_and_goes() -> Result<()> {
    const SIZE: u64 = 2040 << 30;
    let (agent, directory) = with_sr()?;
    let raw = agent.path("in.raw");
    let file = File::create(&raw)?;
    file.set_len(SIZE)?;
    file.write_all_at(&noise(1, 4096), SIZE - 4096)?;
    agent.ok(&["vdi", "import", &text(&raw), "--sr", "disks", "--name", "largest"])?;
    let vhd = export_piped(&agent, "largest", "vhd")?;
    ensure!(vhd.len() < 7 << 20, "a table and a block");
    let said = import_piped(&agent, &vhd, "auto", "again")?;
    ensure!(said.code == 0, "{said:?}");
    ensure!(agent.json(&["vdi", "show", "again"])?["virtual_size"] == SIZE, "its size");
    ensure!(agent.read("again", SIZE - 8192, 8192)? == [vec![0; 4096], noise(1, 4096)].concat(), "its end");
    fs::write(agent.path("out.vhd"), vhd)?;
    let info = ["info", "--output", "json", "-f", "vpc", &text(&agent.path("out.vhd"))];
    let info: Value = serde_json::from_str(&qemu_img(&info)?)?;
    ensure!(info["virtual-size"] == SIZE, "{info}");
    // One byte more is more than a VHD holds.
    let before = state(&agent, &directory)?;
    file.set_len(SIZE + 1)?;
    let said = agent.catena(&["vdi", "import", &text(&raw), "--sr", "disks", "--name", "larger"])?;
    ensure!(said.code == 2 && said.err.contains("2040 GiB"), "{said:?}");
    ensure!(state(&agent, &directory)? == before, "nothing is left");
    Ok(())
}

/// What must stand at these places of a VHD's footer, big-endian.
fn check_footer(footer: &[u8], kind: u8, size: u64, header_at: u64) -> Result<()> {
    let number = |at: usize, len: usize| {
        footer[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    ensure!(&footer[..8] == b"conectix", "cookie");
    ensure!(number(8, 4) == 2 && number(12, 4) == 0x1_0000, "features and version");
    ensure!(number(16, 8) == header_at, "place of the header: {}", number(16, 8));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() - 946_684_800;
    ensure!(number(24, 4) <= now && number(24, 4) + 600 > now, "time: {}", number(24, 4));
    // The creator for which qemu, VirtualBox and Azure take the size, not the geometry.
    ensure!(&footer[28..32] == b"win " && number(32, 4) == 0xa_0000 && &footer[36..40] == b"Wi2k", "creator");
    ensure!(number(40, 8) == size && number(48, 8) == size, "sizes: {} {}", number(40, 8), number(48, 8));
    let (cylinders, heads, sectors) = (number(56, 2), number(58, 1), number(59, 1));
    let product = cylinders * heads * sectors * 512;
    ensure!(
        product <= size && product + heads * sectors * 512 > size,
        "geometry {cylinders}/{heads}/{sectors}"
    );
    ensure!(number(60, 4) == u64::from(kind), "kind: {}", number(60, 4));
    let sum = footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at));
    let sum = !sum.fold(0u32, |sum, (_, byte)| sum + u32::from(*byte));
    ensure!(number(64, 4) == u64::from(sum), "checksum");
    let id = uuid::Uuid::from_slice(&footer[68..84])?;
    ensure!(id.get_version_num() == 4, "a fresh id: {id}");
    ensure!(footer[84..].iter().all(|byte| *byte == 0), "saved state and what is reserved");
    Ok(())
}

#[test]
fn exported_vhds_have_what_their_readers_ask_for() -> Result<()> {
    let (agent, _) = with_sr()?;
    layered(&agent)?;
    let raw = agent.path("disk.raw");
    agent.ok(&["vdi", "export", "disk", &text(&raw), "--format", "raw"])?;
    let hash = sha256(&raw)?;
    for format in ["vhd", "vhd-fixed"] {
        let (file, piped) = (agent.path(format!("{format}.vhd")), agent.path(format!("{format}-piped.vhd")));
        agent.ok(&["vdi", "export", "disk", &text(&file), "--format", format])?;
        fs::write(&piped, export_piped(&agent, "disk", format)?)?;
        for path in [&file, &piped] {
            let bytes = fs::read(path)?;
            let footer = bytes.last_chunk::<512>().context("a footer")?;
            if format == "vhd" {
                check_footer(footer, 3, 12 * MIB, 512)?;
                check_dynamic(&bytes)?;
            } else {
                check_footer(footer, 2, 12 * MIB, u64::MAX)?;
                ensure!(bytes.len() as u64 == 12 * MIB + 512, "a whole number of MiB and a footer");
            }
            let info = qemu_img(&["info", "--output", "json", "-f", "vpc", &text(path)])?;
            let info: Value = serde_json::from_str(&info)?;
            ensure!(info["virtual-size"] == 12 * MIB, "{info}");
            qemu_img(&["compare", "-f", "vpc", "-F", "raw", &text(path), &text(&raw)])?;
            let mounted = Mounted::new(path, path.with_extension("mnt"))?;
            ensure!(sha256(&mounted.layer(1))? == hash, "libvhdi reads the same: {}", path.display());
        }
    }
    Ok(())
}

/// Copy of the footer, header, table and blocks of a dynamic VHD of 12 MiB.
fn check_dynamic(bytes: &[u8]) -> Result<()> {
    let number = |at: usize, len: usize| {
        bytes[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
    };
    ensure!(bytes[..512] == bytes[bytes.len() - 512..], "the copy of the footer");
    ensure!(&bytes[512..520] == b"cxsparse" && number(520, 8) == u64::MAX, "header");
    ensure!(number(528, 8) == 1536 && number(536, 4) == 0x1_0000, "place of the table, version");
    ensure!(number(540, 4) == 6 && number(544, 4) == 2 * MIB, "six blocks of 2 MiB");
    let sum = bytes[512..1536].iter().enumerate().filter(|(at, _)| !(36..40).contains(at));
    ensure!(
        number(548, 4) == u64::from(!sum.fold(0u32, |sum, (_, byte)| sum + u32::from(*byte))),
        "checksum"
    );
    ensure!(bytes[552..1536].iter().all(|byte| *byte == 0), "no parent, no locators");
    let mut end = 2048;
    for (block, owned) in [true, true, false, false, false, true].into_iter().enumerate() {
        let entry = number(1536 + 4 * block, 4);
        if !owned && entry == u64::from(u32::MAX) {
            continue;
        }
        let bitmap = usize::try_from(entry * 512)?;
        ensure!(bitmap >= end && (bitmap + 512) % 4096 == 0, "block {block} at {bitmap}");
        ensure!(bytes[bitmap..bitmap + 512].iter().all(|byte| *byte == 0xff), "all sectors are there");
        end = bitmap + 512 + (2 << 20);
    }
    ensure!(end + 512 == bytes.len(), "the footer follows the last block");
    Ok(())
}
