//! A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.
//!
//! It runs beside an application. It answers requests for three slow, rate-limited operations from memory, and for the
//! operations that an operator adds. It relays everything else. This page describes the architecture. Each file
//! describes its own job in its first lines.
//!
//! # The path of a request
//!
//! ```text
//!            request/ signing/       cache/                  upstream/    cache/              reply/    telemetry/
//! accept → route → caller → key → look up → coalesce → fetch ────→ store → release → compose → record
//!            │        │       │       │ ↑                                     │          ↑
//!            │        │       │       │ └─ not for this caller: look up again ┘          │
//!            │        └───────┴───────│─ a reason to bypass ──→ relayed ─────────────────┤
//!            └── not an operation ────│───────────────────────→ relayed ─────────────────┤
//!                                     └── granted, and fresh enough: from memory ────────┘
//! ```
//!
//! One pure function, [`request::decide`], decides what to do with a request: reject it, relay it, or look up a
//! response. Its input is the head, the facts of the connection and the active config. `serve` and `explain` both call
//! it.
//!
//! [`gateway`] is the only module that knows the order of the steps. `gateway.rs` has the sequence of a request,
//! `gateway/fetch.rs` that of a fetch, `gateway/forward.rs` that of a relayed request, and `gateway/keep_warm.rs`
//! that of a request that the gateway sends itself. Steps do not call each other. They are functions of the parts
//! that they need: `memory.rs` (grants, entries, backoffs), `fetcher.rs` (flights, queue, key breaker), `observer.rs`
//! (metrics, events, health) and `active_config.rs` (the settings in force). There is no middleware, no registration,
//! and no import circle within a folder.
//!
//! `gateway/second_tier.rs` is the only step that asks another cache tier, within a fetch: for an entry, for a proof, and for
//! the right to make the call for all gateways (`gateway/claim.rs`). What one gateway must tell the others is a notice
//! (`gateway/tier.rs`); `gateway/fleet_log.rs` applies those of others. `gateway/snapshot.rs` keeps
//! memory over a restart (`cache.snapshot`). `gateway/hint.rs` has what the gateways of a fleet tell each other about
//! upstream, and `gateway/take_hint.rs` what that changes. `gateway/key_trial.rs` lets one gateway at a time try an access
//! key. What leaves the process is sealed (`seal.rs`): a record that was changed, or that belongs elsewhere, is a miss.
//!
//! The fast path ([`fast_path`], setting `listen.fast_path`) answers a request whose head has come before: in HTTP/1
//! before hyper reads it, in HTTP/2 with the head that hyper has read. The values of varying fields may differ: a trace, a
//! signature and its date, `If-None-Match`. The fast path stores the result of reading a head under a keyed hash of the
//! rest. For each request it verifies the signature and checks the freshness. It looks up grant and entry at least once a
//! second, and after each revocation. A request that the fast path cannot answer takes the full path. The server passes
//! bytes to the fast path (`server/wire.rs`). The gateway decides what it stores and what is fresh
//! (`gateway/remembered.rs`).
//!
//! The settings that can change at run time are one value, `gateway/active_config.rs`. A request uses the same value
//! from beginning to end. The table in `config/settings.rs` lists the settings that need a restart. `cli/reload.rs`
//! notices changes, `config/` reads and compares them, and `server/reload.rs` with `gateway/reload.rs` apply all of
//! them or none.
//!
//! What the process gets from its machine is one value ([`machine`]): clocks, random numbers, the network and threads for
//! blocking work. They come from `clock/`, `random.rs`, `net/` and `sync.rs`; `tests/fences.rs` has the exceptions. So the
//! simulation (`benches/simulation`) can run several gateways with their upstream in one thread, on one seed.
//!
//! A new process can replace an old one without a failed request. Both listen on sockets that a supervisor passes to
//! them (`cli/inherit.rs`, `server/listeners.rs`). The old process asks its clients to reconnect
//! (`server/shutdown.rs`). Each process proves its callers anew. The new one may read the snapshot of the old one.
//!
//! `admin/` is the operator's interface; `admin/guard.rs` controls access. Its figures come from the metrics that
//! Prometheus gets. [`telemetry::events`] keeps recent events, [`telemetry::history`] an hour of samples, and
//! [`telemetry::conditions`] decides what is wrong. [`telemetry::callers`] counts by caller, and [`telemetry::tail`] passes
//! completed requests to operators who read them live.
//!
//! [`cache::freshness`] decides how long an entry is fresh, and [`cache::lifetime`] reads what upstream says about
//! it. [`cache::backoffs`] decides when the gateway does not call upstream. An entry is fresh, then stale while it is
//! revalidated, then stale if upstream fails or is slow, then gone. [`cache::staleness`] measures how often answers
//! from memory are wrong, and chooses the ttl of operations with an adaptive ttl.
//!
//! # Imports
//!
//! Imports run one way. `tests/fences.rs` has the full table.
//!
//! ```text
//! main → cli → server → admin ─┬→ gateway → fast_path → reply ─┬→ telemetry → fleet → cache → request → catalogue, signing
//!           │        └→ otlp ──│───────────────────────────────┤
//!           ├→ simulator       └→ explain ─────────────────────┴→ upstream ────────────────────┘
//!           └→ config → request, signing, proxy_config      all → budget → request, all → clock, random, stream, sync
//! ```
//!
//! - [`catalogue`] is data: the operations, built in or configured, and which path belongs to which service.
//! - [`signing`] verifies and makes signatures with access keys. It is pure, and secrets do not leave it.
//! - [`request`] reads requests. It is pure: no sockets, no clock, no runtime.
//! - [`budget`] counts the memory that clients make the gateway hold.
//! - [`cache`] has entries, grants, backoffs, flights and measured staleness. Only `cache/store.rs` uses moka, and
//!   only `cache/flights.rs` waits.
//! - [`upstream`] has the only HTTP client for requests, the queues of calls ([`upstream::gate`]), and the ledger of
//!   upstream's quotas ([`upstream::quota`]). [`proxy_config`] says which route it takes.
//! - [`fleet`] is a second tier: an engine (Valkey or Redis) that several gateways share, and the log of what they tell each
//!   other. No request depends on it.
//! - [`otlp`] exports spans and metrics to OpenTelemetry. `telemetry/traces.rs` decides which requests have spans, and
//!   makes them when requests and calls have ended. No request depends on it.
//! - [`seal`] encrypts what leaves the process, and [`snapshot`] is the file of the snapshot. Both do not know what is in
//!   the records.
//! - [`clock`], `net`, [`random`] and `sync` are the only clocks, sockets, random numbers and locks. A simulation
//!   replaces them, and tests of schedules replace the locks (`sync/explore.rs`).
//! - [`simulator`] simulates both upstream services. `demo` and `simulate` run it. The gateway does not depend on it.
//!
//! # Invariants
//!
//! 1. **What is not in the key is not sent.** The request for a product list is built from its key, the caller's
//!    credential and constants ([`upstream::client`]), so nothing else can change what is stored under the key.
//!    Exceptions:
//!    - Validators of the stored entry are sent to revalidate it.
//!    - An operation with `forward_headers` sends more ([`request::forwarded`]). Its entries belong to one caller
//!      ([`catalogue::Operation::unshareable`]), unless it forwards only W3C trace headers.
//!    - A valid `traceparent` is continued, or the gateway begins a trace ([`request::trace`]): upstream gets only hex
//!      digits, and no response may depend on them. `Via` is sent so that loops are detected.
//!
//!    Only the caller's own credential is sent: its token, or a signature that the gateway makes with the caller's
//!    access key.
//! 2. **No proof, no share.** A stored response is shown only to a caller with a proof: upstream has answered a call
//!    with that caller's own credential successfully, in that scope, within `grant_ttl` ([`cache::grants`]). A denial
//!    ends the grant at once. In a fleet, a proof of another gateway counts while this one is in sync
//!    ([`cache::fleet_sync`]), and a denial ends the grants of all gateways that are in sync within `fleet.sync`. A
//!    caller is a keyed hash ([`request::caller`]) of a token, or of an access key: the gateway has verified the
//!    caller's signature with it ([`signing::ring`]), or uses the key itself to keep responses warm. An unverified
//!    signature is no caller. The fast path verifies the signature each time. It remembers for a second that a grant is
//!    live; whatever ends grants ends that at once ([`cache::revocations`]).
//! 3. **Only a proved or granted caller changes what others see.** Unless it is itself the proof, the response to a
//!    caller without a grant is not stored, marks no key as uncacheable and begins no backoff for others. No other
//!    caller waits for it. A renewal, or a call that keeps a response warm, is made for its caller alone. A response to
//!    it that cannot be stored changes nothing for others, unless it says that responses vary on the credential.
//!    While an entry is fresh, a response that cannot be stored concerns its caller only. Only a granted caller
//!    invalidates a scope (`gateway/invalidate.rs`). The store has complete 200 responses that pass the operation's
//!    body check ([`cache::admission`]). It also has 400, 404 and 405 responses, which are used for at most
//!    `negative_ttl`. An operation whose responses vary on the credential becomes private (`cache/store/private.rs`).
//! 4. **One call at a time for each cache key, or up to three if upstream is slow only for this key.** For callers that
//!    may share a response, at most one call per cache key is in flight ([`cache::flights`]). It runs in a task of its
//!    own. A caller whose call would wait for its other calls, for a limit of upstream for this caller, or for one that
//!    does not hold back proved callers, makes none for others: they must not wait for it. Its requests share a call of
//!    their own (`gateway/coalesce.rs`). While all calls of a flight are slow, and upstream has answered a later request
//!    for a product list
//!    ([`upstream::successes`]), another caller makes another call, three in all. A failure ends only its own call.
//!    After a 5xx, another caller retries once under the same condition. Nobody gets another caller's refusal: each
//!    waiter is checked again when it is released (`gateway/release.rs`). Renewals, and calls that
//!    keep a response warm, do not count: there is one of these at a time for a caller and scope. The requests of a
//!    caller without a grant wait for the call that may prove it in their scope (`gateway/prove.rs`), whether or not
//!    there is an entry: at most `stale_if_slow`, and for at most three such calls. Requests do not wait for each other
//!    if the response cannot be shared, beyond the limits, after four flights without a result for them, after a purge,
//!    or if the client sent `no-cache`. A purge does not end a wait for a proof.
//! 5. **If in doubt, relay.** A request that the gateway does not fully understand is relayed, and its response is not
//!    stored. The reason is a value ([`request::BypassReason`]).
//! 6. **Each resource is bounded.** By bytes: entries (`cache.max_size`), responses (`cache.max_body_size`), heads
//!    (`limits.max_head_size`). By number: header fields, list members and query parameters ([`request::validate`]),
//!    grants, known heads, callers with counts, flights, waiters, remembered denials, private scopes, invalidation
//!    times, metric series (by enums), connections and HTTP/2 streams. By time: whatever a client can delay
//!    ([`server`]). Beyond a limit of the cache, more requests go upstream and nothing else changes. Calls to upstream
//!    are limited for each caller and class of callers ([`upstream::gate`]), and for each access key that upstream has
//!    refused ([`upstream::key_breaker`]). Beyond these limits a request waits for its turn, and then gets a 503.
//! 7. **Never worse than no gateway.** Bodies pass byte for byte, errors have upstream's shape, everything else is
//!    streamed. `mode = "bypass"` switches the cache off at run time.
//! 8. **One token is one caller, and two tokens are two callers**, whatever the spelling, the order of the fields or
//!    the protocol. Every head is normalized before anything reads it ([`request::validate`]). HTTP/1.1 trims blanks
//!    around a value (RFC 9110 §5.5); HTTP/2 rejects them (RFC 9113 §8.2.1). A head that two servers could read in two
//!    ways is rejected with 400: two token fields, `_` in place of `-` in a field that matters, two lengths, a target
//!    outside visible ASCII.
//! 9. **Only a failure outside the gateway extends a lapsed grant** ([`upstream::Fault`]). The caller's own call must
//!    have been sent, and a timeout counts only if upstream has had the whole time limit of the call. The extended
//!    grant shows no entry that was sent later than its regular end (the last proof and `grant_ttl`). So nobody sees
//!    newer data than the grant covered, whatever makes the call fail. A proof of an earlier process, from a snapshot,
//!    is a lapsed grant. It covers nothing later than the snapshot ([`cache::grants`]). A borrowed grant covers
//!    nothing later than the end of being in sync, or than its proof if the process was never in sync. A copy from the
//!    engine counts as sent at the latest time that the clocks allow (`gateway/tier.rs`). A 401 or 403 counts as soon as
//!    its head is read. A 401 on any path suspends all grants of its caller in that service. It ends them, unless the
//!    error code in its body is one of the service itself.
//! 10. **The sum is bounded.** One budget ([`budget`], `limits.memory`) covers the memory that clients can make the
//!     process use besides the cache, and that of its sockets in the kernel. At the limit the gateway first stops
//!     reading and accepting. Then it closes idle connections and slow readers (`server/shed.rs`). Then it answers
//!     unknown callers with 503, and known callers wait until their deadline. Few may wait; further ones get
//!     a 503. Connections, decoded HTTP/2 heads and
//!     removed entries that clients still read are charged even if they do not fit. Responses that do not fit are
//!     streamed and not stored. A list waits for a limit of upstream only if its response has room. In HTTP/1, hits
//!     on the fast path need no free memory. In HTTP/2 the fast path answers only while half of the budget is free.
//! 11. **Isolation.** No client keeps more than half of a resource while others wait for it. For connections a client
//!     is a peer address ([`request::peer`]). For call slots, relay slots and the budget it is a caller, a peer
//!     address and a connection. One caller never has more than half of the flights or waiters, and unknown callers
//!     together never have more than half of the flights (but at least two), so that renewals find room. Callers are
//!     served in this order: with a grant or proved within the last hour, known by a relayed request, unknown, and
//!     then those whose client has closed its sending side ([`cache::known_callers`], [`upstream::gate`]). Renewals
//!     and refreshes, for which no client waits, come after unknown callers. Calls that the gateway makes itself to
//!     keep responses warm come last. A limit of upstream for one caller holds back that caller alone
//!     ([`upstream::quota`]). A client may take more of the budget only if it then holds at most as many bytes as
//!     remain free (for a small request, four times as many). Unknown callers together get at most half of what known
//!     callers leave, and connections without a credential a quarter. Removed entries that clients still read count
//!     for no client.
//! 12. **Time includes system suspend.** An age is at least the larger of the time passed on `CLOCK_BOOTTIME` and on
//!     the wall clock. Drift of the wall clock up to 30 s is ignored, and a step back changes nothing. After a system
//!     suspend, a pause of the virtual machine or a forward step, grants have lapsed, entries are stale, and denials,
//!     backoffs and suspensions of access keys have ended. All rules use this clock ([`clock::Clock::now`]); timers
//!     and durations use another one ([`clock::Clock::timer_now`]). Dates, those of signatures included, are the wall
//!     clock's.
//!
//! # Glossary
//!
//! - **Caller**: a credential, identified by a keyed hash. **Known caller**: a caller that upstream has answered
//!   successfully, with a product list or on a relayed request. Its calls are served before those of unknown callers.
//!   It gets nothing from memory without a grant.
//! - **Scope**: an operation with the path segments that it captures, such as the project.
//! - **Proof**: a valid 200 of upstream to the caller's own call. **Denial**: a 401 or 403 to it.
//! - **Grant**: what a proof gives its caller in a scope, for `grant_ttl`. After that it is *lapsed*. An outage can
//!   extend it. **Renewal**: a call in the background that proves a caller again before its grant lapses
//!   ([`cache::grants`]). A grant is *borrowed* if another gateway of the fleet has proved its caller. It counts only
//!   while this gateway is *in sync* with the fleet: it knows what the others have told ([`cache::fleet_sync`]).
//! - **Second tier**: a store of sealed records outside the process, here the **engine** of a fleet. A **ticket** is drawn
//!   there before a call is sent. It orders records without clocks. An **incarnation** is the time between two losses of
//!   the engine's data. To **void** is to make what has earlier tickets unusable.
//! - **Notice**: what all gateways of a fleet must know, in the engine's log: a denial, a purge, an invalidation or a
//!   private scope. It voids one set of records. Only a **hint** voids nothing. A **stranger** is a denied caller that
//!   this gateway does not know: its denial is told only if the engine has a record, a **marker** (some gateway has
//!   proved the caller in the service) or a lease of the caller.
//! - **Lease**: the right to make a call for all gateways, in the engine. **Claim**: what a fetch may do with it
//!   (`gateway/claim.rs`). **Trial**: a call with an access key of which the gateway does not know whether upstream
//!   accepts it. It has a lease, too.
//! - **Hint**: what a gateway tells the other gateways of its fleet about upstream: a backoff, a limit, or the refusal of
//!   an access key. No grant and no entry depends on it.
//! - **Snapshot**: a sealed file with entries, private scopes and proofs, for the next process
//!   (`gateway/snapshot.rs`). **Revocation**: a purge, an invalidation, a scope that becomes private, or the denial of a
//!   caller that has a grant, or may have a proof in the snapshot that this process does not know: its grant was removed
//!   from a full table, or the snapshot could not be read. It ends the snapshots from before ([`cache::revocations`]).
//! - **Flight**: the calls in flight for one cache key, and their waiters. **Leader**: the request that is sent.
//!   **Waiter**: a request that waits for it. If a leader is refused, another one is *elected* from the waiters.
//! - **Cache key**: the key of a request, and its owner if the entry belongs to one caller (*private*). A key is
//!   *uncacheable* for a while after a response for it could not be stored. An entry is *negative* if it is a 400,
//!   404 or 405.
//! - **Look**: a response of upstream that was stored, as evidence whether upstream's answer has changed since the
//!   previous one for its cache key. A *run* is a row of looks with one digest.
//! - **Relay**: to pass a request on unchanged and store nothing. The outcome is *bypass* for an operation, else
//!   *pass-through*.
//! - **Backoff**: a time in which the gateway does not call upstream for what it can serve stale.
//! - **Keep warm**: the gateway itself sends configured requests with a configured access key, before their entries
//!   and the key's grants end (`gateway/keep_warm.rs`).
//! - **Varying field**: a header field of which clients send another value with each request, and that changes no key:
//!   a trace, a signature or its date, `If-None-Match` ([`fast_path`]).
//! - **Span**: what OpenTelemetry gets of a request or of an upstream call, if the request is *sampled*.
//! - **Slot**: the right to have one call in flight (`upstream.max_calls`). A call waits for its *turn* to get one.
//! - **Quota**: how many calls upstream accepts in a window. **Limit**: a quota and what it counts: the calls of an
//!   API, a user, an application or a source address. A limit *holds back* a call that upstream would refuse.
//! - **Budget**: the bytes that may be held for clients. A *charge* is a part of it that is in use; an *account* is
//!   what one connection holds. **Shed**: to close a connection because another one, or memory, is needed.
//!
//! # Not included, on purpose
//!
//! - Layers or middleware: there is one path, readable from top to bottom.
//! - Retries, except three: a connection that broke before a response, if nothing can happen twice
//!   ([`upstream::client`]), a 5xx while upstream answers other callers (invariant 4), and a 429 if the limit and
//!   `Retry-After` allow the call in time (`gateway/fetch.rs`).
//! - Caching rules by pattern or header: an operation is described as a whole, or it is relayed.
//! - Plain text beyond this machine without an explicit setting ([`config::exposure`]).
//! - A choice of TLS versions or ciphers.
//! - HTTP/2 to upstream: HTTP/2 requests are translated at once ([`request::target::translate`]).

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
mod fleet;
mod gateway;
mod machine;
mod net;
mod otlp;
mod proxy_config;
mod random;
mod reply;
mod request;
mod seal;
mod server;
mod signing;
mod simulator;
mod snapshot;
mod stream;
mod sync;
mod telemetry;
#[doc(hidden)]
pub mod testing;
mod upstream;

pub use cli::run;
