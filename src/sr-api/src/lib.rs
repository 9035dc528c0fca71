//! What a storage back end provides: named byte containers, not formats.
