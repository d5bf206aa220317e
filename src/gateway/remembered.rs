//! The gateway's side of the fast path: what it remembers of a head, and whether that can be answered now.
//!
//! The result of reading a head depends on the active config and on the local address of the connection. So a
//! remembered look-up is valid while both are the same. For a signed request the gateway also remembers what verifies
//! another date and signature. The signature is verified for each request.
//!
//! The look-ups of the grant and the entry would cost most of a hit if there are many callers and keys. So the gateway
//! remembers the entry for at most 1 s. A revocation ends this at once.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Response, Uri};

use super::look_up::accepts;
use super::{ActiveConfig, CacheRequest, Connection, Gateway, Lookup, charge};
use crate::budget::ConnectionClass;
use crate::cache::entry::Entry;
use crate::cache::link::Link;
use crate::catalogue::Service;
use crate::config::Mode;
use crate::fast_path::{FastPath, Hit, HitSource, ReceivedHead, RequestTracker, VaryingFields, is_varying};
use crate::reply::body::ReplyBody;
use crate::request::caller::Credential;
use crate::request::fingerprint::Fingerprint;
use crate::request::request_directives::RequestDirectives;
use crate::request::validate::MAX_FIELDS;
use crate::signing::ring::VerifiedRequest;
use crate::signing::{RepeatedRequest, SignedTarget, X_SDK_DATE};
use crate::sync::Mutex;
use crate::telemetry::completed::Heading;
use crate::telemetry::record::RequestRecord;

/// Requests with a larger key, in bytes, are not remembered, to save memory. The same with what verifies a signature.
const MAX_KEY_SIZE: usize = 512;
const MAX_SIGNED_SIZE: usize = 640;

/// For how long the entry is remembered. Then the next hit counts as a use again: moka evicts by use, and grants are renewed
/// by their callers' pace.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// The result of reading a head.
pub struct RememberedLookup {
    lookup: Arc<Lookup>,
    /// A copy of `lookup.directives`. Most hits then do not read `lookup`, which saves a cache miss.
    directives: RequestDirectives,
    entry: Mutex<Option<RememberedEntry>>,
    /// What verifies the signature. `None` if the request has a token.
    signed: Option<Box<RepeatedRequest>>,
    /// The active config with which it was read.
    active: Weak<ActiveConfig>,
    /// `limits.max_head_size`, in bytes.
    max_head_size: usize,
    /// The local address of its connection.
    local: SocketAddr,
}

/// The entry of the latest look-up by a caller with a grant. Its freshness is checked for each request.
struct RememberedEntry {
    link: Arc<Link<Entry>>,
    /// See [`crate::cache::revocations::Revocations::revision`].
    revision: u64,
    until: Instant,
}

impl RememberedEntry {
    /// The entry, unless something has changed.
    fn get(&self, revision: u64, now: Instant) -> Option<Arc<Entry>> {
        let is_unchanged = self.revision == revision && now < self.until;
        self.link.value().filter(|entry| is_unchanged && !entry.is_replaced())
    }
}

impl Gateway {
    /// Lets the fast path remember a request that was a hit. `head` is as it was when the signature was verified: without
    /// the hop-by-hop fields. `received_uri` is the target as the client sent it.
    pub(super) fn remember(
        &self,
        fingerprint: Fingerprint,
        (head, received_uri): (&Parts, &Uri),
        request: &CacheRequest,
        record: &RequestRecord,
        connection: &Connection,
    ) {
        let CacheRequest { active, credential, lookup, .. } = request;
        // A part of the key must not vary.
        let has_varying = lookup.key.headers().iter().any(|(name, _)| is_varying(name.as_str()));
        if has_varying || lookup.key.size() > MAX_KEY_SIZE {
            return;
        }
        let signed = match credential {
            Credential::Token(_) => None,
            Credential::Signed(verified) => match repeated(verified, head, received_uri) {
                Some(repeated) if lookup.key.size() + repeated.size() <= MAX_SIGNED_SIZE => Some(Box::new(repeated)),
                _ => return,
            },
        };
        let lookup = RememberedLookup {
            lookup: Arc::clone(lookup),
            directives: lookup.directives,
            entry: Mutex::default(),
            signed,
            active: Arc::downgrade(active),
            max_head_size: active.settings.limits.max_head_size.bytes(),
            local: connection.local,
        };
        let operation = request.lookup.key.operation();
        let heading = record.heading().cloned().or_else(|| {
            // This request has none, if it is not sampled. Later ones with the same head may be.
            let heading = || Arc::new(Heading::new(received_uri.path(), &head.headers));
            self.observer.sinks.may_need_description().then(heading)
        });
        self.fast_path.remember(fingerprint, lookup, operation, heading, record.caller().cloned());
    }

