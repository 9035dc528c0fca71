//! The conformance suite on this back end, and what is peculiar to directories.

mod bench;
mod crashes;
mod faulty;
mod files;
mod other_process;
mod suite;
