//! Thin images in a directory.
