//! A stored response: the unchanged body, the head in the form in which it is sent, and what its freshness depends on.
//! An entry that is shared must not contain a header that may be about one caller.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::divergence::Observations;
use super::entry_fields::{is_of_one_response, shareable};
use super::freshness::{FreshnessInfo, Lifetime};
use super::lifetime;
use super::link::Link;
use super::staleness::AnswerCounters;
use crate::budget::{Budget, Charge, Purpose};
use crate::request::copied;
use crate::request::digest::ShortDigest;
use crate::request::precondition::{self, Validator};

/// A 304 has no body, so these headers of a 304 are ignored.
const BODY_HEADERS: [HeaderName; 5] =
    [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, TRANSFER_ENCODING];

/// The memory of one slot of a `HeaderMap`, used or not, in bytes. Measured. Small responses consist mostly of this.
const FIELD: usize = 112;

/// The memory of a `Bytes` besides its content, in bytes: its reference count and the allocator's rounding. Measured.
const TEXT: usize = 48;

/// How long an entry that is too old to be sent is kept to validate it.
const VALIDATION_TTL: Duration = Duration::from_secs(3600);

/// The body of an entry. After the cache has removed the entry, its memory is charged to the budget until the last
/// reader has finished.
#[derive(Debug)]
struct Body {
    bytes: Bytes,
    _removal_charge: Arc<OnceLock<Charge>>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug)]
pub struct Entry {
    status: StatusCode,
    head: HeaderMap,
    /// The status line and the head, as they are sent in HTTP/1.1. The fields of a 304 come first.
    head_text: Box<[u8]>,
    /// The place of the fields of a 304 in `head_text`.
    not_modified_fields: Range<usize>,
    body: Bytes,
    removal_charge: Arc<OnceLock<Charge>>,
    freshness_info: FreshnessInfo,
    /// When its request was sent at the latest. Only for a response of another process this is later than
    /// `freshness_info.sent`.
    sent_by: Instant,
    /// The digest of the request key. `None` for a stored refusal.
    key: Option<ShortDigest>,
    validator: Option<Validator>,
    /// Whether upstream has answered a conditional request with a 304 that is not about this entry.
    is_validation_disabled: AtomicBool,
    /// The latest responses to the same request, up to this one.
    pub(super) observations: Observations,
    /// How many times earlier entries for the same request were sent.
    pub(super) earlier_hits: u64,
    /// The answers that are made from this entry, by age.
    answers: Arc<AnswerCounters>,
    /// Whether the store may have a later entry for the same request.
    is_replaced: AtomicBool,
    /// Made when it is first used.
    link: OnceLock<Arc<Link<Entry>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.link.get().into_iter().for_each(|link| link.end());
    }
}

/// The parts of an entry before it is known who may see it.
#[derive(Debug)]
pub(crate) struct EntryBuilder {
    status: StatusCode,
    /// The headers for an entry that belongs to one caller.
    head: HeaderMap,
    body: Bytes,
    freshness_info: FreshnessInfo,
    sent_by: Instant,
    key: Option<ShortDigest>,
    validator: Option<Validator>,
    /// Whether the response reserves fields for its caller, so that no other caller may get it.
    must_be_private: bool,
}

impl EntryBuilder {
    /// Begins an entry from a complete response that has only end-to-end headers.
    ///
    /// Head and body are copied, because they are slices of a read buffer. The entry would keep the whole buffer in
    /// memory, and nothing would count it.
    pub(crate) fn new(response: &Response<Bytes>, freshness_info: FreshnessInfo, validator: Option<Validator>) -> Self {
        let reserved = lifetime::reserved_fields(response.headers()).unwrap_or_default();
        let may_be_stored = |name: &HeaderName| !is_of_one_response(name) && !reserved.contains(name);
        let fields = response.headers().iter().filter(|(name, _)| may_be_stored(name));
        Self {
            status: response.status(),
            head: fields.map(|(name, value)| (name.clone(), copied(value))).collect(),
            body: Bytes::copy_from_slice(response.body()),
            sent_by: freshness_info.sent,
            freshness_info,
            key: None,
            validator: validator.filter(|validator| may_be_stored(&validator.of_answer())),
            must_be_private: !reserved.is_empty(),
        }
    }

