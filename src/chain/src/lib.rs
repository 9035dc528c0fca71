//! Format-neutral chains: the layer trait, the merged map of a chain, and moving data between layers.
//!
//! Knows no format: a format implements [`Layer`] and [`LayerMut`]. Callers are `vhd` (implements) and `datapath` (uses).

mod error;
mod layer;

pub use error::Error;
pub use layer::{Extent, Layer, LayerMut, Ownership};
