//! A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.
//!
//! It runs beside an application, answers three slow, rate-limited calls from memory and passes
//! everything else through. This page tells the architecture once; each file tells its own job in
//! its first lines.
//!
//! # The path
//!
//! ```text
//!            request/                cache/                  upstream/        reply/     telemetry/
//! accept → route → caller → key → look up → coalesce → fetch ────→ store → compose → record
//!            │        │       │       │                                        ↑
//!            │        └───────┴── a reason to bypass ──→ relayed as it is ──────┤
//!            └── none of the operations ───────────────→ relayed as it is ──────┤
//!                                     └── fresh: from memory ───────────────────┘
//! ```
//!
//! [`gateway`] is the only file that knows the order of the steps. The steps are plain functions in
//! modules that do not know each other's callers; nothing is layered, nothing is registered.
//!
//! # Who may know whom
//!
//! Imports run one way, and `tests/fences.rs` has the whole table.
//!
//! ```text
//! main → cli → server → admin ─┬→ gateway → reply ─┬→ telemetry → cache → request → catalogue
//!           ├→ simulator       └→ explain ─────────┴→ upstream ────────────┘
//!           └→ config → catalogue                     everyone → clock, stream
//! ```
//!
//! - [`catalogue`] is data: the operations, and whose path is whose.
//! - [`request`] is pure: no socket, no clock, no runtime. [`explain`] runs the very same functions.
//! - [`cache`] knows no HTTP client; only `cache/store.rs` knows moka, only `cache/flights.rs` waits.
//! - [`upstream`] has the only HTTP client of the gateway.
//! - [`clock`] has the only clock; everything else is told the time.
//! - [`simulator`] is both upstream services. It is part of the program because `demo` runs it; the
//!   gateway doesn't know it.
//!
//! # Invariants
//!
//! 1. **What isn't in the key isn't sent.** A request for a product list is built from its key, the
//!    caller's credential and constants ([`upstream::client::question`]), so nothing else can change
//!    what is stored under the key. (One trace goes along: the gateways of this kind that it has come
//!    through, in `Via`, or two that ask each other would not see the loop.)
//! 2. **Nothing is shared between callers.** An entry and a flight belong to one credential, known by
//!    a keyed hash ([`request::caller`]); upstream has answered that very credential well.
//! 3. **Only upstream's good answers are kept.** A whole 200 that is a product list
//!    ([`cache::admission`]); refusals and failures are passed on and change nothing.
//! 4. **One question at a time.** At most one upstream request per key and caller is in flight; it
//!    runs in a task of its own, and everyone who asks meanwhile is fed from it ([`cache::flights`]).
//!    (Two exceptions: who asks after a purge doesn't join a flight from before it, and an answer too
//!    large to hold is streamed to each who asks.)
//! 5. **In doubt, forward.** What isn't fully understood goes upstream as it is and is never stored;
//!    the reason is a value ([`request::BypassReason`]).
//! 6. **Bounded by bytes.** Entries by `cache.max_size`, answers by `cache.max_body_size`, heads by
//!    `limits.max_head_size`, metric series by enums.
//! 7. **Never worse than no gateway.** Bodies pass byte for byte, errors in upstream's own shape,
//!    everything else streamed; `mode = "bypass"` switches the cache off at run time.
//!
//! # Deliberately absent
//!
//! No layers or middleware: there is one path, and it can be read from top to bottom. No retries of
//! what has been sent: a failed call is answered, and the client decides. No configuration of what may be cached: an
//! operation is understood or it is passed through. No HTTP/2, no TLS towards clients:
//! they are on the same machine, or where their tokens may be seen.

pub mod admin;
pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod explain;
pub mod gateway;
pub mod reply;
pub mod request;
pub mod server;
pub mod simulator;
pub mod stream;
pub mod telemetry;
pub mod upstream;
