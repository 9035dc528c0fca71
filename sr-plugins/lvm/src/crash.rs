//! The named places where a debug build can be told to die while a group becomes an SR, grows, gets a new catalog, or goes. Whatever
//! happens to an open SR is a job of the keeper, which has points of its own.

use catena_types::CrashPoint;

/// The devices of a new SR are physical volumes in no group.
pub(crate) const PHYSICAL: CrashPoint = CrashPoint("group.physical");
/// The group of a new SR is made, and holds nothing.
pub(crate) const MADE: CrashPoint = CrashPoint("group.made");
/// A group of another manager belongs to this host, and is as it was otherwise.
pub(crate) const GIVEN: CrashPoint = CrashPoint("group.given");
/// The new catalog is mounted; the group has no marker.
pub(crate) const MOUNTED: CrashPoint = CrashPoint("group.mounted");
/// The marker is gone, the catalog is not.
pub(crate) const UNMARKED: CrashPoint = CrashPoint("group.unmarked");
/// New devices are physical volumes and not in the group.
pub(crate) const ADDED: CrashPoint = CrashPoint("group.added");
/// The group has new devices; nothing else follows from that yet.
pub(crate) const EXTENDED: CrashPoint = CrashPoint("group.extended");
/// The lost catalog has another name.
pub(crate) const ASIDE: CrashPoint = CrashPoint("renew.aside");
/// A new catalog has its volume, which is marked as unfinished, and no file system.
pub(crate) const RENEWED: CrashPoint = CrashPoint("renew.made");
/// It has its file system, and is still marked.
pub(crate) const REFORMATTED: CrashPoint = CrashPoint("renew.formatted");
/// The mark is off; nobody has mounted it.
pub(crate) const FINISHED: CrashPoint = CrashPoint("renew.finished");

/// All of them.
pub(crate) const ALL: &[CrashPoint] =
    &[PHYSICAL, MADE, GIVEN, MOUNTED, UNMARKED, ADDED, EXTENDED, ASIDE, RENEWED, REFORMATTED, FINISHED];
