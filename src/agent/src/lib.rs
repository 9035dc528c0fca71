//! The front: configuration, socket, credentials, routing, supervision of keepers.
