//! The disk on simulated storage: random requests with completions in random order, crashes at every step, and single cases.

mod cases;
mod chains;
mod costs;
mod devices;
mod leaf_move;
mod model;
mod moving;
mod random;
mod rig;
