//! The named places where a debug build of a worker can be told to die.

use catena_types::CrashPoint;

/// Half of the writes of a header patch are done.
pub(crate) const PATCH_HALF: CrashPoint = CrashPoint("worker.patch_half");
/// A new image is written; the keeper does not know.
pub(crate) const CREATED: CrashPoint = CrashPoint("worker.created");
/// The hidden flag is written; the keeper does not know.
pub(crate) const HIDDEN_SET: CrashPoint = CrashPoint("worker.hidden_set");
/// An image has its new size; it is not closed.
pub(crate) const GROWN: CrashPoint = CrashPoint("worker.grown");
/// An image has its footer where its container ends or is to end; the keeper does not know.
pub(crate) const FITTED: CrashPoint = CrashPoint("worker.fitted");
/// A write has changed the image and is not flushed.
pub(crate) const WRITE_UNFLUSHED: CrashPoint = CrashPoint("worker.write_unflushed");
/// A merge is about to move a batch.
pub(crate) const BATCH: CrashPoint = CrashPoint("worker.batch");
/// A part of a merge is durable; the keeper does not know.
pub(crate) const CHECKPOINT: CrashPoint = CrashPoint("worker.checkpoint");
/// All of a merge is durable, the target is not closed.
pub(crate) const MERGED: CrashPoint = CrashPoint("worker.merged");
/// A piece of an imported or copied disk is written.
pub(crate) const IMPORTING: CrashPoint = CrashPoint("worker.importing");
/// What a repair is going to write over is saved.
pub(crate) const REPAIR_SAVED: CrashPoint = CrashPoint("worker.repair_saved");
/// An image is mended but for its header; the keeper does not know.
pub(crate) const REPAIRED: CrashPoint = CrashPoint("worker.repaired");
/// The unused space of an image is given back; the keeper does not know.
pub(crate) const TRIMMED: CrashPoint = CrashPoint("worker.trimmed");
/// A request is done; the keeper does not know.
pub(crate) const BEFORE_REPLY: CrashPoint = CrashPoint("worker.before_reply");
/// What a predecessor had acknowledged is stored; nobody is served yet.
pub(crate) const SERVE_OPENED: CrashPoint = CrashPoint("serve.opened");
/// The data of a write have landed and are not noted; the client does not know.
pub(crate) const SERVE_LANDED: CrashPoint = CrashPoint("serve.landed");
/// A write is noted; the client does not know.
pub(crate) const SERVE_NOTED: CrashPoint = CrashPoint("serve.noted");
/// What was noted is stored, and is still noted.
pub(crate) const SERVE_STORED: CrashPoint = CrashPoint("serve.stored");
/// The disk has done what the keeper asked; the keeper does not know.
pub(crate) const SERVE_ANSWER: CrashPoint = CrashPoint("serve.answer");

/// Every point of this program.
pub(crate) const ALL: &[CrashPoint] = &[
    PATCH_HALF,
    CREATED,
    HIDDEN_SET,
    GROWN,
    FITTED,
    WRITE_UNFLUSHED,
    BATCH,
    CHECKPOINT,
    MERGED,
    IMPORTING,
    REPAIR_SAVED,
    REPAIRED,
    TRIMMED,
    BEFORE_REPLY,
    SERVE_OPENED,
    SERVE_LANDED,
    SERVE_NOTED,
    SERVE_STORED,
    SERVE_ANSWER,
];
