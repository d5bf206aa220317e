//! Puts answers together: status, headers that are told anew with each answer, body.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::body::Content;
use crate::cache::entry::{self, Entry};
use crate::cache::miss::Miss;
use crate::request::digest::ShortDigest;
use crate::request::validate::ALLOWED_METHODS;
use crate::request::{X_REQUEST_ID, condition};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How the cache handled a request, in the words of RFC 9211.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheStatus {
    /// Answered from memory.
    Hit {
        /// For how many seconds the answer stays fresh; below zero, for how many it has not been.
        ttl: i64,
        /// A digest of its cache key.
        key: Option<ShortDigest>,
        /// What else there is to say.
        detail: Option<&'static str>,
    },
    /// Lookup upstream.
    Forwarded {
        /// Why.
        why: Forward,
        /// What upstream said, if anything.
        status: Option<StatusCode>,
        /// Whether the answer was stored.
        stored: bool,
        /// Whether it was another request's call that was answered.
        collapsed: bool,
        /// A digest of the cache key, if one was read.
        key: Option<ShortDigest>,
        /// What else there is to say.
        detail: Option<&'static str>,
        /// Why the call has failed, where `detail` says something else.
        failure: Option<&'static str>,
    },
}

/// Why upstream was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Nothing that could be given was stored.
    Miss,
    /// What is stored has expired. (Also where it is given all the same, because upstream has failed.)
    Stale,
    /// What is stored is fresh, and the client wants none from before it asked.
    Request,
    /// The cache was not to be used.
    Bypass,
}

impl Forward {
    /// What RFC 9211 calls a miss.
    pub(crate) fn of(miss: Miss) -> Self {
        match miss {
            Miss::NoEntry | Miss::NoGrant | Miss::GrantLapsed | Miss::Private | Miss::Uncacheable => Self::Miss,
            Miss::Expired | Miss::NeedsConfirmation => Self::Stale,
            Miss::ClientNoCache | Miss::ClientMaxAge | Miss::ClientMinFresh => Self::Request,
        }
    }
}

impl CacheStatus {
    /// Adds this cache's part to what caches further up have said.
    pub(crate) fn add_to(self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.to_string()) {
            headers.append(CACHE_STATUS, value);
        }
    }
}

/// As a header's value.
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
            // A string, for it may begin with a digit (RFC 9211 §2.7).
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

/// What an answer from memory says besides what is kept: its age, how the cache handled it, and its id.
const ADDED: usize = 3;

/// An answer from memory.
pub(crate) fn from_entry(entry: &Entry, now: Instant) -> Response<Content> {
    let mut response = Response::new(Content::from(entry.body().clone()));
    *response.status_mut() = entry.status();
    let headers = response.headers_mut();
    // Room for all at once: a copy of the map would be as large as what is in it, and grow.
    headers.reserve(entry.head().len() + ADDED);
    for (name, value) in entry.head() {
        headers.append(name, value.clone());
    }
    set_age(headers, entry.life().age(now));
    response
}

/// The head of an answer from memory, as text: a fresh one's, which says what [`from_entry`], [`CacheStatus::add_to`]
/// and [`identify`] would have it say.
pub(crate) fn write_hit(entry: &Entry, now: Instant, request_id: &str, text: &mut Vec<u8>) {
    let (age, ttl) = (entry.life().age(now).as_secs(), entry.life().seconds_left(now));
    let key = entry.key();
    debug_assert!(key.is_some(), "what is kept under a key has its digest");
    let key = key.as_ref().map_or("", ShortDigest::as_str);
    text.extend_from_slice(entry.head_text());
    // Nothing can go wrong with memory for a target. The names are written out: formatting each would cost more than the rest.
    let _ = write!(
        text,
        "age: {age}\r\ncache-status: workspace-gateway; hit; ttl={ttl}; key=\"{key}\"\r\nx-request-id: {request_id}\r\n\r\n"
    );
}

/// An answer that has just come from upstream. Only the one whose request was sent gets all of its
/// headers. Without an age it keeps what upstream says of it.
pub(crate) fn from_answer(answer: &Response<Bytes>, age: Option<Duration>, collapsed: bool) -> Response<Content> {
    let mut response = Response::new(Content::from(answer.body().clone()));
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    let headers = response.headers_mut();
    if collapsed {
        *headers = entry::shareable(answer.headers()).map(|(name, value)| (name.clone(), value.clone())).collect();
    }
    if let Some(age) = age {
        set_age(headers, age);
    }
    response
}

fn set_age(headers: &mut HeaderMap, age: Duration) {
    headers.insert(AGE, HeaderValue::from(age.as_secs()));
}

/// Gives the answer its id, unless it has upstream's.
pub(crate) fn identify(headers: &mut HeaderMap, request_id: &str) {
    if !headers.contains_key(X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(request_id)
    {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// What a 304 still has to say, for those who will use what they have (RFC 9110 §15.4.5), and what every
/// answer of this gateway says.
const OF_NOT_MODIFIED: [HeaderName; 10] =
    [AGE, CACHE_CONTROL, CACHE_STATUS, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY, X_REQUEST_ID];

/// The answer, or a 304 for a client that has said to have it already. Who hasn't said so never gets one:
/// some take it for an empty list.
pub(crate) fn unless_current(response: Response<Content>, asked: &HeaderMap) -> Response<Content> {
    if response.status() != StatusCode::OK || !condition::is_current(asked, response.headers()) {
        return response;
    }
    let kept = response.headers().iter().filter(|(name, _)| OF_NOT_MODIFIED.contains(name));
    let mut not_modified = Response::new(Content::Whole(None));
    *not_modified.headers_mut() = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
    not_modified
}

/// The answer to OPTIONS that is not sent on.
pub(crate) fn allowed_methods() -> Response<Content> {
    let mut response = Response::new(Content::Whole(None));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
    response
}

/// Makes an answer to HEAD of the answer to GET: all of its head, its length included, and no body.
pub(crate) fn without_body(response: Response<Content>) -> Response<Content> {
    let (mut head, content) = response.into_parts();
    if let Content::Whole(Some(bytes)) = &content {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    Response::from_parts(head, Content::Whole(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_speaks_rfc_9211() {
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
