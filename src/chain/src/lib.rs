//! Format-neutral chains: the layer trait, the merged map of a chain, and moving data between layers.
//!
//! Knows no format: a format implements [`Layer`] and [`LayerMut`]. Callers are `vhd` (implements) and `datapath` (uses).
//!
//! * [`Chain`] reads a chain as one disk; [`stream`](fn@stream) reads much of it at once.
//! * [`LiveChain`] says who owns what of a disk that is served, without waiting; its leaf is a [`LiveLayer`].
//! * [`write`](fn@write) writes to the leaf.
//! * [`copy`](fn@copy) merges an immutable layer into its parent, with a cursor.
//! * [`move_down`] empties a leaf into its parent, without one.

mod copy;
mod error;
mod layer;
mod live;
mod livechain;
mod map;
mod mixed;
mod mover;
mod moving;
mod plan;
mod pool;
mod progress;
mod reader;
mod stream;
mod survey;
mod units;
mod write;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use copy::{CopyOutcome, copy};
pub use error::Error;
pub use layer::{Extent, Layer, LayerMut, Ownership};
pub use live::{Commit, Grown, Growth, Known, LiveLayer, Noted, Placed, Recall, Room};
pub use livechain::{Beneath, Link, LiveChain, Look, Member};
pub use mixed::{Owner, Run, Runs, Slot};
pub use moving::move_down;
pub use plan::{Plan, Step};
pub use progress::Progress;
pub use reader::{Chain, DEFAULT_MAP_BUDGET, Span};
pub use stream::{Piece, owned_blocks, stream};
pub use write::write;
