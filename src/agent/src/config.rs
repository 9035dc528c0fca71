//! The configuration: `catenad.toml`, then `catenad.d/*.toml` beside it in the order of their names; the last one wins.
//!
//! An unknown key is an error that names the file and the key. What is not configured has a default that depends on `--root`.
//! Read once, by `run`.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The longest `--root`: a socket path has 108 bytes, and those of VDIs lie deep below it.
const ROOT_LIMIT: usize = 40;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not say what it should.
    #[error("{path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why; names an unknown key.
        source: Box<toml::de::Error>,
    },
    /// `--root` is too long.
    #[error("--root {0} is longer than {ROOT_LIMIT} bytes: a socket path has 108")]
    RootTooLong(PathBuf),
}

/// The keys of a file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    socket: Option<PathBuf>,
    group: Option<String>,
    run_dir: Option<PathBuf>,
    sr_dir: Option<PathBuf>,
    log: Option<String>,
    readers: Option<String>,
    host_id: Option<String>,
}

impl File {
    fn overridden_by(self, later: Self) -> Self {
        Self {
            socket: later.socket.or(self.socket),
            group: later.group.or(self.group),
            run_dir: later.run_dir.or(self.run_dir),
            sr_dir: later.sr_dir.or(self.sr_dir),
            log: later.log.or(self.log),
            readers: later.readers.or(self.readers),
            host_id: later.host_id.or(self.host_id),
        }
    }
}

/// The configuration as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Started with `--root`: the running uid counts as root, groups are left alone.
    pub(crate) private: bool,
    /// Where clients connect.
    pub(crate) socket: PathBuf,
    /// The group that may do everything.
    pub(crate) group: String,
    /// Sockets, the lock.
    pub(crate) run_dir: PathBuf,
    /// A file for each known SR.
    pub(crate) sr_dir: PathBuf,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub(crate) log: String,
    /// The group that may read.
    pub(crate) readers: Option<String>,
    /// This host, as SRs know their owner.
    pub(crate) host_id: String,
}

/// The directory that `--root` names, absolute; refused where socket paths below it would be too long.
pub(crate) fn private_root(root: &Path) -> Result<PathBuf, ConfigError> {
    let absolute =
        std::path::absolute(root).map_err(|source| ConfigError::Io { path: root.to_owned(), source })?;
    if absolute.as_os_str().len() > ROOT_LIMIT {
        return Err(ConfigError::RootTooLong(absolute));
    }
    Ok(absolute)
}

/// Reads the configuration below `root` (from [`private_root`]) or of the system. `file` replaces `catenad.toml` and must exist.
pub(crate) fn load(root: Option<&Path>, file: Option<&Path>) -> Result<Config, ConfigError> {
    let below = |path: &str| root.unwrap_or(Path::new("/")).join(path);
    let etc = below("etc/catena");
    let main = file.map_or_else(|| etc.join("catenad.toml"), Path::to_owned);
    let mut merged = read(&main, file.is_some())?;
    for path in drop_ins(&main.with_file_name("catenad.d"))? {
        merged = merged.overridden_by(read(&path, true)?);
    }
    let run_dir = merged.run_dir.unwrap_or_else(|| below("run/catena"));
    let host_id = match merged.host_id {
        Some(id) => id,
        None => host_id(Path::new("/etc/machine-id"), &etc.join("host-id"))?,
    };
    Ok(Config {
        private: root.is_some(),
        socket: merged.socket.unwrap_or_else(|| run_dir.join("agent.sock")),
        group: merged.group.unwrap_or_else(|| "catena".to_owned()),
        run_dir,
        sr_dir: merged.sr_dir.unwrap_or_else(|| etc.join("sr.d")),
        log: merged.log.unwrap_or_else(|| "info".to_owned()),
        readers: merged.readers,
        host_id,
    })
}

fn read(path: &Path, must_exist: bool) -> Result<File, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Ok(File::default()),
        Err(source) => Err(ConfigError::Io { path: path.to_owned(), source }),
    }
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Io { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

/// The machine's id; where it has none, one that is made once and kept in `kept`.
fn host_id(machine: &Path, kept: &Path) -> Result<String, ConfigError> {
    for path in [machine, kept] {
        let text = fs::read_to_string(path).unwrap_or_default();
        let id = text.trim();
        if !id.is_empty() && id != "uninitialized" {
            return Ok(id.to_owned());
        }
    }
    let id = uuid::Uuid::new_v4().as_simple().to_string();
    let write = || {
        kept.parent().map_or(Ok(()), fs::create_dir_all)?;
        crate::srd::write_whole(kept, format!("{id}\n").as_bytes())
    };
    write().map_err(|source| ConfigError::Io { path: kept.to_owned(), source })?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join("etc/catena").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn without_files_everything_lies_below_the_root() {
        let root = etc(&[]);
        let config = load(Some(root.path()), None).unwrap();
        assert_eq!(config.socket, root.path().join("run/catena/agent.sock"));
        assert_eq!(config.sr_dir, root.path().join("etc/catena/sr.d"));
        assert_eq!((config.group.as_str(), config.readers, config.private), ("catena", None, true));
        assert!(!config.host_id.is_empty());
    }

    #[test]
    fn the_last_file_wins_key_by_key() {
        let root = etc(&[
            ("catenad.toml", "group = 'a'\nlog = 'debug'\nrun_dir = '/r'"),
            ("catenad.d/20.toml", "group = 'c'"),
            ("catenad.d/10.toml", "group = 'b'\nreaders = 'r'\nhost_id = 'h'"),
            ("catenad.d/30.conf", "group = 'd'"),
        ]);
        let config = load(Some(root.path()), None).unwrap();
        assert_eq!((config.group.as_str(), config.log.as_str()), ("c", "debug"));
        assert_eq!((config.readers.as_deref(), config.host_id.as_str()), (Some("r"), "h"));
        assert_eq!(config.socket, Path::new("/r/agent.sock"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_file_and_key() {
        let root = etc(&[("catenad.d/x.toml", "sokcet = '/run/x'")]);
        let error = load(Some(root.path()), None).unwrap_err().to_string();
        assert!(error.contains("catenad.d/x.toml") && error.contains("sokcet"), "{error}");
    }

    #[test]
    fn a_file_named_on_the_command_line_must_exist() {
        let root = etc(&[]);
        let missing = root.path().join("other.toml");
        assert!(matches!(load(Some(root.path()), Some(&missing)), Err(ConfigError::Io { .. })));
    }

    #[test]
    fn a_long_root_is_refused() {
        assert!(private_root(Path::new("/tmp/1234567890123456789012345678901234")).is_ok());
        assert!(private_root(Path::new("/tmp/1234567890123456789012345678901234567")).is_err());
    }

    #[test]
    fn a_host_without_an_id_gets_one_and_keeps_it() {
        let root = tempfile::tempdir().unwrap();
        let (machine, kept) = (root.path().join("machine-id"), root.path().join("etc/host-id"));
        let made = host_id(&machine, &kept).unwrap();
        assert_eq!(host_id(&machine, &kept).unwrap(), made);
        fs::write(&machine, "abc\n").unwrap();
        assert_eq!(host_id(&machine, &kept).unwrap(), "abc");
    }
}
