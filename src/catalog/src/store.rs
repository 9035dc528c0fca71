//! The file of the catalog under SQLite: how it is opened, written in one transaction, checkpointed and copied.
//!
//! Invariants: EXCLUSIVE is set before the first access, WAL, FULL, no automatic checkpoint (D23). The WAL has its full
//! size before SQLite opens it and is never truncated, so that a commit needs no space of the file system (D22).
//! Called by `catalog`, `backup` and `unknown`; nobody else has a connection.

use crate::error::{Error, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The catalog's file in its directory.
pub(crate) const DATABASE: &str = "catalog.db";
/// The size in bytes that the WAL is given beforehand.
pub(crate) const WAL_BYTES: u64 = 4 << 20;
/// Bytes of a page, set when a catalog is made.
const PAGE_BYTES: u32 = 4096;
/// Bytes of the WAL's header, and of a frame's.
const WAL_HEADER: usize = 32;
const FRAME_HEADER: u64 = 24;
/// Pages that one change may touch: a leaf of its table and of its index, their splits, the counters.
const PAGES_PER_CHANGE: u64 = 8;
/// Pages kept for long texts in any transaction.
const PAGES_FOR_TEXT: u64 = 64;

/// An open catalog file.
#[derive(Debug)]
pub(crate) struct Store {
    conn: Connection,
    /// Frames that fit into the WAL without growing it.
    capacity: u64,
}

impl Store {
    /// Opens the catalog of `dir`. Its content is checked as far as SQLite can, and not yet brought to this version.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(DATABASE);
        if !path.try_exists().map_err(Error::io("looking for the catalog"))? {
            return Err(Error::Missing(path));
        }
        let wal = wal_of(&path);
        let wal_bytes = extend_with_zeros(&wal, WAL_BYTES)?;
        sync_dir(dir)?;
        let conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Before the first access: of a damaged catalog not a byte is to change when this fails and the connection is closed.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(Error::sql("opening the catalog"))?;
        // D23: without this first, SQLite would make a -shm file, and the lock would not be held between transactions.
        pragma(&conn, "locking_mode", "EXCLUSIVE", "exclusive")?;
        pragma(&conn, "journal_mode", "WAL", "wal")?;
        conn.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = -1;
             PRAGMA cache_spill = OFF; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;
             PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON",
        )
        .map_err(Error::sql("opening the catalog"))?;
        let capacity = wal_bytes.saturating_sub(WAL_HEADER as u64) / (u64::from(PAGE_BYTES) + FRAME_HEADER);
        let store = Self { conn, capacity };
        check_integrity(&store.conn, "quick_check")?;
        Ok(store)
    }

    /// The connection, for statements outside a transaction that only read, and for migrations.
    pub(crate) const fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Runs `write` in one transaction. On any error but [`Error::OutcomeUnknown`] nothing has changed.
    pub(crate) fn transaction(&self, write: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(Error::sql("beginning a transaction"))?;
        if let Err(error) = write(&self.conn) {
            return Err(self.roll_back(error));
        }
        self.conn.execute_batch("COMMIT").map_err(|error| match error.sqlite_error_code() {
            // The frame that carries the commit mark is the last to be written, and a write that met a full file system
            // is never followed by another: no mark was written. A lack of space found later, by fsync, is an I/O error.
            Some(ErrorCode::DiskFull | ErrorCode::ConstraintViolation | ErrorCode::DatabaseBusy) => {
                self.roll_back(Error::sql("committing")(error))
            }
            // D19: the mark may be in the page cache, or on the disk, or neither.
            _ => Error::OutcomeUnknown { reason: error.to_string() },
        })
    }

    /// Ends a transaction that SQLite did not end itself; a connection that cannot even do that is good for nothing.
    fn roll_back(&self, cause: Error) -> Error {
        match self.end_transaction() {
            Ok(()) => cause,
            Err(error) => Error::OutcomeUnknown { reason: format!("{cause}; then ROLLBACK: {error}") },
        }
    }

    fn end_transaction(&self) -> rusqlite::Result<()> {
        if self.conn.is_autocommit() { Ok(()) } else { self.conn.execute_batch("ROLLBACK") }
    }

    /// D22: makes sure that a transaction of so many changes fits into the WAL as it is.
    pub(crate) fn make_room(&self, changes: usize) -> Result<()> {
        let pages = PAGES_FOR_TEXT + PAGES_PER_CHANGE * changes as u64;
        if self.frames()? + pages > self.capacity { self.checkpoint() } else { Ok(()) }
    }

    /// Frames of the WAL that are in use: the next transaction is written behind them.
    pub(crate) fn frames(&self) -> Result<u64> {
        let (written, moved) = self.wal_checkpoint("NOOP")?;
        Ok(if written == moved { 0 } else { written })
    }

    /// Moves what the WAL holds into the file, durably, and begins the WAL again without truncating it.
    ///
    /// An error leaves no doubt: the WAL still holds everything and is durable, and the next try writes every page again.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        if self.frames()? == 0 {
            return Ok(());
        }
        let (written, moved) = self.wal_checkpoint("RESTART")?;
        if written == moved { Ok(()) } else { Err(Error::Locked) }
    }

    fn wal_checkpoint(&self, mode: &str) -> Result<(u64, u64)> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let row = self.conn.query_row(&sql, [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        match row.map_err(Error::sql("checkpointing the catalog"))? {
            (0, written, moved) => {
                Ok((u64::try_from(written).unwrap_or(0), u64::try_from(moved).unwrap_or(0)))
            }
            _ => Err(Error::Locked),
        }
    }

    /// Writes the whole catalog, as this connection sees it, into the new file `to`: checked and durable, but for its
    /// name. What was there is replaced; on an error `to` may hold anything.
    pub(crate) fn copy(&self, to: &Path) -> Result<()> {
        remove_database(to)?;
        self.end_transaction().map_err(Error::sql("copying the catalog"))?;
        let name = to.to_str().ok_or_else(|| Error::Damaged(format!("{} is not UTF-8", to.display())))?;
        self.conn.execute("VACUUM INTO ?1", [name]).map_err(Error::sql("copying the catalog"))?;
        seal(to)
    }

    /// Closes the file: everything is in it, and its WAL is void.
    pub(crate) fn close(self, dir: &Path) -> Result<()> {
        self.checkpoint()?;
        self.conn.close().map_err(|(_, error)| Error::sql("closing the catalog")(error))?;
        // After the checkpoint is durable: a crash before this only makes the next open read the WAL once more.
        void_wal(&wal_of(&dir.join(DATABASE)))
    }
}

