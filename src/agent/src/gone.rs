//! Requests that have made an SR unknown (forget, destroy): after them nothing else could say that they were carried out.
//!
//! `sr.d/gone/` has an empty file for each of the latest. It is written before the file of the SR is removed: a crash
//! between the two leaves an SR that is known, and the repeated request is carried out; after both it is answered from here.

use crate::srd::{Store, write_whole};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;
use uuid::Uuid;

/// How many are kept.
const KEPT: usize = 64;

impl Store {
    /// Notes durably that the request of this key is about to have its effect.
    pub(crate) fn note_gone(&self, method: &str, request_id: &str) -> io::Result<()> {
        let path = self.gone_path(method, request_id);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        write_whole(&path, b"")?;
        self.drop_old()
    }

    /// Whether the request of this key had its effect (or was about to have it when the agent died).
    pub(crate) fn was_gone(&self, method: &str, request_id: &str) -> bool {
        self.gone_path(method, request_id).exists()
    }

    fn gone_path(&self, method: &str, request_id: &str) -> PathBuf {
        let name = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{method} {request_id}").as_bytes());
        self.directory.join("gone").join(name.to_string())
    }

    fn drop_old(&self) -> io::Result<()> {
        let mut notes: Vec<(SystemTime, PathBuf)> = Vec::new();
        for item in fs::read_dir(self.directory.join("gone"))? {
            let item = item?;
            notes.push((item.metadata()?.modified()?, item.path()));
        }
        notes.sort();
        let old = notes.len().saturating_sub(KEPT);
        notes[..old].iter().try_for_each(|(_, path)| fs::remove_file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_requests_are_remembered_each_for_its_method() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(!store.was_gone("SR.forget", "0"));
        for key in 0..=KEPT {
            store.note_gone("SR.forget", &key.to_string()).unwrap();
        }
        assert!(store.was_gone("SR.forget", &KEPT.to_string()));
        assert!(!store.was_gone("SR.destroy", &KEPT.to_string()));
        assert_eq!(fs::read_dir(directory.path().join("gone")).unwrap().count(), KEPT);
        // Not taken for files of SRs.
        assert_eq!(store.load().unwrap().1.len(), 0);
    }
}
