//! The refusals: where, what is asked, and what is said.

use crate::stage::Ground::{self, Broken, Busy, Full, Long, Plain, Served};

/// A refusal.
pub(crate) struct Row {
    pub(crate) ground: Ground,
    /// The command line after `catena`.
    pub(crate) command: &'static str,
    /// The error's name; its number and exit code are those of the documentation.
    pub(crate) name: &'static str,
    /// Part of the reason.
    pub(crate) reason: &'static str,
    /// Part of the hint; empty where there is none.
    pub(crate) hint: &'static str,
    /// The refusal comes when a job has begun, which is listed as failed.
    pub(crate) leaves_a_job: bool,
}

/// A request that is refused before anything is begun.
const fn at_once(
    ground: Ground,
    command: &'static str,
    name: &'static str,
    reason: &'static str,
    hint: &'static str,
) -> Row {
    Row { ground, command, name, reason, hint, leaves_a_job: false }
}

/// One whose job finds out.
const fn by_job(
    ground: Ground,
    command: &'static str,
    name: &'static str,
    reason: &'static str,
    hint: &'static str,
) -> Row {
    Row { ground, command, name, reason, hint, leaves_a_job: true }
}

/// Names that nothing provokes, and why.
pub(crate) const NEVER: &[(&str, &str)] = &[
    ("scan_failed", "a scan that fails is told by its cause: sr_unavailable, io_error"),
    ("vdi_exists", "every new VDI has a new uuid; for introductions of single images, which are not built"),
    ("vdi_create", "told by its cause: no_space, vdi_size, io_error"),
    ("vdi_delete", "told by its cause; a delete needs no space"),
    ("vdi_clone", "told by its cause: no_space, chain_too_long, vdi_load"),
    ("vdi_snapshot", "told by its cause: no_space, chain_too_long"),
    ("over_provisioned_attach", "needs a volume group"),
];

