//! Whether a signature that can't be verified here would still be good where it is relayed to.
//!
//! One that wouldn't must never be sent: upstream would count it against the key, and lock that after a few.

use http::header::{AUTHORIZATION, CONNECTION, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};

/// What a relay changes, besides `Host`.
const CHANGED: [HeaderName; 7] = [CONNECTION, EXPECT, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA];

/// Whether every signature of a request survives being relayed: its path is sent as it was typed, it covers no
/// `Host` but upstream's, and nothing else that isn't sent as it came. Credentials that sign nothing survive
/// anything.
pub fn survives(headers: &HeaderMap, upstream_authority: &str, path_as_typed: bool) -> bool {
    headers.get_all(AUTHORIZATION).iter().all(|value| match covered(value) {
        Covered::Nothing => true,
        Covered::Unknown => false,
        Covered::Headers(names) => {
            path_as_typed
                && names.iter().all(|name| match name.as_str() {
                    // Byte for byte: it covers the Host as typed, and upstream will see its own spelling.
                    name if name == HOST.as_str() => headers.get(HOST).is_some_and(|host| host == upstream_authority),
                    name => !CHANGED.iter().any(|changed| name == changed.as_str()),
                })
        }
    })
}

enum Covered {
    /// Bearer, Basic and their like sign nothing.
    Nothing,
    /// It looks like a signature, and its list of headers can't be found.
    Unknown,
    /// These, in lower case.
    Headers(Vec<String>),
}

/// What a signature covers: `… SignedHeaders=content-type;host;x-sdk-date, Signature=…`, whatever the scheme is
/// called and however it is spelled.
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
    fn what_would_fail_upstream_is_recognised() {
        let survives = |authorization, host, as_typed| {
            let headers = headers(&[("authorization", authorization), ("host", host), ("x-sdk-date", "d")]);
            survives(&headers, "upstream.example", as_typed)
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
        ] {
            assert!(!survives(authorization, host, true), "{authorization} for {host}");
        }
        assert!(survives(signed, there, true) && survives(unsigned, here, true));
        // Told by one word alone, and not what it covers.
        for authorization in ["SDK-X Access=A", "AWS4-HMAC-SHA256 Credential=A", "X Signature=00"] {
            assert!(!survives(authorization, there, true), "{authorization}");
        }
        assert!(!survives(signed, there, false) && !survives(unsigned, here, false));
        assert!(survives("Bearer eyJ.aaHmAcbb.signature", here, false) && survives("", here, false));
    }

    #[test]
    fn what_a_relay_changes_or_there_is_none_of_can_not_be_covered() {
        for name in ["connection", "expect", "te", "trailer", "transfer-encoding", "upgrade", "via", "host"] {
            let covers = format!("X SignedHeaders=x-a;{name}, Signature=00");
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(covers).unwrap())]);
            assert!(!super::survives(&headers, "u", true), "{name}");
        }
    }

    #[test]
    fn each_of_several_has_to_survive() {
        let free = ("authorization", "X SignedHeaders=x-a, Signature=00");
        let bound = ("authorization", "X SignedHeaders=host, Signature=00");
        let common = [("host", "g"), ("x-a", "1")];
        assert!(survives(&headers(&[common[0], common[1], free, free]), "u", true));
        assert!(!survives(&headers(&[common[0], common[1], free, bound]), "u", true));
    }
}
