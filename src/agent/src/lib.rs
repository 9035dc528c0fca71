//! The front: configuration, socket, credentials, routing, supervision of keepers.
//!
//! The front owns no storage and does no storage I/O: it starts one `catena-keeper` for each attached SR, relays requests to
//! it, and answers in its place while it is gone or silent. So a hung device never hangs the front, and the front may be
//! restarted at any moment. `catenad` calls [`main`].
//!
//! ```text
//!  client ──▶ server ──▶ session ──▶ front ──▶ routes, resolve, fanout ──▶ keeper (link) ──▶ catena-keeper
//!                           ▲          │                                      ▲     │
//!                           │          └──▶ coming, lifecycle ──▶ srd (sr.d)  │     │ events
//!                           │                   └───────▶ supervise ──────────┘     │
//!                           └────────────── events ◀────────────────────────────────┘
//! ```

mod access;
mod coming;
mod config;
mod copying;
mod events;
mod fanout;
mod front;
mod gone;
mod keeper;
mod launch;
mod lifecycle;
mod lists;
mod notify;
mod phase;
mod reload;
mod resolve;
mod routes;
mod run;
mod server;
mod session;
mod srd;
mod supervise;
mod table;
#[cfg(test)]
mod testing;

pub use run::main;

/// Where a debug build can be told to die.
mod points {
    use catena_types::CrashPoint;

    /// A request was read, nothing was done.
    pub(crate) const REQUEST_RECEIVED: CrashPoint = CrashPoint("front.request_received");
    /// A request was carried out, its answer was not sent.
    pub(crate) const BEFORE_REPLY: CrashPoint = CrashPoint("front.before_reply");
    /// A keeper has made or adopted an SR that `sr.d` does not name yet.
    pub(crate) const SR_MADE: CrashPoint = CrashPoint("front.sr_made");
    /// The keeper of a copy waits for its content, the keeper of the origin knows of nothing.
    pub(crate) const COPY_BEGUN: CrashPoint = CrashPoint("front.copy_begun");
    /// A keeper has destroyed an SR that `sr.d` still names.
    pub(crate) const SR_DESTROYED: CrashPoint = CrashPoint("front.sr_destroyed");
    /// A file of `sr.d` was written or removed.
    pub(crate) const SR_D_WRITTEN: CrashPoint = CrashPoint("front.sr_d_written");
    /// A keeper was started and told nothing.
    pub(crate) const KEEPER_STARTED: CrashPoint = CrashPoint("front.keeper_started");

    /// All of them, for `--list-crash-points`.
    pub(crate) const ALL: [CrashPoint; 7] =
        [REQUEST_RECEIVED, BEFORE_REPLY, COPY_BEGUN, SR_MADE, SR_DESTROYED, SR_D_WRITTEN, KEEPER_STARTED];
}