/// Makes a catalog file at `path` with `fill`: checked and durable, but for its name.
pub(crate) fn build(path: &Path, fill: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    remove_database(path)?;
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    conn.pragma_update(None, "page_size", PAGE_BYTES).map_err(Error::sql("making a catalog"))?;
    fill(&conn)?;
    conn.close().map_err(|(_, error)| Error::sql("making a catalog")(error))?;
    seal(path)
}

/// Makes a catalog file at `path` of a closed one at `from`, changed by `fill`: checked and durable, but for
/// its name.
pub(crate) fn build_on(from: &Path, path: &Path, fill: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    const DOING: &str = "making a catalog of a copy";
    remove_database(path)?;
    fs::copy(from, path).map_err(Error::io(DOING))?;
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    pragma(&conn, "locking_mode", "EXCLUSIVE", "exclusive")?;
    pragma(&conn, "journal_mode", "WAL", "wal")?;
    fill(&conn)?;
    conn.close().map_err(|(_, error)| Error::sql(DOING)(error))?;
    seal(path)
}

/// Checks a new file that nobody else knows, gives it the file mode of a catalog, and makes it durable.
fn seal(path: &Path) -> Result<()> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    pragma(&conn, "locking_mode", "EXCLUSIVE", "exclusive")?;
    pragma(&conn, "journal_mode", "WAL", "wal")?;
    check_integrity(&conn, "integrity_check")?;
    conn.close().map_err(|(_, error)| Error::sql("closing a new catalog")(error))?;
    remove_if_there(&wal_of(path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("making a new catalog durable"))
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection> {
    let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(Error::sql("opening the catalog"))?;
    // Whoever else has it open is another owner: waiting for it would hide that.
    conn.busy_timeout(Duration::ZERO).map_err(Error::sql("opening the catalog"))?;
    Ok(conn)
}

fn pragma(conn: &Connection, name: &str, value: &str, expected: &str) -> Result<()> {
    let answer: String = conn
        .pragma_update_and_check(None, name, value, |row| row.get(0))
        .map_err(Error::sql("setting the catalog's file mode"))?;
    if answer == expected { Ok(()) } else { Err(Error::Damaged(format!("{name} stays '{answer}'"))) }
}

fn check_integrity(conn: &Connection, how: &str) -> Result<()> {
    const DOING: &str = "checking the catalog";
    let answer: String = conn.pragma_query_value(None, how, |row| row.get(0)).map_err(Error::sql(DOING))?;
    if answer != "ok" {
        return Err(Error::Damaged(answer));
    }
    let mut statement = conn.prepare("PRAGMA foreign_key_check").map_err(Error::sql(DOING))?;
    if statement.exists([]).map_err(Error::sql(DOING))? {
        return Err(Error::Damaged("a vdi points at an image that does not exist".into()));
    }
    Ok(())
}

/// The WAL of a database file.
pub(crate) fn wal_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the WAL is there, with its full size.
pub(crate) fn has_full_wal(dir: &Path) -> Result<bool> {
    match fs::metadata(wal_of(&dir.join(DATABASE))) {
        Ok(metadata) => Ok(metadata.len() >= WAL_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("looking at the WAL")(error)),
    }
}

/// Whether the WAL may hold transactions: its owner did not close it.
pub(crate) fn wal_in_use(wal: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    match File::open(wal).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => Ok(magic != [0; 4]),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
            Ok(false)
        }
        Err(error) => Err(Error::io("reading the WAL's header")(error)),
    }
}

