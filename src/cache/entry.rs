//! An answer that is kept: its body byte for byte, its head made ready, and its life.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::divergence::Observations;
use super::freshness::{Life, Lifetime};
use super::lifetime;
use crate::budget::{Budget, Charge, Purpose};
use crate::request::condition::Validator;
use crate::request::copied;
use crate::request::digest::ShortDigest;

/// The headers that describe an answer, whoever asked. Any other may tell something of the one who did
/// (what is left of its quota, its session, a new token), and goes to that one alone. Entries that are shared
/// have these.
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

/// The headers that are about one response, not about what is kept: whoever the entry belongs to, they are not
/// in it. An entry that belongs to one caller alone has all others, but for those that the answer itself reserves
/// ([`lifetime::reserved`]).
const OF_ONE_RESPONSE: [&str; 4] = ["age", "retry-after", "set-cookie", "x-request-id"];

/// The same, where what follows varies: what is left of a quota.
const QUOTAS: [&str; 3] = ["ratelimit", "x-ratelimit", "x-apig-"];

/// A 304 has no body, so what it says of one is not believed.
const DESCRIBE_THE_BODY: [HeaderName; 5] =
    [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING];

/// The headers of one answer that may be given to others.
pub(crate) fn shareable(head: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    head.iter().filter(|(name, _)| SHAREABLE.contains(&name.as_str()))
}

