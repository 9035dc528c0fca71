//! The owner of one SR.