fn void_wal(wal: &Path) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(wal).map_err(Error::io("opening the WAL"))?;
    file.write_all(&[0; WAL_HEADER]).and_then(|()| file.sync_all()).map_err(Error::io("closing the WAL"))
}

/// Makes `path` at least `size` bytes long with zeros that take their space, durable but for its name. Where the file
/// system is full it stays shorter. Returns its size in bytes.
pub(crate) fn extend_with_zeros(path: &Path, size: u64) -> Result<u64> {
    static CHUNK: [u8; 64 << 10] = [0; 64 << 10];
    const DOING: &str = "writing zeros beforehand";
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(Error::io(DOING))?;
    let mut at = file.seek(SeekFrom::End(0)).map_err(Error::io(DOING))?;
    if at >= size {
        return Ok(at);
    }
    while at < size {
        let part = usize::try_from(size - at).unwrap_or(CHUNK.len()).min(CHUNK.len());
        match file.write(&CHUNK[..part]) {
            Ok(written) => at += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(path = %path.display(), bytes = at, "no space to write a file to its full size");
                break;
            }
            Err(error) => return Err(Error::io(DOING)(error)),
        }
    }
    file.sync_all().map_err(Error::io(DOING))?;
    Ok(at)
}

/// Removes a database file and what SQLite may have left beside it.
pub(crate) fn remove_database(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-journal", "-shm"] {
        remove_if_there(&beside(path, suffix))?;
    }
    Ok(())
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing a file")(error)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("making a directory durable"))
}

/// Renames durably.
pub(crate) fn rename(dir: &Path, from: &str, to: &str) -> Result<()> {
    fs::rename(dir.join(from), dir.join(to)).map_err(Error::io("renaming a file of the catalog"))?;
    sync_dir(dir)
}
