//! An example or two of every command, shown at the end of its help and in its manual page. A test parses each of them, and
//! fails for a command that has none.

/// The command and its examples.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "sr create",
        &[
            "catena sr create --type file --name disks --location /srv/disks",
            "catena sr create --type lvm --name fast --devices /dev/sdb,/dev/sdc --allocation thin",
        ],
    ),
    (
        "sr introduce",
        &[
            "catena sr introduce --type file --location /srv/xen --dry-run",
            "catena sr introduce --type file --location /srv/xen --name xen",
        ],
    ),
    ("sr probe", &["catena sr probe --type file --location /srv/disks"]),
    ("sr list", &["catena sr list", "catena --json sr list"]),
    ("sr show", &["catena sr show disks"]),
    ("sr stat", &["catena sr stat disks"]),
    ("sr scan", &["catena sr scan disks"]),
    ("sr check", &["catena sr check disks", "catena sr check disks --repair --yes"]),
    ("sr trim", &["catena sr trim disks"]),
    ("sr grow", &["catena sr grow fast", "catena sr grow fast --devices /dev/sdd"]),
    (
        "sr policy",
        &["catena sr policy disks", "catena sr policy disks coalesce.rate=50MiB coalesce.window=22:00-06:00"],
    ),
    ("sr attach", &["catena sr attach disks", "catena sr attach disks --take-over"]),
    ("sr detach", &["catena sr detach disks"]),
    ("sr forget", &["catena sr forget disks"]),
    ("sr destroy", &["catena sr destroy disks --yes"]),
    ("vdi create", &["catena vdi create --sr disks --size 10GiB --name web01"]),
    ("vdi list", &["catena vdi list", "catena vdi list --sr disks"]),
    ("vdi show", &["catena vdi show web01"]),
    ("vdi tree", &["catena vdi tree", "catena vdi tree disks --dot | dot -Tsvg > disks.svg"]),
    ("vdi attach", &["catena vdi attach web01", "catena vdi attach web01 --read-only | xargs nbdinfo --map"]),
    ("vdi detach", &["catena vdi detach web01"]),
    (
        "vdi snapshot",
        &["catena vdi snapshot web01 --name before-upgrade", "catena vdi snapshot web01 db01 --name nightly"],
    ),
    ("vdi clone", &["catena vdi clone golden --name desk --count 40"]),
    ("vdi revert", &["catena vdi revert web01 before-upgrade"]),
    ("vdi copy", &["catena vdi copy web01 --name web01-standby", "catena vdi copy web01 --sr archive"]),
    ("vdi resize", &["catena vdi resize web01 20GiB"]),
    ("vdi set", &["catena vdi set web01 name_label=web02 other_config.owner=ann"]),
    (
        "vdi destroy",
        &["catena vdi destroy 0b1d9c44-52a1-4d0e-9e35-7a4f0c1f2b6d", "catena vdi destroy web01 --yes"],
    ),
    (
        "vdi import",
        &[
            "catena vdi import debian.vhd --sr disks --name golden",
            "zcat debian.raw.gz | catena vdi import - --sr disks --format raw --name golden",
        ],
    ),
    (
        "vdi export",
        &[
            "catena vdi export web01 web01.vhd",
            "catena vdi export web01 - --format raw | zstd > web01.raw.zst",
            "catena vdi export web01 - --format vhd | ssh host2 catena vdi import - --sr disks --name web01",
        ],
    ),
    ("coalesce status", &["catena coalesce status", "catena coalesce status disks --watch"]),
    ("coalesce run", &["catena coalesce run disks --wait"]),
    ("coalesce pause", &["catena coalesce pause disks --until 07:00"]),
    ("coalesce resume", &["catena coalesce resume disks"]),
    ("job list", &["catena job list"]),
    ("job show", &["catena job show 12345678-1"]),
    ("job wait", &["catena job wait 12345678-1"]),
    ("job cancel", &["catena job cancel 12345678-1"]),
    ("event list", &["catena event list --since 1h"]),
    ("event watch", &["catena event watch", "catena --json event watch"]),
    ("demo", &["catena demo"]),
];

/// The examples of a command, named by its path: `sr create`.
pub(crate) fn of(path: &str) -> Option<&'static [&'static str]> {
    EXAMPLES.iter().find(|(name, _)| *name == path).map(|(_, lines)| *lines)
}

/// The examples as they end the command's help.
pub(crate) fn help(path: &str) -> Option<String> {
    let lines: Vec<String> = of(path)?.iter().map(|line| format!("  {line}")).collect();
    let heading = if lines.len() == 1 { "Example:" } else { "Examples:" };
    Some(format!("{heading}\n{}", lines.join("\n")))
}

/// The commands that have examples.
#[cfg(test)]
pub(crate) fn paths() -> impl Iterator<Item = &'static str> {
    EXAMPLES.iter().map(|(path, _)| *path)
}