    /// The response to an HTTP/2 request whose head is known. `None` if there is no hit, or the budget has no room for the
    /// request.
    pub(super) fn respond_to_known(
        &self,
        head: &ReceivedHead<'_>,
        connection: &Connection,
    ) -> Option<Response<ReplyBody>> {
        let charge = charge::for_known_request(head.size, connection)?;
        let (response, record) = self.fast_path.respond_parsed(head, self, connection)?;
        Some(response.map(|content| ReplyBody::new(content, record, charge)))
    }

    /// The fresh entry for the caller of a remembered look-up.
    fn fresh(&self, remembered: &RememberedLookup, now: Instant) -> Option<Arc<Entry>> {
        // Before the look-up: what is revoked meanwhile must end the result.
        let revision = self.memory.revocations.revision();
        let mut known = remembered.entry.lock();
        if let Some(entry) = known.as_ref().and_then(|known| known.get(revision, now)) {
            return accepts(remembered.directives, &entry, now).then_some(entry);
        }
        let (entry, until) = self.memory.fresh(&remembered.lookup, now)?;
        let until = until.min(now + REMEMBERED_FOR);
        *known = Some(RememberedEntry { link: Arc::clone(entry.link()), revision, until });
        Some(entry)
    }

    /// Whether the request is signed by its key, and the key may be used now. If not, the full path answers it.
    fn verify_again(&self, signed: &RepeatedRequest, varying: VaryingFields<'_>, service: Service) -> bool {
        let Some((signature, date)) = varying.signature().zip(varying.sdk_date()) else { return false };
        signed.verify(signature, date, self.clock.date())
            && !self.fetcher.key_breaker.is_suspended(signed.key(), service)
    }
}

/// `None` if the signature covers a varying field besides the date, or cannot be remembered.
fn repeated(verified: &VerifiedRequest, head: &Parts, received_uri: &Uri) -> Option<RepeatedRequest> {
    if verified.covered().any(|name| name != X_SDK_DATE && is_varying(name)) {
        return None;
    }
    RepeatedRequest::of(verified, &head.method, SignedTarget::from(received_uri), &head.headers)
}

impl AsRef<RequestTracker> for Connection {
    fn as_ref(&self) -> &RequestTracker {
        &self.tracker
    }
}

impl HitSource for Gateway {
    type Lookup = RememberedLookup;
    type Connection = Connection;

    fn fast_path(&self) -> &FastPath<RememberedLookup> {
        &self.fast_path
    }

    fn hit(&self, lookup: &RememberedLookup, head: &ReceivedHead<'_>, connection: &Connection) -> Option<Hit> {
        if !self.is_in_force(&lookup.active) || lookup.local != connection.local || self.mode() == Mode::Bypass {
            return None;
        }
        // The limit counts a blank before each value, which may be missing here.
        if head.size + MAX_FIELDS > lookup.max_head_size {
            return None;
        }
        if let Some(signed) = &lookup.signed
            && !self.verify_again(signed, head.varying, lookup.lookup.key.operation().service)
        {
            return None;
        }
        let now = self.clock.now();
        let entry = self.fresh(lookup, now)?;
        // Not before: without a fresh entry, the full path verifies the signature again, and counts it.
        if lookup.signed.is_some() {
            self.observer.metrics.signature("verified");
        }
        entry.hit(now);
        // A caller with a grant is known.
        // `raise` checks this, too. Here it saves a read of `lookup`.
        if connection.account.class() < ConnectionClass::Known {
            connection.account.raise(ConnectionClass::Known, Some(lookup.lookup.caller_scope.caller));
        }
        Some(Hit { entry, now, request_id: self.request_ids.next(), client: connection.peer })
    }
}
