//! What to merge next, and why not: pure decisions over the tree.
