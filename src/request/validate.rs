//! Rejects heads that the gateway, upstream and the proxies between them may read in different ways, and brings the
//! others into one form.
//!
//! [`normalize`] and then [`check`] must run before anything else reads a head. After them, one token is one caller, no
//! field that the gateway reads has a second spelling, and lists that are compared as sets are bounded.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, IF_NONE_MATCH, PRAGMA, TRANSFER_ENCODING, VIA,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use strum::{IntoStaticStr, VariantArray};

use super::caller::X_AUTH_TOKEN;
use super::target;
use crate::catalogue::Catalogue;

/// The most fields of a head. In HTTP/1 hyper has the same limit, and answers 431 itself above it.
pub const MAX_FIELDS: usize = 100;

/// The most members of all list fields of a head together, including the words of `Authorization`. Empty members count.
pub const MAX_MEMBERS: usize = 256;

/// The most query parameters. Empty ones count.
pub const MAX_PARAMETERS: usize = 1_000;

/// The value of `Allow`, which RFC 9110 §15.5.6 requires in a 405. Other methods are relayed, too, except TRACE, TRACK
/// and CONNECT.
pub(crate) const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Fields that the gateway reads for authentication, the cache key or framing, or removes because they are hop-by-hop.
/// The list has only names with a `-`, because some servers take `_` for it. Keyed headers are checked in the same way.
const READ: [&str; 15] = [
    "x-auth-token",
    "x-security-token",
    "x-sdk-date",
    "x-sdk-content-sha256",
    "x-project-id",
    "content-length",
    "transfer-encoding",
    "cache-control",
    "if-range",
    "if-none-match",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "http2-settings",
];

/// Why a head is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Invalid {
    /// TRACE, which some servers call TRACK. The response would repeat the request with its credentials.
    #[strum(serialize = "trace-method")]
    Trace,
    /// The target has bytes outside visible ASCII.
    #[strum(serialize = "target-bytes")]
    Target,
    /// More fields than [`MAX_FIELDS`].
    #[strum(serialize = "too-many-fields")]
    Fields,
    /// In HTTP/2, a field value begins or ends with a blank.
    #[strum(serialize = "field-blanks")]
    Blanks,
    /// More than one `X-Auth-Token`, or bytes outside ASCII in it. Some servers take 0xA0 for a blank.
    #[strum(serialize = "token-field")]
    Token,
    /// A field that the gateway reads is spelled with `_` instead of `-`.
    #[strum(serialize = "field-underscore")]
    Underscore,
    /// Two `Content-Length` with different values.
    ContentLength,
    /// A `Transfer-Encoding` other than `chunked`.
    TransferEncoding,
    /// More list members than [`MAX_MEMBERS`].
    #[strum(serialize = "too-many-members")]
    Members,
    /// More query parameters than [`MAX_PARAMETERS`].
    #[strum(serialize = "too-many-parameters")]
    Parameters,
}

impl Invalid {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Trace => StatusCode::METHOD_NOT_ALLOWED,
            Self::TransferEncoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// What is wrong and what is allowed, for people.
    pub fn describe(self) -> String {
        match self {
            Self::Trace => {
                "the methods TRACE and TRACK are not supported, because the response would repeat the credentials of the \
                 request: expected another method"
                    .to_owned()
            }
            Self::Target => {
                "expected a target of visible ASCII characters: escape everything else with % (RFC 3986 §2.1)"
                    .to_owned()
            }
            Self::Fields => format!("expected at most {MAX_FIELDS} header fields"),
            Self::Blanks => {
                "a field value begins or ends with a space or a tab, which HTTP/2 does not allow (RFC 9113 §8.2.1)"
                    .to_owned()
            }
            Self::Token => "expected at most one X-Auth-Token field, with only ASCII characters".to_owned(),
            Self::Underscore => {
                "a field that the gateway reads is spelled with _ instead of -, and some servers treat both as the same \
                 field: expected - as in X-Auth-Token"
                    .to_owned()
            }
            Self::ContentLength => "there are Content-Length fields with different values (RFC 9112 §6.3)".to_owned(),
            Self::TransferEncoding => "the only supported Transfer-Encoding is chunked, once (RFC 9112 §6.1)".to_owned(),
            Self::Members => format!(
                "expected at most {MAX_MEMBERS} list members in Connection, Via, Cache-Control, Pragma, If-None-Match \
                 and Transfer-Encoding together, including the words of Authorization"
            ),
            Self::Parameters => format!("expected at most {MAX_PARAMETERS} query parameters"),
        }
    }
}

