//! The tables of a catalog and how older ones become this.
//!
//! `user_version` is the number of migrations that were applied; each runs in a transaction of its own together with
//! its number. A catalog with a larger number is from a newer program and is refused before anything is written.

use crate::error::{Error, Result};
use rusqlite::Connection;

/// Marks the file as a catalog ("CTNA").
const APPLICATION_ID: i32 = 0x4354_4e41;

/// Every step from an empty file to the present schema. Never edit one that was released; append.
pub(crate) const MIGRATIONS: &[&str] = &[FIRST, ATTACHMENTS];

/// `image.parent` has no foreign key: an adopted image may name a parent that is not here.
const FIRST: &str = "
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    sr TEXT NOT NULL,
    name_label TEXT NOT NULL,
    name_description TEXT NOT NULL,
    created TEXT NOT NULL,
    coalesce_paused INTEGER NOT NULL CHECK (coalesce_paused IN (0, 1)),
    paused_until TEXT,
    other TEXT NOT NULL
) STRICT;
CREATE TABLE image (
    id TEXT PRIMARY KEY,
    parent TEXT,
    format TEXT NOT NULL,
    container TEXT NOT NULL,
    virtual_size INTEGER NOT NULL CHECK (virtual_size >= 0),
    allocated INTEGER NOT NULL CHECK (allocated >= 0),
    state TEXT NOT NULL,
    hidden INTEGER NOT NULL CHECK (hidden IN (0, 1)),
    foreign_writer INTEGER NOT NULL CHECK (foreign_writer IN (0, 1))
) STRICT, WITHOUT ROWID;
CREATE TABLE vdi (
    uuid TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES image (id) DEFERRABLE INITIALLY DEFERRED,
    name_label TEXT NOT NULL,
    name_description TEXT NOT NULL,
    kind TEXT NOT NULL,
    snapshot_of TEXT,
    created TEXT NOT NULL,
    other_config TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX vdi_image ON vdi (image);
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    work TEXT NOT NULL,
    state TEXT NOT NULL,
    committed INTEGER NOT NULL CHECK (committed IN (0, 1)),
    effects TEXT NOT NULL,
    phase TEXT NOT NULL,
    bytes_done INTEGER NOT NULL CHECK (bytes_done >= 0),
    bytes_total INTEGER NOT NULL CHECK (bytes_total >= 0),
    error TEXT,
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    retry_at TEXT,
    request_id TEXT,
    answer TEXT,
    created TEXT NOT NULL,
    updated TEXT NOT NULL
) STRICT;
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    sr TEXT NOT NULL,
    vdi TEXT,
    job INTEGER,
    message TEXT NOT NULL
) STRICT;
";

/// VDIs that are being served.
const ATTACHMENTS: &str = "
CREATE TABLE attachment (
    vdi TEXT PRIMARY KEY REFERENCES vdi (uuid) DEFERRABLE INITIALLY DEFERRED,
    mode TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count > 0),
    boot TEXT NOT NULL,
    since TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Makes the tables in an empty file.
pub(crate) fn initialise(conn: &Connection) -> Result<()> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)
        .map_err(Error::sql("marking a new catalog"))?;
    migrate(conn, 0, MIGRATIONS)
}

/// Brings an existing catalog to the present schema; refuses what is not one, and what is newer.
pub(crate) fn upgrade(conn: &Connection) -> Result<()> {
    let version = version(conn)?;
    migrate(conn, version, MIGRATIONS)
}

/// The schema version of a file that is a catalog this program can read.
pub(crate) fn version(conn: &Connection) -> Result<u32> {
    let application: i32 = pragma(conn, "application_id")?;
    let version: i32 = pragma(conn, "user_version")?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    match u32::try_from(version) {
        _ if application != APPLICATION_ID => Err(Error::Damaged("the file is not a catalog".into())),
        Ok(version) if version > known => Err(Error::Newer { found: version, known }),
        Ok(version) if version > 0 => Ok(version),
        _ => Err(Error::Damaged(format!("schema version {version}"))),
    }
}

fn pragma(conn: &Connection, name: &str) -> Result<i32> {
    conn.pragma_query_value(None, name, |row| row.get(0)).map_err(Error::sql("reading the schema version"))
}

fn migrate(conn: &Connection, from: u32, migrations: &[&str]) -> Result<()> {
    for (number, migration) in (1u32..).zip(migrations).skip(from as usize) {
        let script = format!("BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT;");
        conn.execute_batch(&script).map_err(Error::sql("bringing the catalog to this version"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &[&str] = &[FIRST, ATTACHMENTS, "ALTER TABLE image ADD COLUMN colour TEXT"];

    fn first() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        initialise(&conn).unwrap();
        conn.execute_batch("INSERT INTO image VALUES ('i', NULL, 'vhd', 'c', 1, 1, 'ok', 0, 0)").unwrap();
        conn
    }

    #[test]
    fn only_the_missing_migrations_run_and_rows_stay() {
        let conn = first();
        assert_eq!(version(&conn).unwrap(), 2);
        migrate(&conn, 2, NEXT).unwrap();
        assert_eq!(pragma(&conn, "user_version").unwrap(), 3);
        let colour: Option<String> =
            conn.query_row("SELECT colour FROM image WHERE id = 'i'", [], |row| row.get(0)).unwrap();
        assert_eq!(colour, None);
        migrate(&conn, 3, NEXT).unwrap();
    }

    #[test]
    fn a_catalog_of_before_attachments_gets_an_empty_table_of_them() {
        let conn = Connection::open_in_memory().unwrap();
        conn.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        migrate(&conn, 0, &[FIRST]).unwrap();
        upgrade(&conn).unwrap();
        let count: i64 = conn.query_row("SELECT count(*) FROM attachment", [], |row| row.get(0)).unwrap();
        assert_eq!((count, version(&conn).unwrap()), (0, 2));
    }

    #[test]
    fn a_migration_that_fails_leaves_the_version_before_it() {
        let conn = first();
        let broken: &[&str] = &[
            FIRST,
            ATTACHMENTS,
            "ALTER TABLE image ADD COLUMN colour TEXT; ALTER TABLE nothing ADD COLUMN x",
        ];
        assert!(migrate(&conn, 2, broken).is_err());
        conn.execute_batch("ROLLBACK").unwrap();
        assert_eq!(version(&conn).unwrap(), 2);
        assert!(conn.prepare("SELECT colour FROM image").is_err());
    }

    #[test]
    fn what_is_no_catalog_or_newer_is_refused() {
        let empty = Connection::open_in_memory().unwrap();
        assert!(matches!(version(&empty), Err(Error::Damaged(_))));
        let conn = first();
        conn.pragma_update(None, "user_version", 3).unwrap();
        assert!(matches!(version(&conn), Err(Error::Newer { found: 3, known: 2 })));
        conn.pragma_update(None, "user_version", 0).unwrap();
        assert!(matches!(version(&conn), Err(Error::Damaged(_))));
    }
}
