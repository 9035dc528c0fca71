//! The grounds that refusals are played on: agents with SRs in a certain state, and words that commands may name.

use crate::harness::small::Small;
use crate::harness::{Agent, golden_file};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Where a refusal is provoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// SRs in order, one of them detached; and files and directories of others.
    Plain,
    /// An SR on a small file system without room.
    Full,
    /// A disk whose chain has as many images as it may.
    Long,
    /// SRs without marker, of another host, with a newer catalog, and with damaged and missing images.
    Broken,
    /// An SR that exports are stuck in, of a disk and of a snapshot.
    Busy,
    /// An SR with disks that are attached, for writing and for reading.
    Served,
}

/// A ground.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    /// What must not change.
    pub(crate) places: Vec<PathBuf>,
    words: BTreeMap<&'static str, String>,
    // After the agent, which works there.
    _mount: Option<Small>,
    _stuck: Vec<Stuck>,
}

impl Stage {
    pub(crate) fn build(ground: Ground) -> Result<Self> {
        let agent = Agent::start()?;
        let mut stage =
            Self { agent, places: Vec::new(), words: BTreeMap::new(), _mount: None, _stuck: Vec::new() };
        for name in ["srs", "files"] {
            let place = stage.agent.path(name);
            fs::create_dir(&place)?;
            stage.words.insert(name, place.to_string_lossy().into_owned());
            stage.places.push(place);
        }
        match ground {
            Ground::Plain => stage.plain()?,
            Ground::Full => stage.full()?,
            Ground::Long => stage.long()?,
            Ground::Broken => stage.broken()?,
            Ground::Busy => stage.busy()?,
            Ground::Served => stage.served()?,
        }
        Ok(stage)
    }

    /// The words of a command line, filled in.
    pub(crate) fn words_of(&self, command: &str) -> Result<Vec<String>> {
        command.split(' ').map(|word| self.fill(word)).collect()
    }

    /// A text with `{name}` replaced by what the name stands for, and `{name:8}` by its first eight characters.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, behind) = after.split_once('}').context("a brace without an end")?;
            let (name, length) = name.split_once(':').unwrap_or((name, "100"));
            let word = self.words.get(name).with_context(|| format!("what is {name}?"))?;
            filled.push_str(before);
            filled.push_str(&word[..word.len().min(length.parse()?)]);
            rest = behind;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn sr(&mut self, name: &'static str, location: &Path) -> Result<String> {
        let location = location.to_string_lossy();
        let uuid =
            self.agent.ok(&["sr", "create", "--type", "file", "--name", name, "--location", &location])?;
        self.words.insert(name, uuid.clone());
        Ok(uuid)
    }