    pub(crate) fn with_key_digest(self, key: ShortDigest) -> Self {
        Self { key: Some(key), ..self }
    }

    /// For a response that another process has got: its request may have been sent later than `sent` says, because that
    /// is the earliest time. It was sent by this time.
    #[must_use]
    pub(crate) fn sent_by(self, time: Instant) -> Self {
        Self { sent_by: time, ..self }
    }

    /// When the request was sent.
    pub(crate) fn sent(&self) -> Instant {
        self.freshness_info.sent
    }

    /// Whether the entry must not be shared.
    pub(crate) fn must_be_private(&self) -> bool {
        self.must_be_private
    }

    /// Builds the entry. If `is_private`, it belongs to one caller. Otherwise all callers with a grant may see it.
    pub(crate) fn build(self, is_private: bool) -> Entry {
        let Self { status, head, body, freshness_info, sent_by, key, validator, must_be_private } = self;
        debug_assert!(is_private || !must_be_private, "fields reserved for one caller must not be shared");
        let all: Vec<_> = if is_private { head.iter().collect() } else { shareable(&head).collect() };
        let (first, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| precondition::is_in_304(name));
        let of_304 = first.len();
        let mut head: HeaderMap =
            first.into_iter().chain(rest).map(|(name, value)| (name.clone(), value.clone())).collect();
        head.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let (head_text, not_modified_fields) = head_text(status, &head, of_304);
        let answers = AnswerCounters::new(freshness_info.lifetime.ttl.saturating_sub(freshness_info.initial_age));
        let removal_charge = Arc::<OnceLock<Charge>>::default();
        Entry {
            head_text,
            not_modified_fields,
            status,
            head,
            body: Bytes::from_owner(Body { bytes: body, _removal_charge: Arc::clone(&removal_charge) }),
            removal_charge,
            freshness_info,
            sent_by,
            key,
            // Two callers may get different responses with the same `Last-Modified`.
            validator: validator.filter(|it| is_private || matches!(it, Validator::EntityTag(_))),
            is_validation_disabled: AtomicBool::new(false),
            observations: Observations::default(),
            earlier_hits: 0,
            answers: Arc::new(answers),
            is_replaced: AtomicBool::new(false),
            link: OnceLock::new(),
        }
    }
}

impl Entry {
    /// Creates a shared entry from a complete response that has only end-to-end headers.
    pub fn new(response: &Response<Bytes>, freshness_info: FreshnessInfo, validator: Option<Validator>) -> Self {
        EntryBuilder::new(response, freshness_info, validator).build(false)
    }

    /// Creates an entry that belongs to one caller.
    pub fn new_private(response: &Response<Bytes>, freshness_info: FreshnessInfo) -> Self {
        EntryBuilder::new(response, freshness_info, None).build(true)
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers of every response that is made from this entry.
    pub fn head(&self) -> &HeaderMap {
        &self.head
    }

    /// The status line and the headers in HTTP/1.1 format, each with CRLF. The fast path writes them as they are.
    pub fn head_text(&self) -> &[u8] {
        &self.head_text
    }

    /// The headers of every 304 in place of this entry, in the same format.
    pub fn not_modified_fields(&self) -> &[u8] {
        &self.head_text[self.not_modified_fields.clone()]
    }

    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Charges the memory to the budget after the cache has removed the entry. The charge ends with the last reader.
    pub(super) fn charge_after_removal(&self, budget: &Arc<Budget>) {
        self.removal_charge.get_or_init(|| budget.charge(Purpose::Responses, self.size()));
    }

    /// The digest of the request key. `None` for a stored refusal.
    pub fn key(&self) -> Option<ShortDigest> {
        self.key
    }

    /// When its request was sent at the latest.
    pub(crate) fn sent_by(&self) -> Instant {
        self.sent_by
    }

    pub fn freshness_info(&self) -> FreshnessInfo {
        self.freshness_info
    }

    /// Counts a hit.
    pub fn hit(&self, now: Instant) {
        self.answers.add(now.saturating_duration_since(self.freshness_info.sent));
    }

    pub(super) fn answers(&self) -> &Arc<AnswerCounters> {
        &self.answers
    }

    /// The hits of this entry and of the entries that it replaced.
    pub fn hits(&self) -> u64 {
        self.earlier_hits + self.answers.total()
    }

    /// Must be called before a later entry for the same request is stored, and when the store has removed this one.
    pub(super) fn set_replaced(&self) {
        self.is_replaced.store(true, Ordering::Release);
    }

    pub(crate) fn link(self: &Arc<Self>) -> &Arc<Link<Self>> {
        self.link.get_or_init(|| Arc::new(Link::to(self)))
    }

    /// Whether the store may have a later entry for the same request.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Acquire)
    }

