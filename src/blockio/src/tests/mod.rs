//! Tests across the implementations.
