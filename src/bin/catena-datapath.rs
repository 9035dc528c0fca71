//! `catena-datapath`.
fn main() {}
