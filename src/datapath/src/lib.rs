//! Handles image bytes on behalf of a keeper.