    /// How long the store keeps the entry: until it may not be sent any more, and for [`VALIDATION_TTL`] after that if
    /// it has a validator.
    pub(crate) fn storage_ttl(&self) -> Duration {
        let Lifetime { ttl, stale_while_revalidate, stale_if_error } = self.freshness_info.lifetime;
        let usable = ttl.saturating_add(stale_while_revalidate.max(stale_if_error));
        let validatable = if self.validator.is_some() { VALIDATION_TTL } else { Duration::ZERO };
        // At least 1 s, so that a response that is never fresh still becomes an entry.
        usable.saturating_add(validatable).max(Duration::from_secs(1))
    }

    /// The validator for conditional requests, if upstream has sent one and handles it correctly.
    pub fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref().filter(|_| !self.is_validation_disabled.load(Ordering::Relaxed))
    }

    /// Stops conditional requests for this entry, because upstream does not handle them correctly.
    pub fn disable_validation(&self) {
        self.is_validation_disabled.store(true, Ordering::Relaxed);
    }

    /// The response after a 304: the stored body, and the stored head updated by the headers of the 304 (RFC 9111
    /// §3.2).
    pub fn revalidated(&self, not_modified: &Response<Bytes>) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        let head = response.headers_mut();
        *head = self.head.clone();
        // The response gets a new date: that of the 304, or the time at which it was received.
        head.remove(DATE);
        if !matches!(self.validator, Some(Validator::EntityTag(_))) {
            // The gateway made this tag.
            head.remove(ETAG);
        }
        for name in not_modified.headers().keys().filter(|name| !BODY_HEADERS.contains(name)) {
            head.remove(name);
            for value in not_modified.headers().get_all(name) {
                head.append(name.clone(), value.clone());
            }
        }
        response
    }

    /// Approximate memory use, in bytes.
    pub fn size(&self) -> usize {
        let values: usize = self.head.values().map(|value| TEXT + value.len()).sum();
        let validator = self.validator.as_ref().map_or(0, |validator| TEXT + validator.header().1.len());
        let fixed = size_of::<Self>() + size_of::<AnswerCounters>() + self.head.capacity() * FIELD + TEXT;
        fixed + values + validator + self.head_text.len() + self.body.len() + self.observations.size()
    }
}