/// Brings a head into the form that everything else reads. In HTTP/1, blanks around a value are removed (RFC 9110
/// §5.5). In HTTP/2 they are an error (RFC 9113 §8.2.1), and the head is translated to HTTP/1. Equal `Content-Length`
/// fields become one.
pub fn normalize(head: &mut Parts) -> Result<(), Invalid> {
    // Check the number first, because it bounds all that follows. With debug assertions, replacing a field that is
    // present n times takes n² steps in `HeaderMap`.
    if head.headers.len() > MAX_FIELDS {
        return Err(Invalid::Fields);
    }
    if head.headers.values().any(has_blanks) {
        if head.version >= Version::HTTP_2 {
            return Err(Invalid::Blanks);
        }
        head.headers.values_mut().filter(|value| has_blanks(value)).for_each(trim);
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let (Some(first), Some(second)) = (lengths.next(), lengths.next()) {
        if first != second || lengths.any(|other| other != first) {
            return Err(Invalid::ContentLength);
        }
        let length = first.clone();
        head.headers.insert(CONTENT_LENGTH, length);
    }
    target::translate(head);
    Ok(())
}

/// Checks a normalized head. The keyed headers are the catalogue's.
pub fn check(head: &Parts, catalogue: &Catalogue) -> Result<(), Invalid> {
    if head.method == Method::TRACE || head.method.as_str() == "TRACK" {
        return Err(Invalid::Trace);
    }
    check_target(&head.uri)?;
    check_fields(&head.headers, catalogue)
}

fn check_target(uri: &Uri) -> Result<(), Invalid> {
    let Some(target) = uri.path_and_query() else { return Ok(()) };
    if !is_visible(target.as_str().as_bytes()) {
        return Err(Invalid::Target);
    }
    match target.query() {
        Some(query) if count(query.as_bytes(), b"&") > MAX_PARAMETERS => Err(Invalid::Parameters),
        _ => Ok(()),
    }
}

fn check_fields(headers: &HeaderMap, catalogue: &Catalogue) -> Result<(), Invalid> {
    let (mut members, mut tokens, mut codings) = (0, 0, 0);
    for (name, value) in headers {
        if *name == X_AUTH_TOKEN {
            tokens += 1;
            if tokens > 1 || !value.as_bytes().is_ascii() {
                return Err(Invalid::Token);
            }
        } else if *name == TRANSFER_ENCODING {
            codings += 1;
            if codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(Invalid::TransferEncoding);
            }
        } else if *name == AUTHORIZATION {
            members += count(value.as_bytes(), b",; \t");
        } else if [CONNECTION, VIA, CACHE_CONTROL, PRAGMA, IF_NONE_MATCH].contains(name) {
            members += count(value.as_bytes(), b",");
        } else if is_underscore_variant(name.as_str(), catalogue) {
            return Err(Invalid::Underscore);
        }
        if members > MAX_MEMBERS {
            return Err(Invalid::Members);
        }
    }
    Ok(())
}

/// Whether some servers would take the field for one that the gateway reads.
fn is_underscore_variant(name: &str, catalogue: &Catalogue) -> bool {
    if !name.contains('_') {
        return false;
    }
    let dashed = name.replace('_', "-");
    let mut keyed = catalogue.operations().iter().flat_map(|operation| &operation.keyed_headers);
    READ.contains(&&*dashed) || keyed.any(|keyed| keyed != name && keyed.as_str().replace('_', "-") == dashed)
}

/// The number of parts, including empty ones.
fn count(text: &[u8], separators: &[u8]) -> usize {
    1 + text.iter().filter(|byte| separators.contains(byte)).count()
}

