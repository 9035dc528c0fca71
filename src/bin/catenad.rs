//! `catenad`.
fn main() {}
