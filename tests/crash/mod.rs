//! What the tests of crashes share: an SR with something of everything, the requests that are interrupted, and how what is
//! left is judged.
//!
//! Used by `crash_points` (each named point) and `kill_anywhere` (any moment).

#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod coming;
pub(crate) mod effect;
pub(crate) mod extending;
pub(crate) mod growing;
pub(crate) mod life;
pub(crate) mod mending;
pub(crate) mod merging;
pub(crate) mod request;
pub(crate) mod serving;
pub(crate) mod stage;
pub(crate) mod table;
pub(crate) mod there;
pub(crate) mod volumes;
pub(crate) mod worn;
