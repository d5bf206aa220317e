//! The fast path: answers a request whose head has come before, byte for byte, before hyper reads it.
//!
//! Reading the same head gives the same result: operation, key, caller and directives. The fast path remembers that result
//! (a *lookup*) under a keyed fingerprint of the head, if the request was a hit. It remembers no credential and no
//! decision. The mode, the caller's grant, the entry and its freshness are looked at anew for each request. If there is no
//! fresh entry that the caller may be given, hyper reads the head, and the request takes the whole path.
//!
//! Two others call it, and nobody else:
//!
//! - The server gives each connection of HTTP/1 a [`Responder`]. What arrives goes through [`Responder::take`] before hyper
//!   sees it, and [`Responder::poll_write`] comes before whatever hyper writes.
//! - The gateway calls [`FastPath::begin_request`] for each request that hyper has read, and [`FastPath::remember`] for one
//!   that was a hit. It implements [`HitSource`]: what a lookup is, and whether there is a fresh entry for it now.
//!
//! `listen.fast_path` switches it off, for open connections, too. Then no fingerprint is taken and nothing is remembered.

mod head;
mod head_cache;
mod metrics;
mod responder;
mod tracker;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;

use crate::cache::entry::Entry;
use crate::catalogue::Operation;
use crate::clock::Clock;
use crate::reply::compose;
use crate::request::fingerprint::{Fingerprint, Fingerprints};
use crate::request::id::RequestId;
use crate::telemetry::hit_series::HitSeries;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::{self, Heading, RequestRecord};
// These two and MAX_HEADS for tests of what heads cost.
pub use head::{HeadScanner, is_repeatable};
use head_cache::HeadCache;
pub use head_cache::MAX_HEADS;
use metrics::FastPathMetrics;
pub use responder::{Responder, ResponderState};
pub(crate) use tracker::RequestTracker;

/// What has the entries: the gateway.
pub trait HitSource {
    /// What reading a head tells, and under what conditions that still holds.
    type Lookup;
    /// What the source knows of a client's connection.
    type Connection: AsRef<RequestTracker>;

    /// The fast path of this source.
    fn fast_path(&self) -> &FastPath<Self::Lookup>;

    /// The fresh entry for a lookup, if the client may be given it now by this connection. Notes that it was given.
    fn hit(&self, lookup: &Self::Lookup, connection: &Self::Connection) -> Option<Hit>;
}

/// An entry that is given to a client.
pub struct Hit {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The moment at which it is fresh.
    pub now: Instant,
    /// The id of the request.
    pub request_id: RequestId,
    /// The client's address.
    pub client: IpAddr,
}

/// What all connections share.
pub struct FastPath<L> {
    is_on: AtomicBool,
    fingerprints: Fingerprints,
    heads: HeadCache<Arc<RememberedHead<L>>>,
    counted: FastPathMetrics,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What is remembered of a head.
struct RememberedHead<L> {
    lookup: L,
    operation: Arc<Operation>,
    /// For the log. `None` if requests were not logged.
    heading: Option<Arc<Heading>>,
    series: Arc<HitSeries>,
}

impl<L> FastPath<L> {
    /// A fast path that knows no head, by a random key that is told to nobody. Its hits are counted in `metrics`.
    ///
    /// # Errors
    /// If they are counted there already.
    pub fn new(is_on: bool, key: [u8; 32], metrics: &Arc<Metrics>, clock: Clock) -> prometheus::Result<Self> {
        Ok(Self {
            is_on: AtomicBool::new(is_on),
            fingerprints: Fingerprints::new(key),
            heads: HeadCache::default(),
            counted: FastPathMetrics::new(metrics)?,
            metrics: Arc::clone(metrics),
            clock,
        })
    }

    /// Switches it on or off. Switched off, it forgets all heads.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
        if !on {
            self.heads.clear();
        }
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// A request that hyper has read from a connection begins. Returns the fingerprint of its head if the head is one to
    /// remember: it came in one piece and not for the first time, and says nothing that has to be looked at each time.
    pub fn begin_request(&self, tracker: &RequestTracker, head: &Parts, has_body: bool) -> Option<Fingerprint> {
        tracker.request_is_read(head, has_body).filter(|head| self.heads.was_seen(head))
    }

    /// Remembers the lookup of a request that was a hit. `heading` is what the log tells of it, if requests are logged.
    pub fn remember(&self, head: Fingerprint, lookup: L, operation: &Arc<Operation>, heading: Option<Arc<Heading>>) {
        // The head may have come before it was switched off.
        if self.is_on() {
            let series = self.counted.series(&self.metrics, operation);
            let operation = Arc::clone(operation);
            self.heads.insert(head, Arc::new(RememberedHead { lookup, operation, heading, series }));
        }
    }

    /// Answers a request whose head is known: writes the response's head, and returns its body and the request's record.
    /// `None` if the head is not known, or hyper has to read it all the same.
    fn respond<S>(
        &self,
        head: &Fingerprint,
        source: &S,
        connection: &S::Connection,
        text: &mut Vec<u8>,
    ) -> Option<(Bytes, RequestRecord)>
    where
        S: HitSource<Lookup = L>,
    {
        let known = self.heads.get(head)?;
        // Requests may be logged since.
        if known.heading.is_none() && record::is_logged() {
            return None;
        }
        let Hit { entry, now, request_id, client } = source.hit(&known.lookup, connection)?;
        self.counted.hit();
        let (metrics, clock) = (Arc::clone(&self.metrics), self.clock.clone());
        let line = (known.heading.as_ref(), client);
        let counted = (&*known.operation, &known.series, entry.key());
        let record = RequestRecord::begin_hit(metrics, clock, request_id, line, counted);
        compose::write_hit(&entry, now, record.request_id(), text);
        Some((entry.body().clone(), record))
    }
}
