//! The format of an entry that another process reads: from a second tier, or from a snapshot.
//!
//! A record contains an entry and its key. A reader rejects a record that has another version or another key, or that
//! cannot be read. It is sealed elsewhere ([`crate::seal`]), so nobody can change it. Pure: the time is an argument.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::divergence::{MIN_ALTERNATIONS, Observation, Observations};
use super::entry::{Entry, EntryBuilder};
use super::freshness::{FreshnessInfo, Lifetime};
use crate::catalogue::Catalogue;
use crate::request::caller::Caller;
use crate::request::key::{RequestKey, Scope};
use crate::request::precondition::Validator;

/// The version of the format. Increase it when a field, the canonical query or a rule for sharing changes.
const VERSION: u8 = 2;

/// The maximum number of header fields in a record.
const MAX_FIELDS: usize = 1024;

/// The largest part of a record besides its body, in bytes.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// An entry as it is encoded. Times are counted back from when the record was written.
#[derive(Serialize, Deserialize)]
struct EntryRecord<'a> {
    version: u8,
    key: &'a [u8],
    status: u16,
    #[serde(borrow)]
    fields: Vec<(&'a str, &'a [u8])>,
    body: &'a [u8],
    /// Whether upstream sent the entity tag. Otherwise the gateway made it.
    is_tag_of_upstream: bool,
    /// The time since the request was sent.
    sent_before: Duration,
    initial_age: Duration,
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    observations: Vec<ObservationRecord>,
}

/// A response to the same request, by which a later reader can detect that callers get different ones.
#[derive(Serialize, Deserialize)]
struct ObservationRecord {
    digest: [u8; 32],
    caller: [u8; 32],
    sent_before: Duration,
    received_before: Duration,
}

/// An entry of another process.
pub(crate) type DecodedEntry = (EntryBuilder, Observations);

/// Encodes an entry.
pub(crate) fn encode(key: &RequestKey, entry: &Entry, now: Instant) -> Option<Vec<u8>> {
    let FreshnessInfo { sent, initial_age, lifetime } = entry.freshness_info();
    let before = |at| now.saturating_duration_since(at);
    let observations = entry.observations.iter().map(|it| ObservationRecord {
        digest: it.digest,
        caller: it.caller.to_sealed(),
        sent_before: before(it.sent),
        received_before: before(it.received),
    });
    let record = EntryRecord {
        version: VERSION,
        key: &name(key),
        status: entry.status().as_u16(),
        fields: entry.head().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
        body: entry.body(),
        is_tag_of_upstream: matches!(entry.validator(), Some(Validator::EntityTag(_))),
        sent_before: before(sent),
        initial_age,
        ttl: lifetime.ttl,
        stale_while_revalidate: lifetime.stale_while_revalidate,
        stale_if_error: lifetime.stale_if_error,
        observations: observations.collect(),
    };
    postcard::to_allocvec(&record).ok()
}

/// Decodes a record that was written at `written`. The lifetimes are limited to the configured ones. `None` if it has
/// another version or another key, or is not a record.
pub(crate) fn decode(record: &Bytes, key: &RequestKey, configured: Lifetime, written: Instant) -> Option<DecodedEntry> {
    let read: EntryRecord<'_> = postcard::from_bytes(record).ok()?;
    // Only responses with 200 are kept.
    let is_kept = read.status == StatusCode::OK.as_u16();
    let is_bounded = read.fields.len() <= MAX_FIELDS && read.observations.len() < MIN_ALTERNATIONS;
    if read.version != VERSION || read.key != name(key) || !is_kept || !is_bounded {
        return None;
    }
    let mut response = Response::new(record.slice_ref(read.body));
    for (name, value) in &read.fields {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?);
        response.headers_mut().try_append(name, value).ok()?;
    }
    let lifetime = Lifetime {
        ttl: read.ttl.min(configured.ttl),
        stale_while_revalidate: read.stale_while_revalidate.min(configured.stale_while_revalidate),
        stale_if_error: read.stale_if_error.min(configured.stale_if_error),
    };
    let sent = written.checked_sub(read.sent_before)?;
    let freshness_info = FreshnessInfo { sent, initial_age: read.initial_age, lifetime };
    let validator = Validator::of(response.headers()).filter(|_| read.is_tag_of_upstream);
    let observation = |it: ObservationRecord| {
        let (sent, received) = (written.checked_sub(it.sent_before)?, written.checked_sub(it.received_before)?);
        Some(Observation { digest: it.digest, caller: Caller::from_sealed(it.caller), sent, received })
    };
    let observations = read.observations.into_iter().map(observation).collect::<Option<Observations>>()?;
    Some((EntryBuilder::new(&response, freshness_info, validator), observations))
}

/// A key, and what it means: the definition of its operation and the origin. Each part is preceded by its length, so that
/// different keys never have one name.
pub(crate) fn name(key: &RequestKey) -> Vec<u8> {
    let mut name = scope_name(key.scope());
    let fields = key.headers().iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
    std::iter::once(key.query().as_bytes()).chain(fields).for_each(|part| add_part(&mut name, part));
    name
}

