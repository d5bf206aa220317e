//! A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.
//!
//! It runs beside an application, answers three slow, rate-limited calls from memory (and those that an
//! operator adds) and passes everything else through. This page tells the architecture once; each file
//! tells its own job in its first lines.
//!
//! # The path
//!
//! ```text
//!            request/ signing/       cache/                  upstream/    cache/              reply/    telemetry/
//! accept → route → caller → key → look up → coalesce → fetch ────→ store → release → compose → record
//!            │        │       │       │ ↑                                     │          ↑
//!            │        │       │       │ └────────── not for this caller ──────┘          │
//!            │        └───────┴───────│─ a reason to bypass ──→ relayed as it is ────────┤
//!            └── none of the operations ───────────────────────→ relayed as it is ───────┤
//!                                     └── granted, and fresh enough: from memory ────────┘
//! ```
//!
//! [`gateway`] is the only place that knows the order of the steps: `gateway.rs` has the path; below it are
//! `identify.rs` (who asks), `look_up.rs` (what memory has for this caller), `fetch.rs` (one call), `settle.rs`
//! (what its end changes), `wait.rs`, `release.rs` (who is given what it brought) and `forward.rs`. The steps are
//! plain functions in modules that do not know each other's callers; nothing is layered, nothing is registered.
//!
//! A head that has come before, byte for byte, asks what it asked then. It takes a short way: from `server/shortcut.rs`,
//! before hyper has seen it, to where memory is looked up, and out again if there is a fresh answer for its caller
//! (`gateway/repeat.rs`). If not, it goes the whole way. Only what reading a head tells is remembered, under a keyed hash of
//! the head ([`cache::heads`]); everything that is decided is decided each time.
//!
//! What may change at run time is one value, in `gateway/live.rs`; a request goes to its end by the one it began
//! with. `cli/reload.rs` sees that settings have changed, `config/` reads and compares them, and `server/reload.rs`
//! and `gateway/reload.rs` put them in force, all or none.
//!
//! A process can be replaced and no client notices: it listens on sockets that were handed down to it (`cli/inherit.rs`,
//! `server/listeners.rs`), tells whoever does that when it can be asked (`cli/supervisor.rs`), and on its way out has
//! clients come again, to the next one (`server/leaving.rs`). What is in memory is not handed on: what a caller may see is
//! proved to each process anew.
//!
//! What an operator is shown and may do is in `admin/`, and who that is in `admin/guard.rs`. Its figures are read from the
//! very metrics that Prometheus gets ([`telemetry::figures`]); what happened lately is in [`telemetry::events`].
//!
//! How long an answer lives is told in [`cache::freshness`], what upstream has to say of that in
//! [`cache::lifetime`], and when upstream is left alone in [`cache::pauses`]: fresh, then stale while it is
//! asked again, then stale if upstream fails or is slow, then gone.
//!
//! # Who may know whom
//!
//! Imports run one way, and `tests/fences.rs` has the whole table.
//!
//! ```text
//! main → cli → server → admin ─┬→ gateway → reply ─┬→ telemetry → cache → request → catalogue, signing
//!           ├→ simulator       └→ explain ─────────┴→ upstream ────────────┘
//!           └→ config → catalogue, signing, egress    everyone → clock, stream; upstream → egress
//! ```
//!
//! - [`catalogue`] is data: the operations, built in or an operator's, and whose path is whose.
//! - [`signing`] is pure, too: what a signature covers, whether it is a known access key's, and making one. Secrets don't
//!   leave it.
//! - [`request`] is pure: no socket, no clock, no runtime. [`explain`] runs the very same functions.
//! - [`cache`] knows no HTTP client; only `cache/store.rs` knows moka, only `cache/flights.rs` waits.
//! - [`upstream`] has the only HTTP client of the gateway. It goes the way that [`egress`] tells, which has only words
//!   for it.
//! - [`clock`] has the only clock; everything else is told the time.
//! - [`simulator`] is both upstream services. It is part of the program because `demo` runs it; the
//!   gateway doesn't know it.
//!
//! # Invariants
//!
//! 1. **What isn't in the key isn't sent.** A request for a product list is built from its key, the
//!    caller's credential and constants ([`upstream::client::question`]), so nothing else can change
//!    what is stored under the key. (Where an answer is kept under it already, upstream may be asked whether
//!    that still holds, in its own words.) The answers of an operation that is configured to send more
//!    (`forward_headers`, [`request::forwarded`]) are no other caller's to see
//!    ([`catalogue::Operation::unshareable`]); only W3C traces, which no service answers by, leave it shared.
//!    A client's `traceparent`, if it can be read, goes along as well, made anew: hex digits and nothing else
//!    ([`request::trace`]).
//!    No credential but the caller's is ever sent: its token, or a signature of ours with its access key. (One trace goes along: the gateways of this kind that it has come
//!    through, in `Via`, or two that ask each other would not see the loop. What that brings about is
//!    for the one who named them alone.)
//! 2. **No proof, no share.** A stored answer is shown only to a caller whom upstream itself has answered
//!    well, asked with that caller's own credential, in that scope (operation, project and whatever
//!    else its path captures), within the grant's life ([`cache::grants`]). A denial ends the grant at once.
//!    Callers are known by a keyed hash ([`request::caller`]): of a token, which upstream judges, or of an access key of
//!    which the gateway itself has seen that it has signed the request ([`signing::ring`]). A signature that isn't
//!    verified is nobody's. A head that has come before, byte for byte, stands for the caller and the question that it was
//!    read as, if that was a token's ([`request::head`]); what they may be shown is looked up each time.
//! 3. **Only a proved or granted caller changes what others see.** Who has no grant asks alone, and what
//!    it is answered is neither kept, nor marks or pauses anything, nor is waited for by others, unless it is
//!    itself the proof. What is kept is a whole 200 that is a product list, or what else its operation asks
//!    for ([`cache::admission`]), and, apart and for seconds, a 400, 404 or 405.
//! 4. **One question at a time.** At most one upstream request per key is in flight for those who may
//!    share its answer; it runs in a task of its own, and everyone who asks meanwhile is fed from it
//!    ([`cache::flights`]). Nobody inherits another's refusal: when they are released, each is checked
//!    anew (`gateway/release.rs`). (Not so for answers that can't be shared, past the bounds, after three
//!    elections, for who asks after a purge, and for clients that want an answer from after they asked: these
//!    don't wait for one another.)
//! 5. **In doubt, forward.** What isn't fully understood goes upstream as it is and is never stored;
//!    the reason is a value ([`request::BypassReason`]).
//! 6. **Bounded by bytes.** Entries by `cache.max_size`, answers by `cache.max_body_size`, heads by
//!    `limits.max_head_size`, metric series by enums; what has a fixed size, by number: grants, known
//!    heads, flights, waiters, remembered refusals. Past a bound more is asked of upstream, and nothing else changes. What
//!    is asked of it at a time is bounded too, with bounds of their own for each caller and for those without
//!    a grant ([`upstream::gate`]), and what may fail with an access key ([`upstream::probation`]); past these a
//!    request waits for its turn, then gets a 503. Signed bodies, which are read before they are sent, have 64 MiB
//!    in all. Connections
//!    are bounded by number (the next one waits to be accepted), requests on one in HTTP/2 too, and by time
//!    whatever a client keeps waiting: a head, an answer that isn't read, a connection without a request
//!    ([`server`]).
//! 7. **Never worse than no gateway.** Bodies pass byte for byte, errors in upstream's own shape,
//!    everything else streamed; `mode = "bypass"` switches the cache off at run time.
//!
//! # Deliberately absent
//!
//! No layers or middleware: there is one path, and it can be read from top to bottom. No retries but
//! one, of a connection that broke before there was an answer, where asking again can't do anything twice
//! ([`upstream::client`]); whatever else fails is answered, and the client decides. No rules by pattern or
//! header of what may be cached: an operation is described as a whole, and alike whoever describes it, or it
//! is passed through. No plain text beyond this machine, unless somebody has said so ([`config::exposure`]), and in
//! TLS no choice of certificates, versions or ciphers. No HTTP/2 but for clients that choose it, or begin with it: it is
//! told in terms of HTTP/1 at once ([`request::target::translate`]), and upstream is asked in HTTP/1.

pub mod admin;
pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod egress;
pub mod explain;
pub mod gateway;
pub mod reply;
pub mod request;
pub mod server;
pub mod signing;
pub mod simulator;
pub mod stream;
pub mod telemetry;
pub mod upstream;