/// Whether all bytes are visible ASCII. It does not stop at the first other byte: without that branch, valid text is
/// faster.
fn is_visible(text: &[u8]) -> bool {
    text.iter().fold(true, |all, byte| all & byte.is_ascii_graphic())
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(crate) fn has_blanks(value: &HeaderValue) -> bool {
    let text = value.as_bytes();
    text.first().is_some_and(is_blank) || text.last().is_some_and(is_blank)
}

/// Removes the blanks around a value.
fn trim(value: &mut HeaderValue) {
    let text = value.as_bytes();
    let begin = text.iter().take_while(|byte| is_blank(byte)).count();
    let end = text.len() - text[begin..].iter().rev().take_while(|byte| is_blank(byte)).count();
    // Cannot fail: a part of a valid value is valid.
    let mut trimmed = HeaderValue::from_bytes(&text[begin..end]).unwrap_or(HeaderValue::from_static(""));
    trimmed.set_sensitive(value.is_sensitive());
    *value = trimmed;
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request};

    use super::*;

    fn head(version: Version, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    fn catalogue() -> Catalogue {
        Catalogue::for_tests(vec![HeaderName::from_static("x-language"), HeaderName::from_static("x_odd-name")])
    }

    fn checked(mut head: Parts) -> Result<HeaderMap, Invalid> {
        normalize(&mut head)?;
        check(&head, &catalogue())?;
        Ok(head.headers)
    }

    const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

    #[test]
    fn blanks_around_any_value_are_trimmed_in_http1_and_rejected_in_http2() {
        for name in ["x-auth-token", "x-language", "accept", "connection", "cookie", "x-any"] {
            for value in [" T", "T ", "\tT", "T\t", "  \t T \t ", " "] {
                let fields = [(name, value)];
                let one = checked(head(Version::HTTP_11, "/", &fields)).unwrap();
                assert_eq!(one[name], value.trim(), "{name}");
                assert_eq!(checked(head(Version::HTTP_10, "/", &fields)).unwrap(), one);
                assert_eq!(checked(head(Version::HTTP_2, "/", &fields)), Err(Invalid::Blanks), "{name}: {value:?}");
            }
        }
        let inner = checked(head(Version::HTTP_2, "/", &[("x-any", "a \tb"), ("accept", "")])).unwrap();
        assert_eq!((&inner["x-any"], &inner["accept"]), (&"a \tb".parse().unwrap(), &"".parse().unwrap()));
    }

    #[test]
    fn a_trimmed_value_stays_sensitive() {
        let mut secret = head(Version::HTTP_11, "/", &[("x-auth-token", " T")]);
        secret.headers.get_mut("x-auth-token").unwrap().set_sensitive(true);
        assert!(checked(secret).unwrap()["x-auth-token"].is_sensitive());
    }

    #[test]
    fn a_head_has_at_most_one_token_and_it_is_ascii() {
        for version in BOTH {
            for one in [&[("x-auth-token", "T")][..], &[("x-auth-token", "")], &[]] {
                assert!(checked(head(version, "/", one)).is_ok());
            }
            for (one, other) in [("T", "T"), ("T", "U"), ("T", ""), ("", "")] {
                let two = [("x-auth-token", one), ("X-Auth-Token", other)];
                assert_eq!(checked(head(version, "/", &two)), Err(Invalid::Token), "{two:?}");
            }
            for odd in ["T\u{a0}", "\u{85}T", "\u{e9}"] {
                assert_eq!(checked(head(version, "/", &[("x-auth-token", odd)])), Err(Invalid::Token), "{odd:?}");
            }
        }
    }

    #[test]
    fn a_field_that_the_gateway_reads_is_rejected_if_spelled_with_underscores() {
        for variant in [
            "x_auth_token",
            "x-auth_token",
            "X_Project_Id",
            "x_security_token",
            "x_sdk_date",
            "x_sdk_content-sha256",
            "content_length",
            "Transfer_Encoding",
            "cache_control",
            "if_none_match",
            "proxy_authorization",
            "x_language",
            "x_odd_name",
        ] {
            for version in BOTH {
                let fields = [(variant, "1")];
                assert_eq!(checked(head(version, "/", &fields)), Err(Invalid::Underscore), "{variant}");
            }
        }
        // The last one is a keyed header with exactly this name.
        for harmless in ["x_any", "accept_language", "x_auth_tokens", "_", "x_odd-name"] {
            assert!(checked(head(Version::HTTP_11, "/", &[(harmless, "1")])).is_ok(), "{harmless}");
        }
    }

    #[test]
    fn different_lengths_and_other_codings_are_rejected() {
        for version in BOTH {
            let of = |fields: &[(&str, &str)]| checked(head(version, "/", fields));
            let equal = of(&[("content-length", "5"), ("content-length", "5"), ("content-length", "5")]).unwrap();
            assert_eq!(equal.get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), ["5"]);
            for (one, other) in [("5", "6"), ("5", "05"), ("5", "")] {
                let two = [("content-length", one), ("content-length", other)];
                assert_eq!(of(&two), Err(Invalid::ContentLength), "{two:?}");
            }
            assert!(of(&[("transfer-encoding", "Chunked")]).is_ok());
            for other in ["gzip, chunked", "gzip", "identity", "chunked, chunked", "chunked;a=b", "chunked,", ""] {
                assert_eq!(of(&[("transfer-encoding", other)]), Err(Invalid::TransferEncoding), "{other}");
            }
            let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
            assert_eq!(of(&twice), Err(Invalid::TransferEncoding));
        }
    }

    #[test]
    fn a_target_is_visible_ascii() {
        for odd in ["/v2/\u{e9}/products", "/v2/p/products?a=\u{e9}", "http://g/\u{4e2d}"] {
            assert_eq!(checked(head(Version::HTTP_11, odd, &[])), Err(Invalid::Target), "{odd:?}");
        }
        for plain in ["/v2/p/%e9?a=%ff&b={}|", "*", "http://g:1"] {
            assert!(checked(head(Version::HTTP_11, plain, &[])).is_ok(), "{plain}");
        }
    }

    #[test]
    fn trace_and_track_are_rejected_and_other_methods_are_not() {
        let of = |method: &str| {
            let mut request = head(Version::HTTP_11, "/", &[]);
            request.method = method.parse().unwrap();
            checked(request).map(drop)
        };
        assert_eq!([of("TRACE"), of("TRACK")], [Err(Invalid::Trace); 2]);
        // Methods are case-sensitive (RFC 9110 §9.1).
        for other in ALLOWED_METHODS.split(", ").chain(["PROPFIND", "TRACKS", "track"]) {
            assert_eq!(of(other), Ok(()), "{other}");
        }
        assert_eq!(Invalid::Trace.status(), 405);
    }

    #[test]
    fn fields_members_and_parameters_are_bounded() {
        let of = |name: &str, separator: &str, number: usize| {
            let list = vec!["a"; number].join(separator);
            checked(head(Version::HTTP_11, "/", &[(name, &list)]))
        };
        for (name, separator) in [
            ("connection", ","),
            ("via", ", "),
            ("cache-control", ","),
            ("pragma", ","),
            ("if-none-match", ","),
            ("authorization", ";"),
            ("authorization", "\t"),
        ] {
            assert!(of(name, separator, MAX_MEMBERS).is_ok(), "{name}");
            assert_eq!(of(name, separator, MAX_MEMBERS + 1), Err(Invalid::Members), "{name}");
            assert_eq!(of(name, separator, 60_000), Err(Invalid::Members), "{name}");
        }
        let two = [("via", &*"a,".repeat(200)), ("connection", &*"a,".repeat(200))];
        assert_eq!(checked(head(Version::HTTP_11, "/", &two)), Err(Invalid::Members), "together");
        let query = |number| checked(head(Version::HTTP_11, &format!("/?{}", vec!["a=1"; number].join("&")), &[]));
        assert!(query(MAX_PARAMETERS).is_ok());
        assert_eq!(query(MAX_PARAMETERS + 1), Err(Invalid::Parameters));
        for (version, name) in BOTH.into_iter().flat_map(|version| [(version, "x-a"), (version, "content-length")]) {
            let fields = |number| checked(head(version, "/", &vec![(name, "1"); number]));
            assert!(fields(MAX_FIELDS).is_ok());
            assert_eq!(fields(MAX_FIELDS + 1), Err(Invalid::Fields));
        }
        assert_eq!([Invalid::Fields, Invalid::Members, Invalid::Parameters].map(Invalid::status), [400; 3]);
    }

    #[test]
    fn reasons_have_different_names_and_descriptions() {
        let names: std::collections::HashSet<_> = Invalid::VARIANTS.iter().map(|invalid| invalid.into_str()).collect();
        let words: std::collections::HashSet<_> = Invalid::VARIANTS.iter().map(|invalid| invalid.describe()).collect();
        assert_eq!([names.len(), words.len()], [Invalid::VARIANTS.len(); 2]);
    }
}
