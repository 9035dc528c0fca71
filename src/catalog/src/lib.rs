//! The SQLite catalog of one SR: the only crate that knows SQL.
