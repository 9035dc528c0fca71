//! `catena-keeper`.
fn main() {}
