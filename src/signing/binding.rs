//! Whether a signature that the gateway cannot verify may still be valid after the request is relayed.
//!
//! A signature that cannot be valid must never be sent: upstream would count it against the access key, and lock the
//! key after a few.

use std::collections::HashSet;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The headers that relaying changes or removes, besides `Host`.
const CHANGED: [&str; 9] =
    ["connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "via"];

/// How a relayed request differs from the received one.
#[derive(Clone, Debug, Default)]
pub struct RelayChanges {
    /// Whether the path differs.
    pub path: bool,
    /// The headers that `Connection` has named.
    pub removed: HashSet<HeaderName>,
}

/// Whether the signatures of a request may be valid after relaying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// There are no signatures. Credentials without a signature do not depend on the request.
    Unsigned,
    /// They may be valid: the path is relayed unchanged, they cover no `Host` but upstream's, and every other header
    /// that they cover is relayed unchanged.
    Free,
    /// At least one is bound to the request as it was sent to the gateway, and is invalid upstream.
    Bound,
}

impl Binding {
    /// `upstream_authority` is the `Host` of the relayed request.
    pub fn of(headers: &HeaderMap, upstream_authority: &str, changes: &RelayChanges) -> Self {
        // The client chooses both lists. A hash set avoids a comparison of all pairs.
        let is_removed = |name: &str| HeaderName::try_from(name).is_ok_and(|name| changes.removed.contains(&name));
        let survives = |names: &[String]| {
            !changes.path
                && names.iter().all(|name| match name.as_str() {
                    // Compared byte for byte: the signature covers the client's spelling, but the gateway sends
                    // upstream's.
                    name if name == HOST.as_str() => headers.get(HOST).is_some_and(|host| host == upstream_authority),
                    name => !CHANGED.contains(&name) && !is_removed(name),
                })
        };
        let bindings = headers.get_all(AUTHORIZATION).iter().map(|value| match covered(value) {
            Covered::Nothing => Self::Unsigned,
            Covered::Headers(names) if survives(&names) => Self::Free,
            Covered::Unknown | Covered::Headers(_) => Self::Bound,
        });
        bindings.fold(Self::Unsigned, |all, one| match (all, one) {
            (Self::Bound, _) | (_, Self::Bound) => Self::Bound,
            (Self::Unsigned, Self::Unsigned) => Self::Unsigned,
            _ => Self::Free,
        })
    }
}

enum Covered {
    /// A scheme that signs nothing, such as Bearer or Basic.
    Nothing,
    /// A signature whose list of headers cannot be found.
    Unknown,
    /// A signature over these headers, in lower case.
    Headers(Vec<String>),
}

/// Finds the signed headers, as in `… SignedHeaders=content-type;host;x-sdk-date, Signature=…`, in any scheme and
/// spelling.
fn covered(authorization: &HeaderValue) -> Covered {
    let text = String::from_utf8_lossy(authorization.as_bytes()).to_ascii_lowercase();
    let list = text.split_once("signedheaders").and_then(|(_, rest)| rest.trim_start().strip_prefix('='));
    if let Some(list) = list {
        let list = list.split(',').next().unwrap_or_default();
        let names = list.split([';', ' ', '\t']).filter(|name| !name.is_empty());
        return Covered::Headers(names.map(str::to_owned).collect());
    }
    let scheme = text.split_ascii_whitespace().next().unwrap_or_default();
    let is_signature = scheme.starts_with("sdk-") || scheme.contains("hmac") || text.contains("signature=");
    if is_signature { Covered::Unknown } else { Covered::Nothing }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_signature_that_is_invalid_upstream_is_recognised() {
        let of = |authorization, host, same_path: bool| {
            let headers = headers(&[("authorization", authorization), ("host", host), ("x-sdk-date", "d")]);
            let removed = HashSet::from([HeaderName::from_static("x-hop")]);
            Binding::of(&headers, "upstream.example", &RelayChanges { path: !same_path, removed })
        };
        let signed = "SDK-HMAC-SHA256 Access=A, SignedHeaders=host;x-sdk-date, Signature=00";
        let unsigned = "SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date, Signature=00";
        let (here, there) = ("127.0.0.1:8080", "upstream.example");
        for (authorization, host) in [
            (signed, here),
            (signed, "Upstream.Example"),
            ("X Access=A,SignedHeaders=Host,Signature=00", here),
            ("SDK-HMAC-SHA256\tSignedHeaders = x-sdk-date;host , Access=A", here),
            ("SDK-HMAC-SHA256 Access=A, Signature=00", there),
            ("V11-HMAC-SHA256 Credential=A/20261122/r/s, SignedHeaders=host, Signature=00", here),
            ("SDK-HMAC-SM3 Access=A, SignedHeaders=via, Signature=00", there),
            ("SDK-HMAC-SHA256 Access=A, SignedHeaders=connection, Signature=00", there),
            ("SDK-HMAC-SHA256 Access=A, SignedHeaders=keep-alive, Signature=00", there),
            ("SDK-HMAC-SHA256 Access=A, SignedHeaders=x-hop;x-sdk-date, Signature=00", there),
        ] {
            assert_eq!(of(authorization, host, true), Binding::Bound, "{authorization} for {host}");
        }
        assert_eq!([of(signed, there, true), of(unsigned, here, true)], [Binding::Free; 2]);
        assert_eq!([of(signed, there, false), of(unsigned, here, false)], [Binding::Bound; 2]);
        assert_eq!([of("Bearer eyJ.aaHmAcbb.signature", here, false), of("", here, false)], [Binding::Unsigned; 2]);
        // Recognised as a signature, but the list of headers is missing.
        for authorization in ["SDK-X Access=A", "AWS4-HMAC-SHA256 Credential=A", "X Signature=00"] {
            assert_eq!(of(authorization, there, true), Binding::Bound, "{authorization}");
        }
    }

    #[test]
    fn a_signature_over_a_changed_or_missing_header_is_bound() {
        for name in ["connection", "expect", "te", "trailer", "transfer-encoding", "upgrade", "via", "host"] {
            let covers = format!("X SignedHeaders=x-a;{name}, Signature=00");
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(covers).unwrap())]);
            assert_eq!(Binding::of(&headers, "u", &RelayChanges::default()), Binding::Bound, "{name}");
        }
    }

    #[test]
    fn one_bound_signature_of_several_makes_the_request_bound() {
        let free = ("authorization", "X SignedHeaders=x-a, Signature=00");
        let bound = ("authorization", "X SignedHeaders=host, Signature=00");
        let plain = ("authorization", "Bearer x");
        let of = |of: &[(&'static str, &'static str)]| {
            Binding::of(&headers(&[&[("host", "g"), ("x-a", "1")], of].concat()), "u", &RelayChanges::default())
        };
        assert_eq!(of(&[free, free]), Binding::Free);
        assert_eq!([of(&[plain, free]), of(&[free, plain])], [Binding::Free; 2]);
        assert_eq!([of(&[free, bound]), of(&[bound, plain])], [Binding::Bound; 2]);
        assert_eq!(of(&[plain, plain]), Binding::Unsigned);
    }
}
