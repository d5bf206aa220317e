//! The interface of a second cache tier, and the format of the records in it. No tier is built in.
//!
//! A record contains an entry and its key. Its times are wall-clock times, so that another process can read it. A
//! reader rejects a record that is damaged, or that has another version or another key.
//!
//! A tier must solve what this file does not. Records are not authenticated, so anyone who can write to the tier can
//! forge them. Purges, invalidations and private scopes apply to this process only. A record does not say which caller
//! got the response. If clocks differ by more than [`MAX_SKEW`], an older response may replace a newer one.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, EntryBuilder};
use super::freshness::{FreshnessInfo, Lifetime};
use crate::request::condition::Validator;
use crate::request::key::RequestKey;

/// The version of the format. Increase it when a field, the canonical query or a rule for sharing changes.
const VERSION: u8 = 1;

/// The largest difference allowed between the clocks of the writer and the reader. It is added to the age of each
/// record.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// The maximum number of header fields in a record.
const MAX_FIELDS: usize = 1024;

/// The size of the digest at the beginning of a record, in bytes.
const DIGEST_LEN: usize = blake3::OUT_LEN;

/// A store of shared entries of other processes, and of this one before a restart.
pub trait SecondTier: Send + Sync {
    /// Returns the record of a key. The gateway waits at most 8 ms for it.
    fn get<'a>(&'a self, key: &'a RequestKey) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + 'a>>;

    /// Stores a record. It must return immediately and must not block.
    fn put(&self, key: &RequestKey, record: Bytes);
}

/// An entry as it is encoded. In the record, a digest of these bytes precedes them.
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
    /// When the request was sent, as the time since 1970.
    sent_at_unix: Duration,
    initial_age: Duration,
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
}

/// Encodes a shared entry. `None` if a time is before 1970.
pub(crate) fn encode(key: &RequestKey, entry: &Entry, now: Instant, date: SystemTime) -> Option<Bytes> {
    let FreshnessInfo { sent, initial_age, lifetime } = entry.freshness_info();
    let sent = date.checked_sub(now.saturating_duration_since(sent))?;
    let record = EntryRecord {
        version: VERSION,
        key: &parts(key),
        status: entry.status().as_u16(),
        fields: entry.head().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
        body: entry.body(),
        is_tag_of_upstream: matches!(entry.validator(), Some(Validator::EntityTag(_))),
        sent_at_unix: sent.duration_since(SystemTime::UNIX_EPOCH).ok()?,
        initial_age,
        ttl: lifetime.ttl,
        stale_while_revalidate: lifetime.stale_while_revalidate,
        stale_if_error: lifetime.stale_if_error,
    };
    let bytes = postcard::to_extend(&record, vec![0; DIGEST_LEN]).ok()?;
    let digest = blake3::hash(bytes.get(DIGEST_LEN..)?);
    let mut bytes = bytes;
    bytes.get_mut(..DIGEST_LEN)?.copy_from_slice(digest.as_bytes());
    Some(bytes.into())
}

/// Decodes a record. The lifetimes are limited to the configured ones. `None` if the record is damaged, has another
/// version or another key, or is from the future.
pub(crate) fn decode(
    record: &Bytes,
    key: &RequestKey,
    configured: Lifetime,
    (now, date): (Instant, SystemTime),
) -> Option<EntryBuilder> {
    let (digest, bytes) = record.split_at_checked(DIGEST_LEN)?;
    if blake3::hash(bytes).as_bytes() != digest {
        return None;
    }
    let read: EntryRecord<'_> = postcard::from_bytes(bytes).ok()?;
    // Only responses with 200 are shared.
    let is_shared = read.status == StatusCode::OK.as_u16();
    if read.version != VERSION || read.key != parts(key) || !is_shared || read.fields.len() > MAX_FIELDS {
        return None;
    }
    let age = match date.duration_since(SystemTime::UNIX_EPOCH.checked_add(read.sent_at_unix)?) {
        Ok(age) => age.checked_add(MAX_SKEW)?,
        Err(ahead) => MAX_SKEW.checked_sub(ahead.duration())?,
    };
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
    let freshness_info = FreshnessInfo { sent: now.checked_sub(age)?, initial_age: read.initial_age, lifetime };
    let validator = Validator::of(response.headers()).filter(|_| read.is_tag_of_upstream);
    Some(EntryBuilder::new(&response, freshness_info, validator))
}

