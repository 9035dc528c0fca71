//! The directory in which lvm2 looks for its configuration: one of ours, with what it wants to know before it reads its command line.
//!
//! That is how much memory it keeps ready for the moments in which a volume is suspended, so that it need not wait for any that could
//! only be freed by writing to that volume. What it keeps by default, 8 MiB, is for systems that live on their own volumes; to touch
//! all of it takes a third of the time of a command that resizes a volume. All else is said with each command (`lvm2`).
//! Prepared by the plugin, in the agent's run directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The configuration, in KiB.
const TEXT: &str = "activation { reserved_memory = 512 reserved_stack = 64 }\n";

static RUN_DIR: OnceLock<PathBuf> = OnceLock::new();
static PLACE: OnceLock<String> = OnceLock::new();

/// Says where the agent's run directory is; the first word counts.
pub(crate) fn prepare(run_dir: &Path) {
    let _ = RUN_DIR.set(run_dir.to_owned());
}

/// The directory, made by the first who asks. Empty without a run directory, or where it cannot be made: lvm2 reads nothing then, and
/// does as it is built to.
pub(crate) fn get() -> &'static str {
    PLACE.get_or_init(|| {
        let Some(place) = RUN_DIR.get().map(|run_dir| run_dir.join("lvm")) else { return String::new() };
        match write(&place) {
            Ok(()) => place.to_string_lossy().into_owned(),
            Err(error) => {
                tracing::warn!(place = %place.display(), %error, "lvm2 runs without a configuration");
                String::new()
            }
        }
    })
}

fn write(place: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(place)?;
    let file = place.join("lvm.conf");
    if fs::read_to_string(&file).is_ok_and(|text| text == TEXT) {
        return Ok(());
    }
    // Others of this agent may be reading it, or writing the same.
    let new = place.join(format!("lvm.conf.{}", std::process::id()));
    fs::write(&new, TEXT)?;
    fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once() {
        let home = std::env::temp_dir().join(format!("catena-lvm-{}", std::process::id()));
        let file = home.join("lvm.conf");
        write(&home).unwrap();
        let made = fs::metadata(&file).unwrap().modified().unwrap();
        write(&home).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), made);
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1);
        fs::write(&file, "other").unwrap();
        write(&home).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), TEXT);
        fs::remove_dir_all(home).unwrap();
    }
}
