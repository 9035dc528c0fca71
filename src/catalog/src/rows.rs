//! Rows and records: every statement that reads or writes one table's row.
//!
//! Ids, sizes and states are columns, compound parts are JSON text. Times are RFC 3339 with nine decimals, so that
//! they sort as text. A value that this program would not write is [`Error::Damaged`], never a guess. Called by the
//! commit (write) and by the load at open.

use crate::check::Violation;
use crate::error::{Error, Result};
use crate::state::{Change, Meta, State};
use catena_types::{
    AttachmentRecord, Bytes, EventRecord, ImageId, ImageRecord, JobId, JobRecord, VdiRecord, VdiUuid,
};
use jiff::Timestamp;
use rusqlite::types::FromSql;
use rusqlite::{Connection, Params, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Display;
use std::str::FromStr;

/// Writes one change; an event gets the number `event`.
pub(crate) fn write(conn: &Connection, change: &Change, event: u64) -> Result<()> {
    match change {
        Change::PutImage(image) => put_image(conn, image),
        Change::RemoveImage(id) => run(conn, "DELETE FROM image WHERE id = ?1", [id.to_string()]),
        Change::PutVdi(vdi) => put_vdi(conn, vdi),
        Change::RemoveVdi(uuid) => run(conn, "DELETE FROM vdi WHERE uuid = ?1", [uuid.to_string()]),
        Change::PutAttachment(row) => put_attachment(conn, row),
        Change::RemoveAttachment(vdi) => {
            run(conn, "DELETE FROM attachment WHERE vdi = ?1", [vdi.to_string()])
        }
        Change::PutJob(job) => put_job(conn, job),
        Change::RemoveJob(id) => run(conn, "DELETE FROM job WHERE id = ?1", [integer(*id)?]),
        Change::PutMeta(meta) => put_meta(conn, meta),
        Change::Event(record) => put_event(conn, record, event),
    }
}

fn run(conn: &Connection, sql: &str, values: impl Params) -> Result<()> {
    const DOING: &str = "writing a row of the catalog";
    let mut statement = conn.prepare_cached(sql).map_err(Error::sql(DOING))?;
    statement.execute(values).map(drop).map_err(Error::sql(DOING))
}

pub(crate) fn put_meta(conn: &Connection, meta: &Meta) -> Result<()> {
    run(
        conn,
        "INSERT INTO meta (one, sr, name_label, name_description, created, coalesce_paused, paused_until, other)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (one) DO UPDATE SET sr = ?1, name_label = ?2, name_description = ?3, created = ?4,
         coalesce_paused = ?5, paused_until = ?6, other = ?7",
        params![
            meta.sr.to_string(),
            meta.name_label,
            meta.name_description,
            time(meta.created),
            meta.coalesce_paused,
            meta.paused_until.map(time),
            json(&meta.other)?,
        ],
    )
}

fn put_image(conn: &Connection, image: &ImageRecord) -> Result<()> {
    run(
        conn,
        "INSERT INTO image (id, parent, format, container, virtual_size, allocated, state, hidden, foreign_writer)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (id) DO UPDATE SET parent = ?2, format = ?3, container = ?4, virtual_size = ?5, allocated = ?6,
         state = ?7, hidden = ?8, foreign_writer = ?9",
        params![
            image.id.to_string(),
            image.parent.map(|parent| parent.to_string()),
            word(&image.format)?,
            image.container,
            integer(image.virtual_size.0)?,
            integer(image.allocated.0)?,
            word(&image.state)?,
            image.hidden,
            image.foreign,
        ],
    )
}

fn put_vdi(conn: &Connection, vdi: &VdiRecord) -> Result<()> {
    run(
        conn,
        "INSERT INTO vdi (uuid, image, name_label, name_description, kind, snapshot_of, created, other_config)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (uuid) DO UPDATE SET image = ?2, name_label = ?3, name_description = ?4, kind = ?5,
         snapshot_of = ?6, created = ?7, other_config = ?8",
        params![
            vdi.uuid.to_string(),
            vdi.image.to_string(),
            vdi.name_label,
            vdi.name_description,
            word(&vdi.kind)?,
            vdi.snapshot_of.map(|disk| disk.to_string()),
            time(vdi.created),
            json(&vdi.other_config)?,
        ],
    )
}

fn put_attachment(conn: &Connection, row: &AttachmentRecord) -> Result<()> {
    run(
        conn,
        "INSERT INTO attachment (vdi, mode, count, boot, since) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (vdi) DO UPDATE SET mode = ?2, count = ?3, boot = ?4, since = ?5",
        params![row.vdi.to_string(), word(&row.mode)?, row.count, row.boot, time(row.since)],
    )
}

fn put_job(conn: &Connection, job: &JobRecord) -> Result<()> {
    run(
        conn,
        "INSERT INTO job (id, work, state, committed, effects, phase, bytes_done, bytes_total, error, attempts,
         retry_at, request_id, answer, created, updated)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT (id) DO UPDATE SET work = ?2, state = ?3, committed = ?4, effects = ?5, phase = ?6,
         bytes_done = ?7, bytes_total = ?8, error = ?9, attempts = ?10, retry_at = ?11, request_id = ?12,
         answer = ?13, created = ?14, updated = ?15",
        params![
            integer(job.id)?,
            json(&job.work)?,
            word(&job.state)?,
            job.committed,
            json(&job.effects)?,
            job.phase,
            integer(job.bytes_done.0)?,
            integer(job.bytes_total.0)?,
            job.error.as_ref().map(json).transpose()?,
            job.attempts,
            job.retry_at.map(time),
            job.request_id,
            job.answer.as_ref().map(json).transpose()?,
            time(job.created),
            time(job.updated),
        ],
    )
}