/// Every refusal.
pub(crate) const ROWS: &[Row] = &[
    // Names.
    at_once(Plain, "sr show nowhere", "sr_unavailable", "no SR 'nowhere'", "catena sr list"),
    at_once(Plain, "sr show {store:7}", "sr_unavailable", "no SR '{store:7}'", "from 8 digits on"),
    at_once(
        Plain,
        "vdi create --sr nowhere --size 4MiB --name x",
        "sr_unavailable",
        "nowhere",
        "catena sr list",
    ),
    at_once(Plain, "vdi show nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi show {disk:7}", "vdi_missing", "no VDI '{disk:7}'", "from 8 digits on"),
    at_once(
        Plain,
        "vdi show 00000000-0000-4000-8000-000000000000",
        "vdi_missing",
        "no VDI",
        "not asked: away",
    ),
    at_once(Plain, "vdi snapshot nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi attach nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi detach nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi tree nothing", "vdi_missing", "neither an SR nor a VDI", "catena vdi list"),
    at_once(
        Plain,
        "vdi export nothing {files}/new.raw",
        "vdi_missing",
        "no VDI 'nothing'",
        "catena vdi list",
    ),
    at_once(Plain, "vdi show twin", "bad_request", "ambiguous", "use the uuid"),
    at_once(Plain, "vdi show twin", "bad_request", "{twin1} (twin)", "use the uuid"),
    at_once(Plain, "vdi show twin", "bad_request", "{twin2} (twin)", "use the uuid"),
    at_once(Plain, "vdi destroy twin --yes", "bad_request", "ambiguous", "use the uuid"),
    at_once(Plain, "job show {store:8}-999999", "vdi_missing", "no job", "catena job list"),
    at_once(Plain, "job wait 00000000-1", "vdi_missing", "no job '00000000-1'", "catena job list"),
    at_once(Plain, "job cancel nonsense", "vdi_missing", "no job 'nonsense'", "catena job list"),
    // SRs.
    at_once(Plain, "sr grow nowhere", "sr_unavailable", "no SR 'nowhere'", "catena sr list"),
    by_job(Plain, "sr grow store --devices /dev/null", "unsupported", "grows by itself", ""),
    at_once(
        Plain,
        "sr create --type nfs --name x --location {srs}/new",
        "sr_unknown_type",
        "no SR type 'nfs'",
        "types: file",
    ),
    at_once(
        Plain,
        "sr create --type file --name x --location {srs}/new --allocation thick",
        "unsupported",
        "thin",
        "leave --allocation out",
    ),
    at_once(
        Plain,
        "sr create --type file --name x --location {srs}/no/new",
        "sr_unavailable",
        "no directory {srs}/no",
        "mounted",
    ),
    at_once(Plain, "sr create --type file --name x --location /", "unsupported", "name of a directory", ""),
    at_once(
        Plain,
        "sr create --type file --name x --location {srs}/store",
        "sr_exists",
        "{store}",
        "catena sr list",
    ),
    at_once(
        Plain,
        "sr create --type file --name x --location {srs}/notes",
        "sr_not_empty",
        "notes.txt",
        "empty or a new directory",
    ),
    at_once(
        Plain,
        "sr create --type file --name x --location {files}/there.raw",
        "sr_not_empty",
        "not a directory",
        "empty or a new directory",
    ),
    at_once(
        Plain,
        "sr introduce --type file --location {srs}/nowhere",
        "sr_unavailable",
        "does not exist",
        "mounted",
    ),
    at_once(
        Plain,
        "sr introduce --type file --location {srs}/empty",
        "sr_unavailable",
        "no images",
        "mounted",
    ),
    at_once(
        Plain,
        "sr introduce --type file --location {srs}/notes",
        "sr_not_empty",
        "notes.txt",
        "empty or a new directory",
    ),
    at_once(
        Plain,
        "sr introduce --type file --location {srs}/store",
        "sr_exists",
        "{store}",
        "catena sr list",
    ),
    at_once(Plain, "sr destroy store", "bad_request", "cannot be undone", "--yes"),
    at_once(Plain, "sr destroy store --yes", "sr_not_empty", "6 VDIs", "catena vdi destroy"),
    at_once(Plain, "sr forget store", "sr_in_use", "not detached", "catena sr detach {store}"),
    at_once(
        Plain,
        "vdi create --sr away --size 4MiB --name x",
        "sr_unavailable",
        "not attached",
        "catena sr attach {away}",
    ),
    at_once(Plain, "sr check away", "sr_unavailable", "not attached", "catena sr attach {away}"),
    at_once(Plain, "coalesce run store --wait", "try_again", "paused", "catena coalesce resume"),
    // Disks.
    at_once(Plain, "vdi create --sr store --size 0 --name x", "vdi_size", "0 bytes", "2040 GiB"),
    at_once(Plain, "vdi create --sr store --size 2041GiB --name x", "vdi_size", "out of range", "2040 GiB"),
    at_once(Plain, "vdi create --sr store --size 20000TiB --name x", "vdi_size", "out of range", "2040 GiB"),
    at_once(Plain, "vdi clone disk --count 1001 --name x", "bad_request", "between 1 and 1000", ""),
    at_once(Plain, "vdi destroy one", "bad_request", "not a full uuid", "{one}"),
    at_once(Plain, "vdi destroy {one} nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi resize disk 4MiB", "vdi_size", "cannot shrink", ""),
    at_once(Plain, "vdi resize disk 2041GiB", "vdi_size", "out of range", "2040 GiB"),
    at_once(Plain, "vdi resize snapshot 16MiB", "resize_failed", "is a snapshot", "clone it"),
    at_once(
        Plain,
        "vdi revert disk one",
        "bad_request",
        "not a snapshot of the disk 'disk'",
        "catena vdi list",
    ),
    at_once(Plain, "vdi revert disk nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi set disk color=red", "bad_request", "no key 'color'", ""),
    at_once(Plain, "vdi set disk color", "bad_request", "KEY=VALUE", ""),
    at_once(Plain, "vdi snapshot disk nothing", "vdi_missing", "no VDI 'nothing'", "catena vdi list"),
    at_once(Plain, "vdi detach disk", "vdi_unavailable", "not attached", "catena vdi list"),
    at_once(Plain, "vdi snapshot disk disk", "bad_request", "twice", ""),
    at_once(Plain, "vdi copy disk --sr nowhere", "sr_unavailable", "nowhere", "catena sr list"),
    // Policy.
    at_once(
        Plain,
        "sr policy store coalesce.rat=1",
        "bad_request",
        "no policy 'coalesce.rat'",
        "catena sr policy",
    ),
    at_once(
        Plain,
        "sr policy store coalesce.rate=fast",
        "bad_request",
        "'fast' is not a size",
        "coalesce.rate is",
    ),
    at_once(
        Plain,
        "sr policy store coalesce.window=25:00-26:00",
        "bad_request",
        "not a window",
        "22:00-06:00",
    ),
    at_once(
        Plain,
        "sr policy store coalesce.io_class=realtime",
        "bad_request",
        "not an I/O class",
        "best-effort",
    ),
    at_once(Plain, "coalesce pause store --until 2020-01-01T00:00:00Z", "bad_request", "is over", ""),
    // Files.
    at_once(Plain, "vdi export disk {files}/there.raw", "bad_request", "never overwritten", "another file"),
    at_once(Plain, "vdi export disk {files}/no/new.raw", "io_error", "No such file", ""),
    at_once(Plain, "vdi import {files}/nothing.raw --sr store", "io_error", "No such file", ""),
    by_job(
        Plain,
        "vdi import {files}/child.vhd --sr store",
        "image_unsafe",
        "parent 'L0.vhd'",
        "merge it with its parents",
    ),
    by_job(Plain, "vdi import {files}/disk.vmdk --sr store", "unsupported", "VMDK", "raw"),
    by_job(
        Plain,
        "vdi import {files}/garbage.vhd --sr store --format vhd",
        "vdi_load",
        "damaged at byte",
        "--format",
    ),
    by_job(Plain, "vdi import {files}/empty.raw --sr store", "vdi_size", "the stream is empty", ""),
    // Space.
    by_job(Full, "vdi import {files}/large.raw --sr small", "no_space", "missing", "larger"),
    at_once(Full, "vdi write disk {files}/large.raw", "no_space", "missing", "larger"),
    at_once(Full, "vdi create --sr small --size 2040GiB --name x", "no_space", "missing", "larger"),
    at_once(Full, "vdi resize disk 2040GiB", "no_space", "missing", "larger"),
    at_once(Full, "vdi resize used 2040GiB", "no_space", "missing", "larger"),
    // Chains.
    at_once(Long, "vdi snapshot disk", "chain_too_long", "30 images", "delete snapshots"),
    at_once(Long, "vdi snapshot disk --wait", "chain_too_long", "30 is the limit", "delete snapshots"),
    at_once(Long, "vdi clone disk", "chain_too_long", "30 images", "delete snapshots"),
    // Damage.
    at_once(Broken, "sr attach newer", "metadata", "schema 99", "version of Catena that wrote it"),
    at_once(Broken, "sr attach bare", "sr_unavailable", "no SR at", "mounted"),
    at_once(Broken, "sr attach other", "sr_in_use", "host another-host", "--take-over"),
    at_once(
        Broken,
        "vdi create --sr newer --size 4MiB --name x",
        "sr_unavailable",
        "schema 99",
        "mend the cause",
    ),
    by_job(
        Broken,
        "vdi export torn {files}/new.raw",
        "vdi_load",
        "{torn_image}: damaged at byte",
        "catena sr check",
    ),
    at_once(Broken, "vdi clone torn", "vdi_load", "damaged at byte", "catena sr check"),
    at_once(Broken, "vdi snapshot gone", "vdi_unavailable", "{gone_file}", "catena sr check"),
    at_once(Broken, "vdi export gone {files}/new.raw", "vdi_unavailable", "missing", "catena sr check"),
    // At work.
    at_once(
        Busy,
        "vdi write disk {files}/some.raw",
        "vdi_in_use",
        "another job reads this disk",
        "catena job list",
    ),
    at_once(Busy, "vdi attach kept", "vdi_in_use", "it is a snapshot", "catena job list"),
    at_once(Busy, "vdi resize disk 16MiB", "vdi_in_use", "another job reads this disk", "catena job list"),
    // In use.
    at_once(Served, "vdi attach written", "vdi_in_use", "attached for writing", "catena vdi detach"),
    at_once(
        Served,
        "vdi attach written --read-only",
        "vdi_in_use",
        "attached for writing",
        "catena vdi detach",
    ),
    at_once(Served, "vdi attach read", "vdi_in_use", "attached for reading", "catena vdi detach"),
    at_once(Served, "vdi revert written before", "vdi_in_use", "attached for writing", "catena vdi clone"),
    at_once(Served, "vdi resize read 16MiB", "vdi_in_use", "attached for reading", "catena vdi detach"),
    at_once(Served, "vdi resize written 4MiB", "vdi_size", "cannot shrink", ""),
    at_once(Served, "vdi resize written 2041GiB", "vdi_size", "out of range", "2040 GiB"),
    at_once(
        Served,
        "vdi write written {files}/some.raw",
        "vdi_in_use",
        "attached for writing",
        "catena vdi detach",
    ),
    at_once(
        Served,
        "vdi read written --offset 0 --length 512 {files}/new.raw",
        "vdi_in_use",
        "attached for writing",
        "snapshot",
    ),
    at_once(Served, "vdi destroy written --yes", "vdi_in_use", "attached for writing", "catena vdi detach"),
    at_once(Served, "sr detach store", "sr_in_use", "2 of the SR's disks are attached", "catena vdi detach"),
];
