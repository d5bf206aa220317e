//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::freshness::Life;
use super::tripwire::Views;
use crate::request::copied;

/// The headers that describe an answer, whoever asked. Any other may tell something of the one who did
/// (what is left of its quota, its session, a new token), and goes to that one alone.
const SHAREABLE: [&str; 24] = [
    "cache-control",
    "cache-status",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-security-policy",
    "content-type",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "expires",
    "last-modified",
    "link",
    "permissions-policy",
    "pragma",
    "referrer-policy",
    "server",
    "strict-transport-security",
    "vary",
    "via",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
    "x-xss-protection",
];

/// The headers of one answer that may be given to others.
pub fn shareable(head: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    head.iter().filter(|(name, _)| SHAREABLE.contains(&name.as_str()))
}

/// What a field takes in a head's tables, in use or not, and what a text takes besides its bytes: the
/// count of those who hold it, and the allocator's rounding. Measured, and small answers are mostly this.
const FIELD: usize = 112;
const TEXT: usize = 48;

/// A kept answer.
#[derive(Debug)]
pub struct Entry {
    status: StatusCode,
    head: HeaderMap,
    body: Bytes,
    life: Life,
    /// The answers that led up to this one.
    pub(super) views: Views,
}

impl Entry {
    /// Makes an entry of a whole answer with end-to-end headers only.
    ///
    /// Head and body are copied: off the wire they are slices of a read buffer, which would be held whole
    /// for as long as the entry lives, and counted by nobody.
    pub fn new(answer: &Response<Bytes>, life: Life) -> Self {
        let body = answer.body();
        let mut head: HeaderMap =
            shareable(answer.headers()).map(|(name, value)| (name.clone(), copied(value))).collect();
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        Self { status: answer.status(), head, body: Bytes::copy_from_slice(body), life, views: Views::default() }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers every answer made of this entry has.
    pub fn head(&self) -> &HeaderMap {
        &self.head
    }

    /// The body, as upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Bytes of memory it holds, roughly.
    pub fn size(&self) -> usize {
        let values: usize = self.head.values().map(|value| TEXT + value.len()).sum();
        size_of::<Self>() + self.head.capacity() * FIELD + values + TEXT + self.body.len() + self.views.size()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_entry_holds_no_read_buffer_and_nothing_of_the_one_who_asked() {
        let buffer = Bytes::from(vec![b'x'; 1 << 20]);
        let mut answer = Response::new(buffer.slice(..5));
        let head = answer.headers_mut();
        head.append("link", HeaderValue::from_maybe_shared(buffer.slice(..9)).unwrap());
        head.append("link", HeaderValue::from_static("second"));
        for name in ["set-cookie", "x-request-id", "x-ratelimit-remaining", "x-subject-token", "age"] {
            head.append(name, HeaderValue::from_static("1"));
        }
        let none = Duration::ZERO;
        let life = Life { sent: Clock::System.now(), initial_age: none, ttl: none, stale_if_error: none };
        let entry = Entry::new(&answer, life);
        drop(answer);
        assert!(buffer.is_unique(), "the entry holds on to the buffer");
        assert_eq!(entry.body(), "xxxxx");
        let values: Vec<_> = entry.head().get_all("link").iter().collect();
        assert_eq!(values, ["xxxxxxxxx", "second"]);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["link", "content-length"], "what is one caller's stays out");
    }
}