    fn disk(&mut self, sr: &str, name: &'static str) -> Result<String> {
        let uuid = self.agent.ok(&["vdi", "create", "--sr", sr, "--size", "8MiB", "--name", name])?;
        self.agent.write(&uuid, 1 << 20, &[7; 8192])?;
        self.words.insert(name, uuid.clone());
        Ok(uuid)
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<()> {
        fs::write(self.agent.path("files").join(name), content)?;
        Ok(())
    }

    /// The container of a disk.
    fn container(&self, sr: &str, disk: &str) -> Result<PathBuf> {
        let record = self.agent.json(&["vdi", "show", disk])?;
        Ok(self.agent.path("srs").join(sr).join(record["container"].as_str().context("a container")?))
    }

    fn plain(&mut self) -> Result<()> {
        let srs = self.agent.path("srs");
        self.sr("store", &srs.join("store"))?;
        self.disk("store", "disk")?;
        self.agent.ok(&["vdi", "snapshot", "disk", "--name", "snapshot"])?;
        self.disk("store", "one")?;
        self.disk("store", "two")?;
        for name in ["one", "two"] {
            // Two disks of one name.
            let uuid = self.words.get(name).context("a disk")?.clone();
            let made = self.agent.ok(&["vdi", "clone", &uuid, "--name", "twin"])?;
            self.words.insert(if name == "one" { "twin1" } else { "twin2" }, made);
        }
        self.agent.ok(&["coalesce", "pause", "store"])?;
        let away = self.sr("away", &srs.join("away"))?;
        self.agent.ok(&["sr", "detach", &away])?;
        fs::create_dir(srs.join("empty"))?;
        fs::create_dir(srs.join("notes"))?;
        fs::write(srs.join("notes/notes.txt"), "not ours")?;
        self.file("there.raw", b"not an export")?;
        self.file("empty.raw", b"")?;
        self.file("disk.vmdk", &[&b"KDMV\x01\0\0\0"[..], &[0; 4096]].concat())?;
        self.file("garbage.vhd", &[0x5a; 8192])?;
        golden_file("chain3/L1.vhd", &self.agent.path("files/child.vhd"))
    }

    fn full(&mut self) -> Result<()> {
        let mount = Small::ext4(24 << 20)?;
        let point = mount.point();
        self.sr("small", &point)?;
        self.disk("small", "disk")?;
        self.agent.ok(&["coalesce", "pause", "small"])?;
        self.disk("small", "used")?;
        self.agent.ok(&["vdi", "attach", "used"])?;
        self.file("large.raw", &vec![0x5a; 32 << 20])?;
        // Less than the tables of the largest disk is left.
        let mut ballast = File::create(point.join("ballast"))?;
        let chunk = vec![1; 1 << 20];
        loop {
            let free = self.agent.json(&["sr", "stat", "small"])?["free_space"].as_u64().context("free")?;
            if free < 4 << 20 {
                break;
            }
            ballast.write_all(&chunk)?;
            ballast.sync_all()?;
        }
        self.places.push(point);
        self._mount = Some(mount);
        Ok(())
    }

    fn long(&mut self) -> Result<()> {
        let place = self.agent.path("srs/store");
        self.sr("store", &place)?;
        self.disk("store", "disk")?;
        for n in 0..29_u64 {
            self.agent.ok(&["vdi", "snapshot", "disk", "--name", &format!("s{n}")])?;
        }
        // A leaf that owns nothing would be cloned beside itself.
        self.agent.write("disk", 0, &[9; 512])?;
        Ok(())
    }

    fn broken(&mut self) -> Result<()> {
        let srs = self.agent.path("srs");
        for name in ["newer", "bare", "other", "worn"] {
            self.sr(name, &srs.join(name))?;
        }
        for name in ["torn", "gone"] {
            self.disk("worn", name)?;
        }
        let torn = self.container("worn", "torn")?;
        let gone = self.container("worn", "gone")?;
        self.words.insert("torn_image", torn.file_stem().context("a name")?.to_string_lossy().into_owned());
        self.words.insert("gone_file", gone.file_name().context("a name")?.to_string_lossy().into_owned());
        self.agent.stop()?;

        // SQLite's user_version, where the catalog keeps the version of its schema.
        let mut catalog = File::options().write(true).open(srs.join("newer/.catena/catalog.db"))?;
        catalog.seek(SeekFrom::Start(60))?;
        catalog.write_all(&99_u32.to_be_bytes())?;
        fs::remove_file(srs.join("bare/.catena/sr.toml"))?;
        let marker = srs.join("other/.catena/sr.toml");
        let text = fs::read_to_string(&marker)?;
        let host = text.lines().find_map(|line| line.strip_prefix("host = ")).context("a host")?;
        fs::write(&marker, text.replace(host, "\"another-host\""))?;
        // Both copies of the footer.
        let length = fs::metadata(&torn)?.len();
        let file = File::options().write(true).open(&torn)?;
        for at in [0, length - 512] {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 512], at)?;
        }
        fs::remove_file(&gone)?;

        self.agent.launch(None)?;
        for name in ["newer", "bare", "other"] {
            let said = self.agent.catena(&["sr", "attach", name])?;
            ensure!(said.code != 0, "{name} is attached: {said:?}");
        }
        self.agent.ok(&["sr", "attach", "worn"])?;
        self.agent.ok(&["coalesce", "pause", "worn"])?;
        self.agent.ok(&["sr", "scan", "worn"])?;
        Ok(())
    }

    fn served(&mut self) -> Result<()> {
        let place = self.agent.path("srs/store");
        self.sr("store", &place)?;
        self.agent.ok(&["coalesce", "pause", "store"])?;
        for name in ["written", "read"] {
            self.disk("store", name)?;
        }
        self.agent.ok(&["vdi", "snapshot", "written", "--name", "before"])?;
        self.agent.ok(&["vdi", "attach", "written"])?;
        self.agent.ok(&["vdi", "attach", "read", "--read-only"])?;
        self.file("some.raw", &[1; 512])
    }

    /// Exports into pipes that nobody reads.
    fn busy(&mut self) -> Result<()> {
        let place = self.agent.path("srs/store");
        self.sr("store", &place)?;
        self.agent.ok(&["coalesce", "pause", "store"])?;
        for name in ["disk", "other"] {
            self.disk("store", name)?;
        }
        self.agent.ok(&["vdi", "snapshot", "other", "--name", "kept"])?;
        for name in ["kept", "disk"] {
            let mut export = self.agent.command(&["vdi", "export", name, "-", "--format", "raw"]);
            let mut export = Stuck(export.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
            // It has begun, and its pipe holds less than the disk.
            export.0.stdout.as_mut().context("a pipe")?.read_exact(&mut [0; 512])?;
            self._stuck.push(export);
        }
        let jobs = self.agent.json(&["job", "list"])?;
        let running = jobs["jobs"].as_array().into_iter().flatten().find(|job| job["state"] == "running");
        self.words.insert("job", running.and_then(|job| job["id"].as_str()).context("an id")?.to_owned());
        self.file("some.raw", &[1; 512])
    }
}

/// A command that never ends by itself.
struct Stuck(Child);

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a command could not be ended: {error}");
        }
    }
}
