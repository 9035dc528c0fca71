//! Serving one disk: connections on one side, the disk's images on the other, a keeper that may come and go.
//!
//! One event loop owns everything; see [`disk`] for the state and [`work`] for the seam between a connection and the disk.

mod disk;
mod figures;
mod limits;
mod work;