/// A scope, and what it means.
pub(crate) fn scope_name(scope: &Scope) -> Vec<u8> {
    let operation = scope.operation();
    let (origin, meaning) = (scope.origin().to_string(), operation.meaning());
    let mut name = Vec::new();
    for part in [operation.service.as_str(), &meaning, &origin, scope.path()] {
        add_part(&mut name, part.as_bytes());
    }
    name
}

/// A digest of what a scope is and means.
pub(crate) fn scope_digest(scope: &Scope) -> [u8; 32] {
    *blake3::hash(&scope_name(scope)).as_bytes()
}

/// The scope with this path and digest. `None` if there is no such scope here.
pub(crate) fn find_scope(catalogue: &Catalogue, path: &str, digest: &[u8; 32]) -> Option<Scope> {
    let (operation, path_match) = catalogue.operation(path)?;
    let scope = Scope::read(catalogue, operation, path_match).ok()?;
    (scope_digest(&scope) == *digest).then_some(scope)
}

fn add_part(name: &mut Vec<u8>, part: &[u8]) {
    name.extend_from_slice(&(part.len() as u64).to_le_bytes());
    name.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const LONG: Lifetime =
        Lifetime { ttl: Duration::MAX, stale_while_revalidate: Duration::MAX, stale_if_error: Duration::MAX };

    fn key(query: &str) -> RequestKey {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, captured) = catalogue.operation("/v2/p/products").unwrap();
        RequestKey::read(&catalogue, operation, captured, Some(query), &HeaderMap::new(), false).unwrap()
    }

    /// An entry whose request was sent at `sent`.
    fn entry(sent: Instant, body: &[u8], tag: Option<&'static str>) -> Entry {
        let mut response = Response::new(Bytes::copy_from_slice(body));
        response.headers_mut().insert("link", HeaderValue::from_bytes(b"\xe4").unwrap());
        tag.map(|tag| response.headers_mut().insert("etag", HeaderValue::from_static(tag)));
        let lifetime = Lifetime { ttl: 60 * SECOND, stale_while_revalidate: 5 * SECOND, stale_if_error: 7 * SECOND };
        let validator = Validator::of(response.headers());
        Entry::new(&response, FreshnessInfo { sent, initial_age: 3 * SECOND, lifetime }, validator)
    }

    fn record(key: &RequestKey, entry: &Entry, now: Instant) -> Bytes {
        encode(key, entry, now).unwrap().into()
    }

    #[test]
    fn a_record_decodes_to_its_entry_and_age() {
        let now = Clock::System.now();
        for tag in [None, Some("\"upstream's\"")] {
            let stored = entry(now, b"{}", tag);
            let record = record(&key("a=1"), &stored, now + 10 * SECOND);
            // Another process, with another time on its monotonic clock.
            let written = now + 5000 * SECOND;
            let read = decode(&record, &key("a=1"), LONG, written).unwrap().0.build(false);
            assert_eq!((read.status(), read.body(), read.head()), (stored.status(), stored.body(), stored.head()));
            assert_eq!(read.freshness_info().lifetime, stored.freshness_info().lifetime);
            assert_eq!(read.freshness_info().age(written), (3 + 10) * SECOND);
            assert_eq!(read.validator().is_some(), tag.is_some());
        }
    }

    #[test]
    fn the_lifetimes_of_a_record_are_limited_to_the_configured_ones() {
        let now = Clock::System.now();
        let record = record(&key(""), &entry(now, b"{}", None), now);
        let configured = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 100 * SECOND };
        let read = decode(&record, &key(""), configured, now).unwrap().0.build(false);
        let expected = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 7 * SECOND };
        assert_eq!(read.freshness_info().lifetime, expected);
    }

    #[test]
    fn a_record_with_too_many_fields_is_rejected() {
        let now = Clock::System.now();
        let mut response = Response::new(Bytes::new());
        for value in 0..=MAX_FIELDS {
            response.headers_mut().append("link", HeaderValue::from(value));
        }
        let freshness_info = FreshnessInfo { sent: now, initial_age: Duration::ZERO, lifetime: LONG };
        let record = record(&key(""), &Entry::new(&response, freshness_info, None), now);
        assert!(decode(&record, &key(""), LONG, now).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic_and_no_other_key_fits(
            at in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let now = Clock::System.now();
            let is_record = |bytes: Vec<u8>, key: &RequestKey| decode(&bytes.into(), key, LONG, now).is_some();
            prop_assert!(!is_record(junk, &key("a=1")));
            let record = record(&key("a=1"), &entry(now, b"{}", None), now).to_vec();
            prop_assert!(is_record(record.clone(), &key("a=1")) && !is_record(record.clone(), &key("a=2")));
            prop_assert!(!is_record(record[..at.index(record.len())].to_vec(), &key("a=1")));
        }
    }
}
