//! Trailer sections of relayed messages (RFC 9110 §6.5): which fields travel in them, and how many.
//!
//! Whoever reads a message has acted on its head before its trailer section comes. So nothing may be there that tells where
//! the message ends, where it goes, who sends it, or how it is to be read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{TE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::catalogue::headers::is_credential;

/// The most that the fields of a trailer section may take: their names, their values, and [`PER_FIELD`] each. In bytes.
/// hyper reads no more in HTTP/1.
const MAX_SIZE: usize = 16 * 1024;

/// As HTTP/2 counts a field (RFC 9113 §6.5.2). In bytes.
const PER_FIELD: usize = 32;

/// Fields that do not travel in a trailer section (RFC 9110 §6.5.1), besides credentials: framing, routing, modifiers of requests,
/// control data of responses, and how content is to be read. Names that begin with [`FORBIDDEN_PREFIXES`] are forbidden, too.
const FORBIDDEN: [&str; 46] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "age",
    "allow",
    "cache-control",
    "cache-status",
    "connection",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "referer",
    "retry-after",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-domain-id",
    "x-http-method-override",
    "x-original-url",
    "x-project-id",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
    "x-stage",
];

/// What the names of other such fields begin with.
const FORBIDDEN_PREFIXES: [&str; 5] = ["access-control-", "if-", "proxy-", "x-apig-", "x-forwarded-"];

/// Whether a field may be in a trailer section. Some servers take `_` for `-`.
fn may_travel(name: &HeaderName) -> bool {
    if is_credential(name) {
        return false;
    }
    let name = name.as_str().replace('_', "-");
    !FORBIDDEN.contains(&&*name) && !FORBIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a client of HTTP/1.1 reads trailer sections, or one of HTTP/2 says that it does (RFC 9110 §10.1.4).
pub(crate) fn are_accepted(headers: &HeaderMap) -> bool {
    let members = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    members.map(<[u8]>::trim_ascii).any(|member| member.eq_ignore_ascii_case(b"trailers"))
}

/// Removes from `Trailer` the names that must not be in a trailer section.
pub(crate) fn announce(headers: &mut HeaderMap) {
    let announced = headers.get_all(TRAILER).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = announced.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).filter(may_travel);
    let names = names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(", ");
    headers.remove(TRAILER);
    // Names and commas are always a value.
    if let Some(value) = HeaderValue::try_from(names).ok().filter(|value| !value.is_empty()) {
        headers.insert(TRAILER, value);
    }
}

/// Removes forbidden fields. Drops the whole section if it is larger than 16 KiB.
fn trim(trailers: HeaderMap) -> HeaderMap {
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + PER_FIELD;
    if trailers.iter().map(size).sum::<usize>() > MAX_SIZE {
        return HeaderMap::new();
    }
    let mut left = HeaderMap::new();
    for (name, value) in &trailers {
        if may_travel(name) {
            left.append(name, value.clone());
        }
    }
    left
}

/// A body whose trailer section has only what may travel.
pub(crate) struct Trimmed<B>(pub B);

impl<B: Body<Data = Bytes> + Unpin> Body for Trimmed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.get_mut().0).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(match frame.into_trailers() {
            // It is the last frame.
            Ok(trailers) => Some(trim(trailers)).filter(|left| !left.is_empty()).map(|left| Ok(Frame::trailers(left))),
            Err(data) => Some(Ok(data)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn what_must_be_known_before_the_body_does_not_travel_behind_it() {
        for name in FORBIDDEN.into_iter().chain([
            "if-match",
            "proxy-authorization",
            "authorization",
            "x_auth_token",
            "x-api-key",
            "apikey",
            "x-apig-x",
        ]) {
            let left = trim(map(&[(name, "v"), ("digest", "d")]));
            assert_eq!(left, map(&[("digest", "d")]), "{name}");
        }
    }

    #[test]
    fn a_trailer_section_beyond_16_kib_is_dropped() {
        let rest = MAX_SIZE - PER_FIELD - "digest".len();
        for (length, is_kept) in [(rest, true), (rest + 1, false)] {
            assert_eq!(!trim(map(&[("digest", &"d".repeat(length))])).is_empty(), is_kept, "{length}");
        }
    }

    #[test]
    fn only_what_may_come_is_announced() {
        for (announced, left) in [
            ("Digest, X-Auth-Token ,x-checksum", Some("digest, x-checksum")),
            ("content-length", None),
            ("not a name, ,", None),
        ] {
            let mut headers = map(&[("trailer", announced)]);
            announce(&mut headers);
            assert_eq!(headers.get(TRAILER).map(|value| value.to_str().unwrap()), left, "{announced}");
        }
    }

    #[test]
    fn te_tells_who_reads_them() {
        for (te, are) in [("trailers", true), ("deflate;q=0.5, Trailers", true), ("deflate", false), ("", false)] {
            assert_eq!(are_accepted(&map(&[("te", te)])), are, "{te}");
        }
    }
}
