//! What to merge next, what to remove, and why not: pure decisions over the tree of one SR.
//!
//! No I/O, no clock: the keeper asks for a plan with the rows of its catalog and what it knows of the moment, after every
//! commit, and starts the first task. So a wake-up cannot be missed, and a plan that is out of date is never followed.
//! [`Candidates`] makes that as cheap in a large SR as in a small one; [`Starvation`] says when a merge gets too little of
//! the disk.

mod candidates;
mod plan;
mod space;
mod starvation;
mod tree;

pub use candidates::Candidates;
pub use plan::{Held, Hold, Moment, Plan, Task, can_shorten, is_read, need, plan, reclaimable, task_of};
pub use space::{VdiSpace, space_of};
pub use starvation::{Starvation, Verdict};
pub use tree::Tree;
