//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::freshness::{Life, Lifetime};
use super::tripwire::Views;
use crate::request::condition::Validator;
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

/// A 304 has no body, so what it says of one is not believed.
const DESCRIBE_THE_BODY: [HeaderName; 5] =
    [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING];

/// The headers of one answer that may be given to others.
pub fn shareable(head: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    head.iter().filter(|(name, _)| SHAREABLE.contains(&name.as_str()))
}

/// What a field takes in a head's tables, in use or not, and what a text takes besides its bytes: the
/// count of those who hold it, and the allocator's rounding. Measured, and small answers are mostly this.
const FIELD: usize = 112;
const TEXT: usize = 48;

/// How long an answer is kept only to ask upstream whether it still holds.
const VALIDATOR_FOR: Duration = Duration::from_secs(3600);

/// A kept answer.
#[derive(Debug)]
pub struct Entry {
    status: StatusCode,
    head: HeaderMap,
    /// The same as it goes over the wire in HTTP/1.1.
    head_text: Box<[u8]>,
    body: Bytes,
    life: Life,
    /// What upstream can be asked about instead of sending all again.
    validator: Option<Validator>,
    /// Whether upstream has answered that with a 304 about something else.
    is_misunderstood: AtomicBool,
    /// The answers that led up to this one.
    pub(super) views: Views,
    /// How often the question was answered from memory, by this answer or those before it.
    pub(super) hits: Arc<AtomicU64>,
}

impl Entry {
    /// Makes an entry of a whole answer with end-to-end headers only.
    ///
    /// Head and body are copied: off the wire they are slices of a read buffer, which would be held whole
    /// for as long as the entry lives, and counted by nobody.
    pub fn new(answer: &Response<Bytes>, life: Life, validator: Option<Validator>) -> Self {
        let body = answer.body();
        let mut head: HeaderMap =
            shareable(answer.headers()).map(|(name, value)| (name.clone(), copied(value))).collect();
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let (status, body) = (answer.status(), Bytes::copy_from_slice(body));
        Self {
            head_text: head_text(status, &head),
            status,
            head,
            body,
            life,
            validator,
            is_misunderstood: AtomicBool::new(false),
            views: Views::default(),
            hits: Arc::default(),
        }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers every answer made of this entry has.
    pub fn head(&self) -> &HeaderMap {
        &self.head
    }

    /// The status line and the same headers as text, each with its line break, for what is written without a look
    /// at what it says.
    pub fn head_text(&self) -> &[u8] {
        &self.head_text
    }

    /// The body, as upstream sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Notes that it was given from memory.
    pub fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// How often its question was answered from memory since it was asked first and kept ever since.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// How long it is of any use: until it may not be given any more, and for a while after that if
    /// upstream can be asked whether it still holds.
    pub(super) fn useful_for(&self) -> Duration {
        let Lifetime { ttl, stale_while_revalidate, stale_if_error } = self.life.lifetime;
        let given = ttl.saturating_add(stale_while_revalidate.max(stale_if_error));
        let asked_about = if self.validator.is_some() { VALIDATOR_FOR } else { Duration::ZERO };
        // Something, so that what is never fresh is an entry all the same.
        given.saturating_add(asked_about).max(Duration::from_secs(1))
    }

    /// What upstream can be asked about instead of sending all again, if it has said so.
    pub fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref().filter(|_| !self.is_misunderstood.load(Ordering::Relaxed))
    }

    /// Notes that upstream doesn't understand the question, so that it is not asked again.
    pub fn misunderstood(&self) {
        self.is_misunderstood.store(true, Ordering::Relaxed);
    }

    /// The answer that upstream means by a 304 to a question about this one: this very body, and what
    /// the 304 says anew of its head (RFC 9111 §3.2).
    pub fn revalidated(&self, not_modified: &Response<Bytes>) -> Response<Bytes> {
        let mut answer = Response::new(self.body.clone());
        let head = answer.headers_mut();
        *head = self.head.clone();
        // An answer is dated anew, if not by upstream then when it comes.
        head.remove(DATE);
        if !matches!(self.validator, Some(Validator::EntityTag(_))) {
            // The tag is this gateway's, not upstream's.
            head.remove(ETAG);
        }
        for name in not_modified.headers().keys().filter(|name| !DESCRIBE_THE_BODY.contains(name)) {
            head.remove(name);
            for value in not_modified.headers().get_all(name) {
                head.append(name.clone(), value.clone());
            }
        }
        answer
    }

    /// Bytes of memory it holds, roughly.
    pub fn size(&self) -> usize {
        let values: usize = self.head.values().map(|value| TEXT + value.len()).sum();
        let validator = self.validator.as_ref().map_or(0, |validator| TEXT + validator.header().1.len());
        let fixed = size_of::<Self>() + self.head.capacity() * FIELD + TEXT;
        fixed + values + validator + self.head_text.len() + self.body.len() + self.views.size()
    }
}

fn head_text(status: StatusCode, head: &HeaderMap) -> Box<[u8]> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in head {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    text.into_boxed_slice()
}

#[cfg(test)]
mod tests {
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
        let life = Life { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let entry = Entry::new(&answer, life, None);
        drop(answer);
        assert!(buffer.is_unique(), "the entry holds on to the buffer");
        assert_eq!(entry.body(), "xxxxx");
        let values: Vec<_> = entry.head().get_all("link").iter().collect();
        assert_eq!(values, ["xxxxxxxxx", "second"]);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["link", "content-length"], "what is one caller's stays out");
    }

    #[test]
    fn a_304_says_anew_what_describes_the_answer_and_nothing_of_its_body() {
        let life = Life { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let validator = Some(Validator::EntityTag(HeaderValue::from_static("\"a\"")));
        let answer = Response::builder().header("etag", "\"a\"").header("content-type", "application/json");
        let entry =
            Entry::new(&answer.header("server", "old").body(Bytes::from_static(b"{}")).unwrap(), life, validator);
        let said = Response::builder().status(304).header("content-type", "text/html").header("content-length", "7");
        let said = said.header("cache-control", "max-age=5").header("server", "new").body(Bytes::new()).unwrap();
        let answer = entry.revalidated(&said);
        let text =
            |name| answer.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, b"{}".as_ref()));
        assert_eq!(
            [text("etag"), text("content-type"), text("content-length")],
            [["\"a\""], ["application/json"], ["2"]]
        );
        assert_eq!([text("cache-control"), text("server")], [["max-age=5"], ["new"]]);
    }
}
