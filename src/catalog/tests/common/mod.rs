//! Records for the tests of the catalog.

#![allow(dead_code, reason = "each test program uses a part of it")]

use catena_catalog::{Change, Meta};
use catena_types::{
    AttachMode, AttachmentRecord, Bytes, Effects, EventRecord, Format, ImageId, ImageRecord, ImageState,
    JobId, JobRecord, JobState, Severity, SrUuid, VdiKind, VdiRecord, VdiUuid, Work,
};
use jiff::Timestamp;
use std::collections::BTreeMap;

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(crate) fn sr() -> SrUuid {
    SrUuid::from_bytes([7; 16])
}

pub(crate) fn meta() -> Meta {
    Meta {
        sr: sr(),
        name_label: "sr".into(),
        name_description: String::new(),
        created: at(0),
        coalesce_paused: false,
        paused_until: None,
        other: BTreeMap::new(),
    }
}

pub(crate) fn image_id(number: u32) -> ImageId {
    let mut bytes = [1; 16];
    bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
    ImageId::from_bytes(bytes)
}

pub(crate) fn vdi_id(number: u32) -> VdiUuid {
    let mut bytes = [2; 16];
    bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
    VdiUuid::from_bytes(bytes)
}

pub(crate) fn image(number: u32, parent: Option<u32>) -> ImageRecord {
    ImageRecord {
        id: image_id(number),
        parent: parent.map(image_id),
        format: Format::Vhd,
        container: format!("{}.vhd", image_id(number)),
        virtual_size: Bytes(1 << 30),
        allocated: Bytes(8192),
        state: ImageState::Ok,
        hidden: false,
        foreign: false,
    }
}

pub(crate) fn vdi(number: u32, of: u32) -> VdiRecord {
    VdiRecord {
        uuid: vdi_id(number),
        image: image_id(of),
        name_label: format!("disk {number}"),
        name_description: String::new(),
        kind: VdiKind::Disk,
        snapshot_of: None,
        created: at(1),
        other_config: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
    }
}

pub(crate) fn attachment(number: u32) -> AttachmentRecord {
    AttachmentRecord {
        vdi: vdi_id(number),
        mode: AttachMode::ReadOnly,
        count: 2,
        boot: "boot".into(),
        since: at(4),
    }
}

pub(crate) fn job(id: JobId) -> JobRecord {
    JobRecord {
        id,
        work: Work::Create { vdi: vdi_id(1) },
        state: JobState::Running,
        committed: false,
        effects: Effects::default(),
        phase: "making".into(),
        bytes_done: Bytes(0),
        bytes_total: Bytes(100),
        error: None,
        attempts: 0,
        retry_at: None,
        request_id: Some("once".into()),
        answer: None,
        created: at(2),
        updated: at(3),
    }
}

pub(crate) fn event(second: i64, message: &str) -> EventRecord {
    EventRecord {
        id: 0,
        time: at(second),
        kind: "vdi.created".into(),
        severity: Severity::Info,
        sr: sr(),
        vdi: Some(vdi_id(1)),
        job: None,
        message: message.into(),
    }
}

/// An image without parent and the disk that points at it.
pub(crate) fn disk(number: u32) -> [Change; 2] {
    [Change::PutImage(image(number, None)), Change::PutVdi(vdi(number, number))]
}
