//! `catena`.
fn main() {}
