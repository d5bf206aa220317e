//! Composing responses: status, body, and the headers that each response gets anew (`Age`, `Cache-Status`, the request
//! id). Nothing here decides what a client may get.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AGE, ALLOW, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::Content;
use crate::cache::entry::Entry;
use crate::cache::entry_fields::shareable;
use crate::cache::miss::Miss;
use crate::request::digest::ShortDigest;
use crate::request::validate::ALLOWED_METHODS;
use crate::request::{CACHE_STATUS, X_REQUEST_ID, precondition};

/// How the cache handled a request (RFC 9211).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheStatus {
    /// Answered from memory.
    Hit {
        /// The remaining freshness in seconds. Negative if the response is stale (RFC 9211 §2.6).
        ttl: i64,
        key: Option<ShortDigest>,
        detail: Option<&'static str>,
    },
    /// Forwarded to upstream.
    Forwarded {
        why: Forward,
        /// Upstream's status, if it responded.
        status: Option<StatusCode>,
        stored: bool,
        /// Whether the response is that of another request's call.
        collapsed: bool,
        /// `None` if the request has no cache key.
        key: Option<ShortDigest>,
        detail: Option<&'static str>,
        /// Why the call failed, if `detail` has another reason.
        failure: Option<&'static str>,
    },
}

/// Why the request was forwarded (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// No entry was stored that the caller may get.
    Miss,
    /// The stored entry has expired. Also used if it is served stale, because upstream failed.
    Stale,
    /// The stored entry is fresh, and the request directives do not accept it.
    Request,
    Bypass,
}

impl Forward {
    pub(crate) fn of(miss: Miss) -> Self {
        match miss {
            Miss::NoEntry | Miss::NoGrant | Miss::GrantLapsed | Miss::Private | Miss::Uncacheable => Self::Miss,
            Miss::Expired | Miss::NeedsConfirmation => Self::Stale,
            Miss::ClientNoCache | Miss::ClientMaxAge | Miss::ClientMinFresh => Self::Request,
        }
    }
}

impl CacheStatus {
    /// Appends a member to the `Cache-Status` of the caches nearer to the origin (RFC 9211 §2).
    pub(crate) fn add_to(self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("workspace-gateway")?;
        let (key, detail, failure) = match *self {
            Self::Hit { ttl, key, detail } => {
                write!(f, "; hit; ttl={ttl}")?;
                (key, detail, None)
            }
            Self::Forwarded { why, status, stored, collapsed, key, detail, failure } => {
                f.write_str(match why {
                    Forward::Miss => "; fwd=miss",
                    Forward::Stale => "; fwd=stale",
                    Forward::Request => "; fwd=request",
                    Forward::Bypass => "; fwd=bypass",
                })?;
                if let Some(status) = status {
                    write!(f, "; fwd-status={}", status.as_u16())?;
                }
                f.write_str(if stored { "; stored" } else { "" })?;
                f.write_str(if collapsed { "; collapsed" } else { "" })?;
                (key, detail, failure)
            }
        };
        if let Some(key) = &key {
            // A string, not a token, because a digest may begin with a digit (RFC 9211 §2.7).
            f.write_str("; key=\"")?;
            f.write_str(key.as_str())?;
            f.write_str("\"")?;
        }
        if let Some(detail) = detail {
            write!(f, "; detail={detail}")?;
        }
        failure.map_or(Ok(()), |failure| write!(f, "; failure={failure}"))
    }
}

/// The headers that are added to those of an entry: `Age`, `Cache-Status` and the request id.
const ADDED_HEADERS: usize = 3;

pub(crate) fn from_entry(entry: &Entry, now: Instant) -> Response<Content> {
    let mut response = Response::new(Content::from(entry.body().clone()));
    *response.status_mut() = entry.status();
    let headers = response.headers_mut();
    // One allocation: a clone of the map would have no room for the added headers, and would grow.
    headers.reserve(entry.head().len() + ADDED_HEADERS);
    for (name, value) in entry.head() {
        headers.append(name, value.clone());
    }
    set_age(headers, entry.freshness_info().age(now));
    response
}

/// The response from a fresh entry, for the fast path in HTTP/2. It must be equal to what [`from_entry`],
/// [`CacheStatus::add_to`] and [`set_request_id`] give.
pub(crate) fn hit(entry: &Entry, now: Instant, request_id: &str) -> Response<Content> {
    let (age, ttl) = (entry.freshness_info().age(now).as_secs(), entry.freshness_info().seconds_left(now));
    let mut text = Vec::with_capacity(128);
    // The values are parts of one text, which takes fewer allocations than texts of their own. Writing to memory cannot
    // fail.
    let _ = write!(text, "{age}");
    let status = text.len();
    let _ = write!(text, "{}", CacheStatus::Hit { ttl, key: entry.key(), detail: None });
    let id = text.len();
    text.extend_from_slice(request_id.as_bytes());
    let text = Bytes::from(text);
    let mut response = Response::new(Content::from(entry.body().clone()));
    let headers = response.headers_mut();
    headers.reserve(entry.head().len() + ADDED_HEADERS);
    for (name, value) in entry.head() {
        headers.append(name, value.clone());
    }
    for (name, range) in [(AGE, 0..status), (CACHE_STATUS, status..id), (X_REQUEST_ID, id..text.len())] {
        if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(range)) {
            headers.append(name, value);
        }
    }
    response
}

