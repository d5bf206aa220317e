//! A second tier behind the cache of this process, and the form in which answers are kept there.
//!
//! A record is an answer as a value: it names its key, and its times are those of the wall clock, so that another process can
//! read them. Nobody is trusted to have written it: what is not a record of this version, for this very key, is none. (What
//! is not sealed may still be forged; a tier that others can write to has to see to that.)

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::entry::{Draft, Entry};
use super::freshness::{Life, Lifetime};
use crate::request::condition::Validator;
use crate::request::key::Key;

/// Raised whenever a field, the canonical query or the rules of what is shared change: then what was kept before is no record.
const VERSION: u8 = 1;

/// How far in the future a record may have been sent for, because clocks differ.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// Where shared answers are that another process has stored, or this one before it was restarted.
pub trait SecondTier: Send + Sync {
    /// What is kept under a key. It is asked inside of a fetch, and not for long.
    fn get<'a>(&'a self, key: &'a Key) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + 'a>>;

    /// Keeps a record under a key, in the background.
    fn put(&self, key: &Key, record: Bytes);
}

/// A kept answer, as bytes that outlive the process.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    version: u8,
    /// All parts of the key.
    key: &'a [u8],
    status: u16,
    #[serde(borrow)]
    fields: Vec<(&'a str, &'a [u8])>,
    body: &'a [u8],
    /// Whether the entity tag is upstream's, and not of the gateway's making.
    is_tag_of_upstream: bool,
    /// When it was asked for, since 1970.
    sent: Duration,
    initial_age: Duration,
    ttl: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
}

/// The record of an entry that is shared. `None` for dates before 1970.
pub(crate) fn encode(key: &Key, entry: &Entry, now: Instant, date: SystemTime) -> Option<Bytes> {
    let Life { sent, initial_age, lifetime } = entry.life();
    let sent = date.checked_sub(now.saturating_duration_since(sent))?;
    let record = Record {
        version: VERSION,
        key: &parts(key),
        status: entry.status().as_u16(),
        fields: entry.head().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
        body: entry.body(),
        is_tag_of_upstream: matches!(entry.validator(), Some(Validator::EntityTag(_))),
        sent: sent.duration_since(SystemTime::UNIX_EPOCH).ok()?,
        initial_age,
        ttl: lifetime.ttl,
        stale_while_revalidate: lifetime.stale_while_revalidate,
        stale_if_error: lifetime.stale_if_error,
    };
    postcard::to_allocvec(&record).ok().map(Bytes::from)
}

/// The entry of a record, to be kept under a key. It lives no longer than configured here. `None` if it is no record for
/// that key, or from the future.
pub(crate) fn decode(
    record: &[u8],
    key: &Key,
    configured: Lifetime,
    (now, date): (Instant, SystemTime),
) -> Option<Draft> {
    let record: Record<'_> = postcard::from_bytes(record).ok()?;
    if record.version != VERSION || record.key != parts(key) {
        return None;
    }
    let age = match date.duration_since(SystemTime::UNIX_EPOCH.checked_add(record.sent)?) {
        Ok(age) => age,
        Err(ahead) if ahead.duration() <= MAX_SKEW => Duration::ZERO,
        Err(_) => return None,
    };
    let mut response = Response::new(Bytes::copy_from_slice(record.body));
    *response.status_mut() = StatusCode::from_u16(record.status).ok()?;
    *response.headers_mut() = fields(&record.fields)?;
    let lifetime = Lifetime {
        ttl: record.ttl.min(configured.ttl),
        stale_while_revalidate: record.stale_while_revalidate.min(configured.stale_while_revalidate),
        stale_if_error: record.stale_if_error.min(configured.stale_if_error),
    };
    let life = Life { sent: now.checked_sub(age)?, initial_age: record.initial_age, lifetime };
    let validator = Validator::of(response.headers()).filter(|_| record.is_tag_of_upstream);
    Some(Draft::new(&response, life, validator))
}

fn fields(fields: &[(&str, &[u8])]) -> Option<HeaderMap> {
    let field = |(name, value): &(&str, &[u8])| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
    };
    fields.iter().map(field).collect()
}

/// The parts of a key, none of which can run into the next.
fn parts(key: &Key) -> Vec<u8> {
    let (service, origin) = (key.operation().service.as_str(), key.origin().to_string());
    let mut parts = vec![service, &key.operation().name, &origin, key.scope().path(), key.query()];
    let mut all = Vec::new();
    parts.extend(key.headers().iter().map(|(name, _)| name.as_str()));
    let values = key.headers().iter().map(|(_, value)| value.as_bytes());
    for part in parts.into_iter().map(str::as_bytes).chain(values) {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const LONG: Lifetime =
        Lifetime { ttl: Duration::MAX, stale_while_revalidate: Duration::MAX, stale_if_error: Duration::MAX };

    fn key(query: &str) -> Key {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        Key::read(&catalogue, operation, place, Some(query), &HeaderMap::new(), false).unwrap()
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
            assert_eq!(read.life().age(now), (3 + 10 + 20) * SECOND);
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
    fn clocks_may_differ_by_five_seconds() {
        let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        let record = encode(&key(""), &entry(now, b"{}", None), now, date).unwrap();
        let read =
            |date| decode(&record, &key(""), LONG, (now, date)).map(|draft| draft.into_entry(false).life().age(now));
        assert_eq!(read(date - 5 * SECOND), Some(3 * SECOND));
        assert_eq!(read(date - 6 * SECOND), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_changed_ones_are_no_record_of_another_key(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (now, date) = (Clock::System.now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
            let _ = decode(&junk, &key("a=1"), LONG, (now, date));
            let mut record = encode(&key("a=1"), &entry(now, b"{}", None), now, date).unwrap().to_vec();
            prop_assert!(decode(&record, &key("a=2"), LONG, (now, date)).is_none());
            let at = at.index(record.len());
            record[at] = byte;
            let _ = decode(&record, &key("a=1"), LONG, (now, date));
            let _ = decode(&record[..at], &key("a=1"), LONG, (now, date));
        }
    }
}
