//! The verbs, one module a noun: each declares its arguments beside what it does with them.

pub(crate) mod coalesce;
pub(crate) mod event;
pub(crate) mod generate;
pub(crate) mod job;
mod report;
pub(crate) mod sr;
mod stream;
pub(crate) mod vdi;

#[cfg(test)]
mod tests;
