//! A second tier behind the cache of this process, and the form in which answers are kept there.
//!
//! A record is an answer as a value. It names its key and has the times of the wall clock, so that another process can read it. A
//! reader rejects a record that is damaged, or has another version or another key.
//!
//! No tier is built in, for a tier has to bring what this does not have: records are not authenticated, so whoever can write to
//! the tier can forge them. Purges, invalidations and private scopes are those of this process. A record does not tell whose
//! view it is, and clocks that differ by more than [`MAX_SKEW`] put answers in a wrong order.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::entry::{Draft, Entry};
use super::freshness::{Life, Lifetime};
use crate::request::condition::Validator;
use crate::request::key::RequestKey;

/// The version of records. It is raised whenever a field, the canonical query or the rules of sharing change.
const VERSION: u8 = 1;

/// By how much the clock of a record's writer may differ. So much is added to the age of each record.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// How many fields a record may have.
const MAX_FIELDS: usize = 1024;

/// The size of the digest at the beginning of a record, in bytes.
const DIGEST: usize = blake3::OUT_LEN;

/// Where shared answers are that another process has stored, or this one before it was restarted.
pub trait SecondTier: Send + Sync {
    /// The record under a key, if there is one. The gateway waits for 8 ms at most.
    fn get<'a>(&'a self, key: &'a RequestKey) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + 'a>>;

    /// Keeps a record under a key. It returns at once, without blocking.
    fn put(&self, key: &RequestKey, record: Bytes);
}

/// A kept answer. As bytes, its digest comes first.
#[derive(Serialize, Deserialize)]
struct EntryRecord<'a> {
    version: u8,
    /// All parts of the key.
    key: &'a [u8],
    status: u16,
    #[serde(borrow)]
    fields: Vec<(&'a str, &'a [u8])>,
    body: &'a [u8],
    /// Whether the entity tag is upstream's, and not of the gateway's making.
    is_tag_of_upstream: bool,
    /// When it was asked for, as the time since 1970.
    sent_at_unix: Duration,
    initial_age: Duration,
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
}

/// The record of an entry that is shared. `None` for dates before 1970.
pub(crate) fn encode(key: &RequestKey, entry: &Entry, now: Instant, date: SystemTime) -> Option<Bytes> {
    let Life { sent, initial_age, lifetime } = entry.life();
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
    let bytes = postcard::to_extend(&record, vec![0; DIGEST]).ok()?;
    let digest = blake3::hash(bytes.get(DIGEST..)?);
    let mut bytes = bytes;
    bytes.get_mut(..DIGEST)?.copy_from_slice(digest.as_bytes());
    Some(bytes.into())
}

/// The entry of a record, to be kept under a key. It lives no longer than configured here. `None` if the record is damaged, has
/// another key, or is from the future.
pub(crate) fn decode(
    record: &Bytes,
    key: &RequestKey,
    configured: Lifetime,
    (now, date): (Instant, SystemTime),
) -> Option<Draft> {
    let (digest, bytes) = record.split_at_checked(DIGEST)?;
    if blake3::hash(bytes).as_bytes() != digest {
        return None;
    }
    let read: EntryRecord<'_> = postcard::from_bytes(bytes).ok()?;
    // Nothing else is shared.
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
    let life = Life { sent: now.checked_sub(age)?, initial_age: read.initial_age, lifetime };
    let validator = Validator::of(response.headers()).filter(|_| read.is_tag_of_upstream);
    Some(Draft::new(&response, life, validator))
}

/// The parts of a key, none of which can run into the next, and what its operation means here.
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
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        RequestKey::read(&catalogue, operation, place, Some(query), &HeaderMap::new(), false).unwrap()
    }

    /// An entry that was asked for at a moment.
    fn entry(sent: Instant, body: &[u8], tag: Option<&'static str>) -> Entry {
        let mut answer = Response::new(Bytes::copy_from_slice(body));
        answer.headers_mut().insert("link", HeaderValue::from_bytes(b"\xe4").unwrap());
        tag.map(|tag| answer.headers_mut().insert("etag", HeaderValue::from_static(tag)));
        let lifetime = Lifetime { ttl: 60 * SECOND, stale_while_revalidate: 5 * SECOND, stale_if_error: 7 * SECOND };
        let validator = Validator::of(answer.headers());
        Entry::new(&answer, Life { sent, initial_age: 3 * SECOND, lifetime }, validator)
    }

    #[test]
    fn a_record_gives_the_entry_that_it_is_of_and_its_age_by_the_wall_clock() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        for tag in [None, Some("\"upstream's\"")] {
            let kept = entry(now, b"{}", tag);
            let record = encode(&key("a=1"), &kept, now + 10 * SECOND, date).unwrap();
            // Another process, whose monotonic clock shows something else.
            let (now, date) = (now + 5000 * SECOND, date + 20 * SECOND);
            let read = decode(&record, &key("a=1"), LONG, (now, date)).unwrap().into_entry(false);
            assert_eq!((read.status(), read.body(), read.head()), (kept.status(), kept.body(), kept.head()));
            assert_eq!(read.life().lifetime, kept.life().lifetime);
            assert_eq!(read.life().age(now), (3 + 10 + 20) * SECOND + MAX_SKEW);
            assert_eq!(read.validator().is_some(), tag.is_some());
        }
    }

    #[test]
    fn it_lives_no_longer_than_is_configured_here() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let record = encode(&key(""), &entry(now, b"{}", None), now, date).unwrap();
        let configured = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 100 * SECOND };
        let read = decode(&record, &key(""), configured, (now, date)).unwrap().into_entry(false);
        let expected = Lifetime { ttl: 10 * SECOND, stale_while_revalidate: SECOND, stale_if_error: 7 * SECOND };
        assert_eq!(read.life().lifetime, expected);
    }

    #[test]
    fn clocks_may_differ_by_five_seconds_and_no_answer_looks_younger_than_it_is() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let record = encode(&key(""), &entry(now, b"{}", None), now, date).unwrap();
        let read =
            |date| decode(&record, &key(""), LONG, (now, date)).map(|draft| draft.into_entry(false).life().age(now));
        assert_eq!(read(date), Some(3 * SECOND + MAX_SKEW));
        assert_eq!(read(date - 2 * SECOND), Some(3 * SECOND + MAX_SKEW - 2 * SECOND));
        assert_eq!(read(date - 5 * SECOND), Some(3 * SECOND));
        assert_eq!(read(date - 6 * SECOND), None);
    }

    #[test]
    fn a_record_of_too_many_fields_is_rejected() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let mut answer = Response::new(Bytes::new());
        for value in 0..=MAX_FIELDS {
            answer.headers_mut().append("link", HeaderValue::from(value));
        }
        let life = Life { sent: now, initial_age: Duration::ZERO, lifetime: LONG };
        let record = encode(&key(""), &Entry::new(&answer, life, None), now, date).unwrap();
        assert!(decode(&record, &key(""), LONG, (now, date)).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_damage_is_noticed(
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
