//! Filters the trailer sections of relayed messages (RFC 9110 §6.5).
//!
//! A recipient acts on the head before the trailer section arrives. So a trailer section must not have fields for
//! framing, routing, authentication or content format.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{TE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::catalogue::headers::is_credential;

/// The largest trailer section, in bytes: names, values, and [`PER_FIELD`] for each field. hyper has the same limit in
/// HTTP/1.
const MAX_SIZE: usize = 16 * 1024;

/// The overhead of a field, in bytes, as HTTP/2 counts it (RFC 9113 §6.5.2).
const PER_FIELD: usize = 32;

/// Fields that must not be in a trailer section (RFC 9110 §6.5.1), besides credentials and [`FORBIDDEN_PREFIXES`]:
/// framing, routing, request modifiers, response control data, and content format.
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

/// Name prefixes of other such fields.
const FORBIDDEN_PREFIXES: [&str; 5] = ["access-control-", "if-", "proxy-", "x-apig-", "x-forwarded-"];

/// Some servers take `_` for `-`.
fn is_allowed(name: &HeaderName) -> bool {
    if is_credential(name) {
        return false;
    }
    let name = name.as_str().replace('_', "-");
    !FORBIDDEN.contains(&&*name) && !FORBIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the client accepts trailer sections: `TE: trailers` (RFC 9110 §10.1.4).
pub(crate) fn are_accepted(headers: &HeaderMap) -> bool {
    let members = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    members.map(<[u8]>::trim_ascii).any(|member| member.eq_ignore_ascii_case(b"trailers"))
}

/// Removes from `Trailer` the names of fields that are not relayed.
pub(crate) fn announce(headers: &mut HeaderMap) {
    let announced = headers.get_all(TRAILER).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = announced.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).filter(is_allowed);
    let names = names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>().join(", ");
    headers.remove(TRAILER);
    // Cannot fail: field names and commas are a valid value.
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
    let mut allowed = HeaderMap::new();
    for (name, value) in &trailers {
        if is_allowed(name) {
            allowed.append(name, value.clone());
        }
    }
    allowed
}

/// A body whose trailer section is filtered.
pub struct Trimmed<B>(pub B);

impl<B: Body<Data = Bytes> + Unpin> Body for Trimmed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.get_mut().0).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(match frame.into_trailers() {
            // A trailer section is the last frame, so the body ends here if nothing is left of it.
            Ok(trailers) => {
                Some(trim(trailers)).filter(|allowed| !allowed.is_empty()).map(|allowed| Ok(Frame::trailers(allowed)))
            }
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
    use std::future::ready;

    use http_body_util::{BodyExt, Full};

    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn forbidden_fields_are_removed_from_a_trailer_section() {
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

    #[tokio::test]
    async fn a_body_keeps_its_data_and_loses_forbidden_trailers() {
        for (sent, left) in
            [(&[("digest", "d"), ("age", "1")][..], Some(map(&[("digest", "d")]))), (&[("age", "1")], None)]
        {
            let trailers = Some(Ok(map(sent)));
            let body = Trimmed(Full::new(Bytes::from_static(b"data")).with_trailers(ready(trailers)));
            assert!(!body.is_end_stream());
            let received = body.collect().await.unwrap();
            assert_eq!(received.trailers(), left.as_ref());
            assert_eq!(received.to_bytes(), "data");
        }
        let (some, none) = (Trimmed(Full::new(Bytes::from_static(b"data"))), Trimmed(Full::new(Bytes::new())));
        assert_eq!((some.size_hint().exact(), none.size_hint().exact()), (Some(4), Some(0)));
        assert!(none.is_end_stream());
    }

    #[test]
    fn only_allowed_fields_are_announced() {
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
    fn a_client_with_te_trailers_accepts_them() {
        for (te, are) in [("trailers", true), ("deflate;q=0.5, Trailers", true), ("deflate", false), ("", false)] {
            assert_eq!(are_accepted(&map(&[("te", te)])), are, "{te}");
        }
    }
}
