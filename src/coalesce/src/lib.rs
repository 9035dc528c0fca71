//! What to merge next, what to remove, and why not: pure decisions over the tree of one SR.
//!
//! No I/O, no clock, no state: the keeper calls [`plan`] with the rows of its catalog and what it knows of the moment, after
//! every commit, and starts the first task. So a wake-up cannot be missed, and a plan that is out of date is never
//! followed.

mod plan;
mod tree;

pub use plan::{Held, Hold, Moment, Plan, Task, can_shorten, plan, reclaimable};
pub use tree::Tree;
