//! Growing the virtual disk.