/// The text of a head, and the place of its first `of_304` fields in it.
fn head_text(status: StatusCode, head: &HeaderMap, of_304: usize) -> (Box<[u8]>, Range<usize>) {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    let begin = text.len();
    let mut end = begin;
    for (index, (name, value)) in head.iter().enumerate() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
        if index < of_304 {
            end = text.len();
        }
    }
    (text.into_boxed_slice(), begin..end)
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_shared_entry_holds_no_read_buffer_and_no_header_of_one_caller() {
        let buffer = Bytes::from(vec![b'x'; 1 << 20]);
        let mut response = Response::new(buffer.slice(..5));
        let head = response.headers_mut();
        head.append("link", HeaderValue::from_maybe_shared(buffer.slice(..9)).unwrap());
        head.append("link", HeaderValue::from_static("second"));
        for name in ["set-cookie", "x-request-id", "x-ratelimit-remaining", "x-subject-token", "age"] {
            head.append(name, HeaderValue::from_static("1"));
        }
        let freshness_info =
            FreshnessInfo { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let entry = Entry::new(&response, freshness_info, None);
        drop(response);
        assert!(buffer.is_unique(), "the entry holds the buffer");
        assert_eq!(entry.body(), "xxxxx");
        let values: Vec<_> = entry.head().get_all("link").iter().collect();
        assert_eq!(values, ["xxxxxxxxx", "second"]);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["link", "content-length"], "headers of one caller are left out");
    }

    #[test]
    fn a_private_entry_has_all_headers_except_those_of_one_response_and_reserved_ones() {
        let freshness_info =
            FreshnessInfo { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let mut response = Response::new(Bytes::from_static(b"{}"));
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
            response.headers_mut().append(name, HeaderValue::from_static("1"));
        }
        let control = HeaderValue::from_static("private=\"X-Own\", no-cache=\"x-other-own\"");
        response.headers_mut().insert("cache-control", control);
        let builder = EntryBuilder::new(&response, freshness_info, None);
        assert!(builder.must_be_private());
        let entry = builder.build(true);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["etag", "cache-control", "x-subject-token", "location", "content-length"]);
        let of_304 = "etag: 1\r\ncache-control: private=\"X-Own\", no-cache=\"x-other-own\"\r\n";
        assert_eq!(entry.not_modified_fields(), of_304.as_bytes());
        let text = std::str::from_utf8(entry.head_text()).unwrap();
        assert!(text.contains("x-subject-token: 1") && dropped.iter().all(|name| !text.contains(&format!("{name}: "))));
        // The same rules apply to the headers of a 304.
        let not_modified = Response::builder().status(304).header("x-apig-mode", "1").header("x-added", "1");
        let not_modified = not_modified.header("cache-control", "private=\"location\"").body(Bytes::new()).unwrap();
        let entry = Entry::new_private(&entry.revalidated(&not_modified), freshness_info);
        let names: Vec<_> = entry.head().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["cache-control", "content-length", "x-added", "x-subject-token"]);
    }

    #[test]
    fn a_link_leads_to_an_entry_and_keeps_nothing_of_it() {
        let freshness_info =
            FreshnessInfo { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let entry = Arc::new(Entry::new(&Response::new(Bytes::new()), freshness_info, None));
        let link = Arc::clone(entry.link());
        assert!(link.value().is_some_and(|linked| Arc::ptr_eq(&linked, &entry)));
        assert_eq!(Arc::weak_count(&entry), 1, "all that is linked shares one weak reference");
        drop(entry);
        assert!(link.value().is_none());
        assert!(Weak::ptr_eq(&link.weak(), &Weak::new()), "the link keeps the memory");
    }

    #[test]
    fn a_304_updates_the_head_except_for_the_headers_of_the_body() {
        let freshness_info =
            FreshnessInfo { sent: Clock::System.now(), initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let validator = Some(Validator::EntityTag(HeaderValue::from_static("\"a\"")));
        let response = Response::builder().header("etag", "\"a\"").header("content-type", "application/json");
        let entry = Entry::new(
            &response.header("server", "old").body(Bytes::from_static(b"{}")).unwrap(),
            freshness_info,
            validator,
        );
        let not_modified =
            Response::builder().status(304).header("content-type", "text/html").header("content-length", "7");
        let not_modified =
            not_modified.header("cache-control", "max-age=5").header("server", "new").body(Bytes::new()).unwrap();
        let response = entry.revalidated(&not_modified);
        let text =
            |name| response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((response.status(), response.body().as_ref()), (StatusCode::OK, b"{}".as_ref()));
        assert_eq!(
            [text("etag"), text("content-type"), text("content-length")],
            [["\"a\""], ["application/json"], ["2"]]
        );
        assert_eq!([text("cache-control"), text("server")], [["max-age=5"], ["new"]]);
    }
}