/// The parts of a key and the meaning of its operation. Each part is preceded by its length, so that different keys
/// never give the same bytes.
fn parts(key: &RequestKey) -> Vec<u8> {
    let (origin, meaning) = (key.origin().to_string(), key.operation().meaning());
    let mut parts = vec![key.operation().service.as_str(), &meaning, &origin, key.scope().path(), key.query()];
    parts.extend(key.headers().iter().map(|(name, _)| name.as_str()));
    let values = key.headers().iter().map(|(_, value)| value.as_bytes());
    let mut all = Vec::new();
    for part in parts.into_iter().map(str::as_bytes).chain(values) {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    all
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

    #[test]
    fn a_record_decodes_to_its_entry_with_the_age_by_the_wall_clock() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        for tag in [None, Some("\"upstream's\"")] {
            let stored = entry(now, b"{}", tag);
            let record = encode(&key("a=1"), &stored, now + 10 * SECOND, date).unwrap();
            // Another process, with another time on its monotonic clock.
            let (now, date) = (now + 5000 * SECOND, date + 20 * SECOND);
            let read = decode(&record, &key("a=1"), LONG, (now, date)).unwrap().build(false);
            assert_eq!((read.status(), read.body(), read.head()), (stored.status(), stored.body(), stored.head()));
            assert_eq!(read.freshness_info().lifetime, stored.freshness_info().lifetime);
            assert_eq!(read.freshness_info().age(now), (3 + 10 + 20) * SECOND + MAX_SKEW);
            assert_eq!(read.validator().is_some(), tag.is_some());
        }
    }

    #[test]
    fn the_lifetimes_of_a_record_are_limited_to_the_configured_ones() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let record = encode(&key(""), &entry(now, b"{}", None), now, date).unwrap();
        let configured = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 100 * SECOND };
        let read = decode(&record, &key(""), configured, (now, date)).unwrap().build(false);
        let expected = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 7 * SECOND };
        assert_eq!(read.freshness_info().lifetime, expected);
    }

    #[test]
    fn clocks_may_differ_by_five_seconds_and_no_entry_looks_younger_than_it_is() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let record = encode(&key(""), &entry(now, b"{}", None), now, date).unwrap();
        let read = |date| {
            decode(&record, &key(""), LONG, (now, date)).map(|builder| builder.build(false).freshness_info().age(now))
        };
        assert_eq!(read(date), Some(3 * SECOND + MAX_SKEW));
        assert_eq!(read(date - 2 * SECOND), Some(3 * SECOND + MAX_SKEW - 2 * SECOND));
        assert_eq!(read(date - 5 * SECOND), Some(3 * SECOND));
        assert_eq!(read(date - 6 * SECOND), None);
    }

    #[test]
    fn a_record_with_too_many_fields_is_rejected() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let mut response = Response::new(Bytes::new());
        for value in 0..=MAX_FIELDS {
            response.headers_mut().append("link", HeaderValue::from(value));
        }
        let freshness_info = FreshnessInfo { sent: now, initial_age: Duration::ZERO, lifetime: LONG };
        let record = encode(&key(""), &Entry::new(&response, freshness_info, None), now, date).unwrap();
        assert!(decode(&record, &key(""), LONG, (now, date)).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic_and_damage_is_detected(
            at in any::<prop::sample::Index>(),
            change in 1..=u8::MAX,
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
            let is_record = |bytes: Vec<u8>, key: &RequestKey| decode(&bytes.into(), key, LONG, (now, date)).is_some();
            let with_digest = [&blake3::hash(&junk).as_bytes()[..], &junk].concat();
            prop_assert!(!is_record(junk, &key("a=1")) && !is_record(with_digest, &key("a=1")));
            let mut record = encode(&key("a=1"), &entry(now, b"{}", None), now, date).unwrap().to_vec();
            prop_assert!(is_record(record.clone(), &key("a=1")) && !is_record(record.clone(), &key("a=2")));
            let at = at.index(record.len());
            prop_assert!(!is_record(record[..at].to_vec(), &key("a=1")));
            record[at] ^= change;
            prop_assert!(!is_record(record, &key("a=1")));
        }
    }
}