fn is_of_one_response(name: &HeaderName) -> bool {
    OF_ONE_RESPONSE.contains(&name.as_str()) || QUOTAS.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// What a field takes in a head's tables, in use or not, and what a text takes besides its bytes: the
/// count of those who hold it, and the allocator's rounding. Measured, and small answers are mostly this.
const FIELD: usize = 112;
const TEXT: usize = 48;

/// How long an answer is kept only to ask upstream whether it still holds.
const VALIDATOR_FOR: Duration = Duration::from_secs(3600);

/// The body of an entry, and what it takes of the memory budget once the cache has let it go and clients still read it.
#[derive(Debug)]
struct Body {
    bytes: Bytes,
    _let_go: Arc<OnceLock<Charge>>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A kept answer.
#[derive(Debug)]
pub struct Entry {
    status: StatusCode,
    head: HeaderMap,
    /// The same as it goes over the wire in HTTP/1.1.
    head_text: Box<[u8]>,
    body: Bytes,
    let_go: Arc<OnceLock<Charge>>,
    life: Life,
    /// The digest of the key that it is kept under, if it is kept under one.
    key: Option<ShortDigest>,
    /// What upstream can be asked about instead of sending all again.
    validator: Option<Validator>,
    /// Whether upstream has answered that with a 304 about something else.
    is_misunderstood: AtomicBool,
    /// The answers that led up to this one.
    pub(super) observations: Observations,
    /// How often the question was answered from memory, by this answer or those before it.
    pub(super) hits: Arc<AtomicU64>,
}

/// What an entry is going to be made of, once it is known for whom.
#[derive(Debug)]
pub(crate) struct Draft {
    status: StatusCode,
    /// All headers that an entry may have.
    head: HeaderMap,
    body: Bytes,
    life: Life,
    key: Option<ShortDigest>,
    validator: Option<Validator>,
    /// Whether the answer reserves headers for the one who asked, so that only for that one it may be kept.
    is_for_one_alone: bool,
}

impl Draft {
    /// Drafts an entry of a whole answer with end-to-end headers only.
    ///
    /// Head and body are copied: off the wire they are slices of a read buffer, which would be held whole
    /// for as long as the entry lives, and counted by nobody.
    pub(crate) fn new(answer: &Response<Bytes>, life: Life, validator: Option<Validator>) -> Self {
        let reserved = lifetime::reserved(answer.headers()).unwrap_or_default();
        let may_be_kept = |name: &HeaderName| !is_of_one_response(name) && !reserved.contains(name);
        let fields = answer.headers().iter().filter(|(name, _)| may_be_kept(name));
        Self {
            status: answer.status(),
            head: fields.map(|(name, value)| (name.clone(), copied(value))).collect(),
            body: Bytes::copy_from_slice(answer.body()),
            life,
            key: None,
            validator: validator.filter(|validator| may_be_kept(&validator.of_answer())),
            is_for_one_alone: !reserved.is_empty(),
        }
    }

    /// The same, to be kept under a key of this digest.
    pub(crate) fn under(self, key: ShortDigest) -> Self {
        Self { key: Some(key), ..self }
    }

    /// When the answer was sent for.
    pub(crate) fn sent(&self) -> Instant {
        self.life.sent
    }

    /// Whether it must not become an entry that is shared.
    pub(crate) fn is_for_one_alone(&self) -> bool {
        self.is_for_one_alone
    }

    /// The entry. It belongs to one caller alone, or is shared by all that are granted.
    pub(crate) fn into_entry(self, belongs_to_one: bool) -> Entry {
        let Self { status, head, body, life, key, validator, is_for_one_alone } = self;
        debug_assert!(belongs_to_one || !is_for_one_alone, "what is reserved for one caller is not shared");
        let mut head: HeaderMap = if belongs_to_one {
            head
        } else {
            shareable(&head).map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let let_go = Arc::<OnceLock<Charge>>::default();
        Entry {
            head_text: head_text(status, &head),
            status,
            head,
            body: Bytes::from_owner(Body { bytes: body, _let_go: Arc::clone(&let_go) }),
            let_go,
            life,
            key,
            // Callers may be shown different things that were last modified at the same time.
            validator: validator.filter(|it| belongs_to_one || matches!(it, Validator::EntityTag(_))),
            is_misunderstood: AtomicBool::new(false),
            observations: Observations::default(),
            hits: Arc::default(),
        }
    }
}

impl Entry {
    /// Makes an entry that is shared, of a whole answer with end-to-end headers only.
    pub fn new(answer: &Response<Bytes>, life: Life, validator: Option<Validator>) -> Self {
        Draft::new(answer, life, validator).into_entry(false)
    }

    /// Makes an entry that belongs to one caller alone.
    pub fn of_one(answer: &Response<Bytes>, life: Life) -> Self {
        Draft::new(answer, life, None).into_entry(true)
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

    /// The cache has let it go. As long as anybody still reads it, its memory is charged to the budget.
    pub(super) fn is_let_go(&self, budget: &Arc<Budget>) {
        self.let_go.get_or_init(|| budget.charge(Purpose::Responses, self.size()));
    }

    /// The digest of the key that it is kept under. A refusal is kept under none.
    pub fn key(&self) -> Option<ShortDigest> {
        self.key
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
        fixed + values + validator + self.head_text.len() + self.body.len() + self.observations.size()
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
    fn an_entry_of_one_caller_has_all_headers_but_those_of_one_response_and_the_reserved_ones() {
        let life = Life { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let mut answer = Response::new(Bytes::from_static(b"{}"));
        let dropped = [
            "age",
            "set-cookie",
            "x-request-id",
            "retry-after",
            "ratelimit",
            "ratelimit-policy",
            "x-ratelimit-remaining",
            "x-apig-ratelimit-api",
            "x-own",
            "x-other-own",
        ];
        for name in dropped.into_iter().chain(["x-subject-token", "location", "etag"]) {
            answer.headers_mut().append(name, HeaderValue::from_static("1"));
        }
        let control = HeaderValue::from_static("private=\"X-Own\", no-cache=\"x-other-own\"");
        answer.headers_mut().insert("cache-control", control);
        let draft = Draft::new(&answer, life, None);
        assert!(draft.is_for_one_alone());
        let entry = draft.into_entry(true);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-subject-token", "location", "etag", "cache-control", "content-length"]);
        let text = std::str::from_utf8(entry.head_text()).unwrap();
        assert!(text.contains("x-subject-token: 1") && dropped.iter().all(|name| !text.contains(&format!("{name}: "))));
        // What a 304 adds is held to the same.
        let said = Response::builder().status(304).header("x-apig-mode", "1").header("x-added", "1");
        let said = said.header("cache-control", "private=\"location\"").body(Bytes::new()).unwrap();
        let entry = Entry::of_one(&entry.revalidated(&said), life);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-subject-token", "content-length", "x-added", "cache-control"]);
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