/// Writes the head of a response from a fresh entry as text, for the fast path. It must be equal to what
/// [`from_entry`], [`CacheStatus::add_to`] and [`set_request_id`] give.
pub(crate) fn write_hit(entry: &Entry, now: Instant, request_id: &str, text: &mut Vec<u8>) {
    text.extend_from_slice(entry.head_text());
    write_added_headers(entry, now, request_id, text);
}

/// Writes a 304 in place of the 200 of [`write_hit`]. It must be equal to what [`not_modified_if_current`] makes of it.
pub(crate) fn write_not_modified(entry: &Entry, now: Instant, request_id: &str, text: &mut Vec<u8>) {
    text.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
    text.extend_from_slice(entry.not_modified_fields());
    write_added_headers(entry, now, request_id, text);
}

fn write_added_headers(entry: &Entry, now: Instant, request_id: &str, text: &mut Vec<u8>) {
    let (age, ttl) = (entry.freshness_info().age(now).as_secs(), entry.freshness_info().seconds_left(now));
    let key = entry.key();
    debug_assert!(key.is_some(), "an entry with a key has its digest");
    let key = key.as_ref().map_or("", ShortDigest::as_str);
    // Writing to memory cannot fail. One literal with all names, because formatting each name costs more than all the
    // rest.
    let _ = write!(
        text,
        "age: {age}\r\ncache-status: workspace-gateway; hit; ttl={ttl}; key=\"{key}\"\r\nx-request-id: {request_id}\r\n\r\n"
    );
}

/// A response from upstream's. A waiter (`collapsed`) gets only the headers that may be shared. Without `age`,
/// upstream's `Age` is kept.
pub(crate) fn from_response(fetched: &Response<Bytes>, age: Option<Duration>, collapsed: bool) -> Response<Content> {
    let mut response = Response::new(Content::from(fetched.body().clone()));
    *response.status_mut() = fetched.status();
    *response.headers_mut() = fetched.headers().clone();
    let headers = response.headers_mut();
    if collapsed {
        *headers = shareable(fetched.headers()).map(|(name, value)| (name.clone(), value.clone())).collect();
    }
    if let Some(age) = age {
        set_age(headers, age);
    }
    response
}

fn set_age(headers: &mut HeaderMap, age: Duration) {
    headers.insert(AGE, HeaderValue::from(age.as_secs()));
}

/// Adds the request id, unless the response has upstream's.
pub(crate) fn set_request_id(headers: &mut HeaderMap, request_id: &str) {
    if !headers.contains_key(X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(request_id)
    {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// Replaces a 200 by a 304 if the client's conditional request names the current version. Other clients must never get
/// a 304: some take it for an empty list.
pub(crate) fn not_modified_if_current(response: Response<Content>, request_headers: &HeaderMap) -> Response<Content> {
    if response.status() != StatusCode::OK || !precondition::is_current(request_headers, response.headers()) {
        return response;
    }
    not_modified(&response)
}

/// The 304 in place of a 200.
pub(crate) fn not_modified(response: &Response<Content>) -> Response<Content> {
    let headers = response.headers().iter().filter(|(name, _)| precondition::is_in_304(name));
    let mut not_modified = Response::new(Content::Buffered(None));
    *not_modified.headers_mut() = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
    *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
    not_modified
}

/// The response to an OPTIONS request that is not forwarded.
pub(crate) fn allowed_methods() -> Response<Content> {
    let mut response = Response::new(Content::Buffered(None));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
    response
}

/// Turns a response to GET into one to HEAD: the same head with `Content-Length`, and no body (RFC 9110 §9.3.2).
pub(crate) fn without_body(response: Response<Content>) -> Response<Content> {
    let (mut head, content) = response.into_parts();
    if let Content::Buffered(Some(bytes)) = &content {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    Response::from_parts(head, Content::Buffered(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_has_the_format_of_rfc_9211() {
        let text = |status: CacheStatus| status.to_string();
        let hit = |detail| text(CacheStatus::Hit { ttl: 9, key: None, detail });
        assert_eq!(hit(None), "workspace-gateway; hit; ttl=9");
        assert_eq!(hit(Some("denied")), "workspace-gateway; hit; ttl=9; detail=denied");
        let stale = CacheStatus::Hit { ttl: -9, key: None, detail: Some("backoff") };
        assert_eq!(text(stale), "workspace-gateway; hit; ttl=-9; detail=backoff");
        let forwarded = |why, status, stored, collapsed, detail| {
            text(CacheStatus::Forwarded { why, status, stored, collapsed, key: None, detail, failure: None })
        };
        assert_eq!(
            forwarded(Forward::Miss, Some(StatusCode::OK), true, false, None),
            "workspace-gateway; fwd=miss; fwd-status=200; stored"
        );
        assert_eq!(
            forwarded(Forward::Stale, Some(StatusCode::OK), false, true, Some("not-json")),
            "workspace-gateway; fwd=stale; fwd-status=200; collapsed; detail=not-json"
        );
        assert_eq!(
            forwarded(Forward::Bypass, None, false, false, Some("range")),
            "workspace-gateway; fwd=bypass; detail=range"
        );
    }
}