fn put_event(conn: &Connection, event: &EventRecord, id: u64) -> Result<()> {
    run(
        conn,
        "INSERT INTO event (id, time, kind, severity, sr, vdi, job, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            integer(id)?,
            time(event.time),
            event.kind,
            word(&event.severity)?,
            event.sr.to_string(),
            event.vdi.map(|vdi| vdi.to_string()),
            event.job.map(integer).transpose()?,
            event.message,
        ],
    )
}

/// Reads the whole catalog but the events. Also returns the highest job number ever written.
pub(crate) fn load(conn: &Connection) -> Result<(State, JobId)> {
    let meta = query(conn, "SELECT * FROM meta", [], read_meta)?.pop();
    let mut state = State::empty(meta.ok_or_else(|| Error::Damaged("the SR's own row is missing".into()))?);
    for image in query(conn, "SELECT * FROM image", [], read_image)? {
        state.apply(&Change::PutImage(image));
    }
    for vdi in query(conn, "SELECT * FROM vdi", [], read_vdi)? {
        state.apply(&Change::PutVdi(vdi));
    }
    for row in query(conn, "SELECT * FROM attachment", [], read_attachment)? {
        state.apply(&Change::PutAttachment(row));
    }
    for job in query(conn, "SELECT * FROM job", [], read_job)? {
        state.apply(&Change::PutJob(job));
    }
    state.last_event = highest(conn, "event")?;
    Ok((state, highest(conn, "job")?))
}

/// The highest number a table ever had, removed rows included (kept by AUTOINCREMENT).
fn highest(conn: &Connection, table: &str) -> Result<u64> {
    let found =
        query(conn, "SELECT seq FROM sqlite_sequence WHERE name = ?1", [table], |row| number(row, "seq"))?;
    Ok(found.into_iter().max().unwrap_or(0))
}

/// Events after `after`, not older than `since`, oldest first, at most `limit`.
pub(crate) fn events(
    conn: &Connection,
    since: Option<Timestamp>,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRecord>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    query(
        conn,
        "SELECT * FROM event WHERE id > ?1 AND (?2 IS NULL OR time >= ?2) ORDER BY id LIMIT ?3",
        params![i64::try_from(after).unwrap_or(i64::MAX), since.map(time), limit],
        read_event,
    )
}

/// Removes events older than `before` or numbered up to `newest_gone`, at most `limit` of them. Returns how many.
pub(crate) fn expire_events(
    conn: &Connection,
    before: Timestamp,
    newest_gone: u64,
    limit: u32,
) -> Result<usize> {
    conn.prepare_cached(
        "DELETE FROM event WHERE id IN
         (SELECT id FROM event WHERE id <= ?1 OR time < ?2 ORDER BY id LIMIT ?3)",
    )
    .and_then(|mut statement| statement.execute(params![integer_or_max(newest_gone), time(before), limit]))
    .map_err(Error::sql("expiring events"))
}

/// Whether the oldest event is one that [`expire_events`] would remove.
pub(crate) fn has_expired_events(conn: &Connection, before: Timestamp, newest_gone: u64) -> Result<bool> {
    let found = query(
        conn,
        "SELECT id FROM (SELECT id, time FROM event ORDER BY id LIMIT 1) WHERE id <= ?1 OR time < ?2",
        params![integer_or_max(newest_gone), time(before)],
        |row| number(row, "id"),
    )?;
    Ok(!found.is_empty())
}

