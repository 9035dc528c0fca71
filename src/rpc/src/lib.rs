//! The public wire: requests, replies, errors, framing and a client.
