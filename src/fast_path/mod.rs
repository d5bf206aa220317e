//! The fast path: it answers a request whose head has come before. The head must be the same, but for the values of its
//! *varying fields*: a trace, a signature and its date, an `If-None-Match` (`varying.rs`). In HTTP/1 it compares bytes,
//! before hyper reads them. In HTTP/2 it compares the head that hyper has read, because the same head comes in other
//! bytes each time (RFC 7541).
//!
//! Reading the same head gives the same result: operation, key, caller and directives. If the request was a hit, the
//! fast path remembers that result (a *lookup*) under a keyed fingerprint of the head. It must not remember a
//! credential. It checks the mode, the signature and the freshness for each request. It looks up grant and entry at least
//! once a second, and after each revocation. If there is no fresh entry that the caller may get, the request takes the
//! full path.
//!
//! It has two users:
//!
//! - The server creates a [`Responder`] for each HTTP/1 connection. It passes received bytes to [`Responder::take`]
//!   before hyper, and calls [`Responder::poll_write`] before it writes anything of hyper's.
//! - The gateway calls [`FastPath::read_parsed`] and [`FastPath::begin_request`] for each request that hyper has read,
//!   and [`FastPath::remember`] for each hit. It implements [`HitSource`]: what a lookup is, and whether there is a fresh
//!   entry for it now.
//!
//! `listen.fast_path = false` switches it off, also for open connections. Then nothing is fingerprinted or remembered.

mod head;
mod head_cache;
mod metrics;
mod responder;
mod tracker;
mod varying;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use http::header::{ETAG, HOST};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};

use crate::cache::entry::Entry;
use crate::catalogue::Operation;
use crate::clock::Clock;
use crate::reply::body::Content;
use crate::reply::compose;
use crate::request::decide::head_size;
use crate::request::fingerprint::{Fingerprint, Fingerprints};
use crate::request::id::RequestId;
use crate::request::precondition;
use crate::telemetry::callers::CallerCounts;
use crate::telemetry::completed::Heading;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::requests::HitSeries;
use crate::telemetry::sinks::Sinks;
// Public for tests of running time and memory, like MAX_HEADS.
pub use head::{HeadScanner, is_repeatable};
use head_cache::HeadCache;
pub use head_cache::MAX_HEADS;
use metrics::FastPathMetrics;
pub use responder::{Responder, ResponderState};
pub(crate) use tracker::RequestTracker;
pub(crate) use varying::{VaryingFields, is_varying};
pub use varying::{split_head, split_parsed_head};

/// The interface of the gateway, which has the entries.
pub trait HitSource {
    /// The result of reading a head, and the conditions under which it is valid.
    type Lookup;
    type Connection: AsRef<RequestTracker>;

    fn fast_path(&self) -> &FastPath<Self::Lookup>;

    /// The fresh entry for a lookup, if the caller may get it now on this connection. Counts the hit on the entry.
    fn hit(&self, lookup: &Self::Lookup, head: &ReceivedHead<'_>, connection: &Self::Connection) -> Option<Hit>;
}

/// A head that has been received, before anything is known of it.
pub struct ReceivedHead<'h> {
    pub fingerprint: Fingerprint,
    pub(crate) varying: VaryingFields<'h>,
    pub(crate) version: Version,
    /// In bytes.
    pub size: usize,
}

/// An entry that is served to a client.
pub struct Hit {
    pub entry: Arc<Entry>,
    /// The time at which the entry was found fresh.
    pub now: Instant,
    pub request_id: RequestId,
    pub client: IpAddr,
}

/// The part of the fast path that all connections share.
pub struct FastPath<L> {
    is_on: AtomicBool,
    fingerprints: Fingerprints,
    heads: HeadCache<Arc<RememberedHead<L>>>,
    fast_path_metrics: FastPathMetrics,
    sinks: Arc<Sinks>,
    clock: Clock,
}

struct RememberedHead<L> {
    lookup: L,
    operation: Arc<Operation>,
    /// For the access log and the tail. `None` if neither needed it.
    heading: Option<Arc<Heading>>,
    series: Arc<HitSeries>,
    caller: Option<Arc<CallerCounts>>,
}

impl<L> FastPath<L> {
    /// A fast path without remembered heads. `key` is the random, secret key of the fingerprints.
    pub fn new(is_on: bool, key: [u8; 32], sinks: &Arc<Sinks>, clock: Clock) -> Self {
        Self {
            is_on: AtomicBool::new(is_on),
            fingerprints: Fingerprints::new(key),
            heads: HeadCache::default(),
            fast_path_metrics: FastPathMetrics::new(sinks.metrics()),
            sinks: Arc::clone(sinks),
            clock,
        }
    }