fn query<T>(
    conn: &Connection,
    sql: &str,
    values: impl Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    const DOING: &str = "reading the catalog";
    let mut statement = conn.prepare_cached(sql).map_err(Error::sql(DOING))?;
    let mut rows = statement.query(values).map_err(Error::sql(DOING))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(Error::sql(DOING))? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn read_meta(row: &Row<'_>) -> Result<Meta> {
    Ok(Meta {
        sr: parse(row, "sr")?,
        name_label: column(row, "name_label")?,
        name_description: column(row, "name_description")?,
        created: parse(row, "created")?,
        coalesce_paused: column(row, "coalesce_paused")?,
        paused_until: parse_option(row, "paused_until")?,
        other: from_json(row, "other")?,
    })
}

fn read_image(row: &Row<'_>) -> Result<ImageRecord> {
    Ok(ImageRecord {
        id: parse::<ImageId>(row, "id")?,
        parent: parse_option(row, "parent")?,
        format: from_word(row, "format")?,
        container: column(row, "container")?,
        virtual_size: Bytes(number(row, "virtual_size")?),
        allocated: Bytes(number(row, "allocated")?),
        state: from_word(row, "state")?,
        hidden: column(row, "hidden")?,
        foreign: column(row, "foreign_writer")?,
    })
}

fn read_vdi(row: &Row<'_>) -> Result<VdiRecord> {
    Ok(VdiRecord {
        uuid: parse::<VdiUuid>(row, "uuid")?,
        image: parse(row, "image")?,
        name_label: column(row, "name_label")?,
        name_description: column(row, "name_description")?,
        kind: from_word(row, "kind")?,
        snapshot_of: parse_option(row, "snapshot_of")?,
        created: parse(row, "created")?,
        other_config: from_json(row, "other_config")?,
    })
}

fn read_attachment(row: &Row<'_>) -> Result<AttachmentRecord> {
    Ok(AttachmentRecord {
        vdi: parse::<VdiUuid>(row, "vdi")?,
        mode: from_word(row, "mode")?,
        count: column(row, "count")?,
        boot: column(row, "boot")?,
        since: parse(row, "since")?,
    })
}

fn read_job(row: &Row<'_>) -> Result<JobRecord> {
    Ok(JobRecord {
        id: number(row, "id")?,
        work: from_json(row, "work")?,
        state: from_word(row, "state")?,
        committed: column(row, "committed")?,
        effects: from_json(row, "effects")?,
        phase: column(row, "phase")?,
        bytes_done: Bytes(number(row, "bytes_done")?),
        bytes_total: Bytes(number(row, "bytes_total")?),
        error: from_json_option(row, "error")?,
        attempts: column(row, "attempts")?,
        retry_at: parse_option(row, "retry_at")?,
        request_id: column(row, "request_id")?,
        answer: from_json_option(row, "answer")?,
        created: parse(row, "created")?,
        updated: parse(row, "updated")?,
    })
}

fn read_event(row: &Row<'_>) -> Result<EventRecord> {
    Ok(EventRecord {
        id: number(row, "id")?,
        time: parse(row, "time")?,
        kind: column(row, "kind")?,
        severity: from_word(row, "severity")?,
        sr: parse(row, "sr")?,
        vdi: parse_option(row, "vdi")?,
        job: column::<Option<i64>>(row, "job")?.map(|job| unsigned(job, "job")).transpose()?,
        message: column(row, "message")?,
    })
}

fn time(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// SQLite's integers are signed; no size or number that is real needs the last bit.
fn integer(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Violation::NumberTooLarge(value).into())
}

fn integer_or_max(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Violation::Unwritable(error.to_string()).into())
}

/// The one word that an enum without content serialises to.
fn word(value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => Ok(word),
        other => Err(Violation::Unwritable(format!("{other:?} is not a word")).into()),
    }
}

fn column<T: FromSql>(row: &Row<'_>, name: &'static str) -> Result<T> {
    row.get(name).map_err(Error::sql("reading a column of the catalog"))
}

fn number(row: &Row<'_>, name: &'static str) -> Result<u64> {
    unsigned(column(row, name)?, name)
}

fn unsigned(value: i64, name: &'static str) -> Result<u64> {
    u64::try_from(value).map_err(|_| damaged(name, &value))
}

fn parse<T: FromStr>(row: &Row<'_>, name: &'static str) -> Result<T> {
    let text: String = column(row, name)?;
    text.parse().map_err(|_| damaged(name, &text))
}

fn parse_option<T: FromStr>(row: &Row<'_>, name: &'static str) -> Result<Option<T>> {
    let text: Option<String> = column(row, name)?;
    text.map(|text| text.parse().map_err(|_| damaged(name, &text))).transpose()
}

fn from_word<T: DeserializeOwned>(row: &Row<'_>, name: &'static str) -> Result<T> {
    let text: String = column(row, name)?;
    serde_json::from_value(Value::String(text.clone())).map_err(|_| damaged(name, &text))
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, name: &'static str) -> Result<T> {
    let text: String = column(row, name)?;
    serde_json::from_str(&text).map_err(|_| damaged(name, &text))
}

fn from_json_option<T: DeserializeOwned>(row: &Row<'_>, name: &'static str) -> Result<Option<T>> {
    let text: Option<String> = column(row, name)?;
    text.map(|text| serde_json::from_str(&text).map_err(|_| damaged(name, &text))).transpose()
}

fn damaged(column: &str, value: &impl Display) -> Error {
    Error::Damaged(format!("column {column} holds '{value}'"))
}
