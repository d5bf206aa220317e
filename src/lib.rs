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
//! What is to be done with a request is decided in one pure function, [`request::decide`], from its head, the facts of its
//! connection and the settings in force: refuse it, relay it, or look up an answer. `serve` does that, `explain` shows it, and
//! a test holds the two together.
//!
//! [`gateway`] is the only place that knows the order of the steps. `gateway.rs` has the sequence of a request,
//! `gateway/fetch.rs` that of a call to upstream, and `gateway/forward.rs` that of a relayed request. Steps do not call each
//! other. They get the parts that they need: `memory.rs` (grants, entries, backoff), `fetcher.rs` (flights, queue, key
//! breaker), `observer.rs` (metrics, events, health) and `live.rs` (settings in force). The steps are:
//!
//! - `charge.rs`: the memory budget; `identify.rs`: who asks; `invalidate.rs`: invalidation by unsafe methods.
//! - `coalesce.rs` and `wait.rs`: joining a flight and waiting for it;
//!   `release.rs`: who is given what it brought.
//! - `settle.rs`: what the end of a call changes.
//! - `second_tier.rs`: the only place where another tier is asked, inside of a shared fetch. No tier is built in yet.
//!
//! What the steps read is in `look_up.rs` (what memory has for this caller) and `known.rs` (whose calls are served first).
//!
//! Nothing is layered, nothing is registered, and no file of a folder imports another one in a circle.
//!
//! A head that has come before, byte for byte, asks what it asked then. The fast path ([`fast_path`], `listen.fast_path`)
//! answers it before hyper reads it, if there is a fresh answer for its caller; if not, the request takes the whole path. It
//! remembers what reading the head has told, under a keyed hash of the head. Everything that is decided is decided each
//! time. The server passes it bytes (`server/wire.rs`), and the gateway tells it what is remembered and what is fresh
//! (`gateway/remembered.rs`).
//!
//! What may change at run time is one value, in `gateway/active_config.rs`; a request goes to its end by the one it began
//! with. The table in `config/settings.rs` tells which settings may, and which need a restart. `cli/reload.rs` sees
//! that settings have changed, `config/` reads and compares them, and `server/reload.rs` and `gateway/reload.rs` put
//! them in force, all or none.
//!
//! A process can be replaced and no client notices: it listens on sockets that were handed down to it (`cli/inherit.rs`,
//! `server/listeners.rs`), tells whoever does that when it can be asked (`cli/supervisor.rs`), and on its way out has
//! clients come again, to the next one (`server/shutdown.rs`). What is in memory is not handed on: what a caller may see is
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
//! main → cli → server → admin ─┬→ gateway → fast_path → reply ─┬→ telemetry → cache → request → catalogue, signing
//!           ├→ simulator       └→ explain ─────────────────────┴→ upstream ────────────┘
//!           └→ config → catalogue, signing, egress    everyone → budget → request, everyone → clock, random, stream, sync
//! ```
//!
//! - [`catalogue`] is data: the operations, built in or an operator's, and whose path is whose.
//! - [`signing`] is pure, too: what a signature covers, whether it is a known access key's, and making one. Secrets don't
//!   leave it.
//! - [`request`] is pure: no socket, no clock, no runtime. [`explain`] runs the very same functions.
//! - [`budget`] counts the memory that clients make the gateway hold. Whoever holds some has a charge for it.
//! - [`fast_path`] is used through its interface alone, by the server and the gateway, and knows neither of them.
//! - [`cache`] knows no HTTP client; only `cache/store.rs` knows moka, only `cache/flights.rs` waits.
//! - [`upstream`] has the only HTTP client of the gateway. It imports [`egress`], which has only words for the way that it
//!   goes.
//! - [`telemetry`] knows of [`upstream`] only why a call has failed ([`upstream::Failure`]).
//! - [`clock`] has the only clocks; everything else is told the time. `net` opens all sockets (for server, upstream and cli), [`random`] has all randomness
//!   and `sync` all locks, so that all of it can be simulated.
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
//!    read as, if that was a token's ([`fast_path`]); what they may be shown is looked up each time.
//! 3. **Only a proved or granted caller changes what others see.** Who has no grant asks alone, and what
//!    it is answered is neither kept, nor marks or pauses anything, nor is waited for by others, unless it is
//!    itself the proof. While there is a fresh entry, an answer that can't be kept concerns only its caller. Only a
//!    caller with a grant can invalidate a scope, by an unsafe method (`gateway/invalidate.rs`). An operation that upstream
//!    says varies on the credential turns private as a whole, and no other does (`cache/store/private.rs`). What is
//!    kept is a whole 200 that is a product list, or what else its operation asks for
//!    ([`cache::admission`]), and, apart and for seconds, a 400, 404 or 405.
//! 4. **One call at a time, up to three where upstream answers others.** At most one upstream call per key is under way
//!    for those who may share its answer; it runs in a task of its own, and its result goes to everyone who waits for it
//!    ([`cache::flights`]). While all calls of a flight are slow, and upstream has answered well a product list that was sent
//!    later ([`upstream::successes`]), another caller makes another call, three in all. A failure ends only its own call; a 5xx is
//!    repeated once under the same condition. Nobody inherits another's refusal: when they are released, each is checked
//!    anew (`gateway/release.rs`). (Not so for answers that can't be shared, past the bounds, after three
//!    elections, for requests after a purge, and for clients that want an answer from after they asked: these
//!    don't wait for one another.)
//! 5. **In doubt, forward.** What isn't fully understood goes upstream as it is and is never stored;
//!    the reason is a value ([`request::BypassReason`]).
//! 6. **Bounded by bytes.** Entries by `cache.max_size`, answers by `cache.max_body_size`, heads by
//!    `limits.max_head_size` and by the number of their fields, list members and query parameters
//!    ([`request::validate`]; lists are compared as sets), metric series by enums; what has a fixed size, by number: grants, known
//!    heads, flights, waiters, remembered refusals, private scopes and times of invalidation. Past a bound more is asked of
//!    upstream, and nothing else changes. What
//!    is asked of it at a time is bounded too, with bounds for each caller and for each class of callers
//!    ([`upstream::gate`]), and what may fail with an access key ([`upstream::probation`]); past these a
//!    request waits for its turn, then gets a 503. Connections
//!    are bounded by number (an idle one is closed for the next; if all are busy, that waits), requests on one in HTTP/2 too, and by time
//!    whatever a client keeps waiting: a head, an answer that isn't read, a connection without a request
//!    ([`server`]).
//! 7. **Never worse than no gateway.** Bodies pass byte for byte, errors in upstream's own shape,
//!    everything else streamed; `mode = "bypass"` switches the cache off at run time.
//! 8. **One token is one caller, and two tokens are two callers**, whatever the spelling, the order of the fields or the
//!    protocol. Every head is brought into one form before anything reads it ([`request::validate`]): in HTTP/1, blanks
//!    around a value are no part of it (RFC 9110 §5.5); in HTTP/2 they are refused (RFC 9113 §8.2.1). A head that two
//!    servers may read in two ways is refused with 400 and never relayed: two token fields, a field that decides something
//!    spelled with `_` in place of `-`, two lengths, a target outside visible ASCII.
//! 9. **Only a failure outside the gateway extends a lapsed grant** ([`upstream::Fault`]): the caller's own call must have been
//!    sent and have had upstream's whole time. The extended grant shows no entry that was sent later than its regular
//!    end (the last proof and `grant_ttl`), so whatever makes the call fail, nobody sees newer data than the grant covered. A 401 or
//!    403 counts as soon as its head has been read. A 401 on any path suspends all grants of its caller in that service, and ends
//!    them unless its code is the service's own ([`cache::grants`]).
//!
//! 10. **Bounded as a sum.** What clients can make the process, and the kernel for it, hold beside the cache comes from one
//!     budget ([`budget`], `limits.memory`): connections with their buffers, heads, requests, bodies that are read whole,
//!     relayed responses, and entries that the cache has let go while clients still read them. Where a client may not have
//!     more, the gateway first stops reading and accepting, and closes idle connections and slow readers (`server/shed.rs`).
//!     Requests of unknown callers are then answered 503. Those of known callers wait until their deadline, without a call
//!     slot; few may wait, and further ones are answered 503. Connections, decoded heads of HTTP/2, and
//!     entries that the cache has let go are charged even if they do not fit. Answers that do not fit are streamed and not
//!     kept. Hits on the fast path need no room.
//! 11. **Isolation.** No client keeps more than half of a resource while others wait for it. For connections a client is a
//!     peer address ([`request::peer`]). For call and relay slots and for the memory budget it is a caller, a peer address and
//!     a connection. One caller never holds more than half of the flights or waiters. Callers are served in this order: with a
//!     grant or proved within the hour, answered well by relay, unknown, and last those whose client has closed its sending
//!     side ([`cache::known_callers`], [`upstream::gate`]). Of the memory budget, a client may have more only while it then holds no more than what is left free (four times that for
//!     a small request), unknown callers have together at most half of what known callers leave, and connections without a
//!     credential a quarter. Entries that the cache has let go count for no client.
//! 12. **Time includes suspension.** An age is at least the larger of the time passed on `CLOCK_BOOTTIME` and the time passed on the
//!     wall clock. The wall clock's drift up to 30 s is ignored, and a step back changes nothing. So after a suspension, a pause
//!     of the virtual machine or a forward step, grants are lapsed, entries stale, and denials, backoffs and suspensions of
//!     access keys over. One clock tells this to all rules ([`clock::Clock::now`]); timers and measured durations go by another
//!     ([`clock::Clock::timer_now`]). Dates, those of signatures included, are the wall clock's.
//!
//! # Glossary
//!
//! - **Caller**: a credential, known by a keyed hash. **Scope**: an operation with the segments that its path captures.
//! - **Proof**: upstream has answered a caller's own call well. **Grant**: what a proof gives the caller in that scope, for
//!   `grant_ttl`. It is *lapsed* after that, and *extended* when an outage lets it show what it covered.
//! - **Denial**: a 401 or 403. It ends a grant, or **suspends** grants until its body tells whom it concerns.
//! - **Flight**: the calls under way for one question, and those who wait for them: a **leader**'s request is sent, a **waiter**
//!   waits. An **additional call** is one beside or after another caller's.
//! - **CacheKey**: where an answer is kept: a key, and whose it is if not everybody's. **Mark**: the note that a slot's answers
//!   can't be kept. A **private** scope or operation shares nothing between callers.
//! - **Budget**: the bytes that may be held for clients. **Charge**: a part of it that is in use. **Account**: what one
//!   connection holds of it. **Party**: a connection, a caller or a peer address, whose holdings are bounded. **Shortage**: why a
//!   client may not have more. To **shed** a connection: to close it because another one, or memory, is needed.
//! - **Known caller**: upstream has answered it well, with a product list or relayed. It shows nobody anything.
//! - **Backoff** (in the code: pause): upstream is not asked for what can be given stale.
//!
//! # Deliberately absent
//!
//! No layers or middleware: there is one path, and it can be read from top to bottom. No retries but
//! two: of a connection that broke before there was an answer, where asking again can't do anything twice
//! ([`upstream::client`]), and once, with another caller's credential, of a 5xx while upstream answers others (invariant 4);
//! whatever else fails is answered, and the client decides. No rules by pattern or
//! header of what may be cached: an operation is described as a whole, and alike whoever describes it, or it
//! is passed through. No plain text beyond this machine, unless somebody has said so ([`config::exposure`]), and in
//! TLS no choice of certificates, versions or ciphers. No HTTP/2 but for clients that choose it, or begin with it: it is
//! told in terms of HTTP/1 at once ([`request::target::translate`]), and upstream is asked in HTTP/1.

mod admin;
mod budget;
mod cache;
mod catalogue;
mod certificate;
mod cli;
mod clock;
mod config;
mod explain;
mod fast_path;
mod gateway;
mod net;
mod proxy_config;
mod random;
mod reply;
mod request;
mod server;
mod signing;
mod simulator;
mod stream;
mod sync;
mod telemetry;
#[doc(hidden)]
pub mod testing;
mod upstream;

pub use cli::run;