    /// Switches the fast path on or off at run time. Switching it off forgets all heads.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
        if !on {
            self.heads.clear();
        }
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Reads a head as far as the fast path has to. `None` if it must not be remembered.
    fn read<'h>(&self, head: &'h [u8]) -> Option<ReceivedHead<'h>> {
        let mut known = self.fingerprints.of_parts();
        let varying = varying::split(head, |part| known.add(part))?;
        // HTTP/1.0 is not remembered.
        Some(ReceivedHead { fingerprint: known.finish(), varying, version: Version::HTTP_11, size: head.len() })
    }

    /// Reads an HTTP/2 head as far as the fast path has to. `None` in HTTP/1, where the bytes were compared before.
    pub fn read_parsed<'h>(&self, head: &'h Parts, has_body: bool) -> Option<ReceivedHead<'h>> {
        if head.version != Version::HTTP_2 || head.method != Method::GET || has_body || !self.is_on() {
            return None;
        }
        let mut known = self.fingerprints.of_parts();
        // The bytes of an HTTP/1 head do not begin with a NUL.
        known.add(b"\0");
        let varying = varying::split_parsed(head, |part| known.add(part))?;
        // The full path counts the authority as a `Host`.
        let host = head.uri.authority().map_or(0, |authority| HOST.as_str().len() + authority.as_str().len() + 4);
        let size = head_size(head) + host;
        Some(ReceivedHead { fingerprint: known.finish(), varying, version: head.version, size })
    }

    /// Called when hyper has read a request. Returns the fingerprint of its head if the head may be remembered: it has
    /// come before, has no field that must be read each time, and in HTTP/1 it arrived in one piece. `http2` is the
    /// fingerprint of an HTTP/2 head.
    pub fn begin_request(
        &self,
        tracker: &RequestTracker,
        head: &Parts,
        has_body: bool,
        http2: Option<Fingerprint>,
    ) -> Option<Fingerprint> {
        let received = tracker.request_parsed(head, has_body);
        http2.or(received).filter(|received| head::is_repeatable(head) && self.heads.was_seen(received))
    }

    /// Remembers the lookup of a request that was a hit, and what its record says of its head.
    pub fn remember(
        &self,
        head: Fingerprint,
        lookup: L,
        operation: &Arc<Operation>,
        heading: Option<Arc<Heading>>,
        caller: Option<Arc<CallerCounts>>,
    ) {
        // The fast path may have been switched off since the head arrived.
        if self.is_on() {
            let series = self.fast_path_metrics.series(self.sinks.metrics(), operation);
            let operation = Arc::clone(operation);
            self.heads.insert(head, Arc::new(RememberedHead { lookup, operation, heading, series, caller }));
        }
    }

    /// Answers a request whose bytes are known. Writes the response's head to `text`, and returns the entry with its body,
    /// if it has one, and the request's record. `None` if the head is not known, or there is no hit.
    fn respond<S>(
        &self,
        head: &ReceivedHead<'_>,
        source: &S,
        connection: &S::Connection,
        text: &mut Vec<u8>,
    ) -> Option<(Option<Arc<Entry>>, RequestRecord)>
    where
        S: HitSource<Lookup = L>,
    {
        let KnownHit { entry, now, is_current, record } = self.find(head, source, connection)?;
        if is_current {
            compose::write_not_modified(&entry, now, record.request_id(), text);
            return Some((None, record));
        }
        compose::write_hit(&entry, now, record.request_id(), text);
        Some((Some(entry), record))
    }

    /// Answers a request whose head hyper has read. `None` if the head is not known, or there is no hit.
    pub fn respond_parsed<S>(
        &self,
        head: &ReceivedHead<'_>,
        source: &S,
        connection: &S::Connection,
    ) -> Option<(Response<Content>, RequestRecord)>
    where
        S: HitSource<Lookup = L>,
    {
        let KnownHit { entry, now, is_current, record } = self.find(head, source, connection)?;
        let response = compose::hit(&entry, now, record.request_id());
        Some((if is_current { compose::not_modified(&response) } else { response }, record))
    }

    /// The hit of a request whose head is known.
    fn find<S>(&self, head: &ReceivedHead<'_>, source: &S, connection: &S::Connection) -> Option<KnownHit>
    where
        S: HitSource<Lookup = L>,
    {
        let remembered = self.heads.get(&head.fingerprint)?;
        // Logging, a tail or a trace may have begun since the head was remembered.
        if remembered.heading.is_none() && self.sinks.may_need_description() {
            return None;
        }
        // The full path adds the caller to the table again.
        if remembered.caller.as_ref().is_some_and(|caller| caller.is_forgotten()) {
            return None;
        }
        let Hit { entry, now, request_id, client } = source.hit(&remembered.lookup, head, connection)?;
        self.fast_path_metrics.hit();
        let (sinks, clock) = (Arc::clone(&self.sinks), self.clock.clone());
        let line = (remembered.heading.as_ref(), client, head.version, head.varying.traceparent());
        let counted = (&*remembered.operation, &remembered.series, entry.key());
        let mut record = RequestRecord::begin_hit(sinks, clock, request_id, line, counted, remembered.caller.as_ref());
        let names = |list: &str| entry.head().get(ETAG).is_some_and(|tag| precondition::lists(list.as_bytes(), tag));
        let is_current = head.varying.if_none_match().is_some_and(names);
        record.set_status(if is_current { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
        Some(KnownHit { entry, now, is_current, record })
    }
}

/// A hit, and whether the client has the current version, so that it gets a 304.
struct KnownHit {
    entry: Arc<Entry>,
    now: Instant,
    is_current: bool,
    record: RequestRecord,
}
