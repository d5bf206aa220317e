//! The canonical request, which is signed: one spelling of a request, so that both sides compute the same even if a
//! library or a proxy has changed the escapes.

use http::{HeaderMap, Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use ring::digest::{Digest, SHA256, SHA256_OUTPUT_LEN, digest};

use super::SCHEME;

/// All characters but the unreserved ones (RFC 3986 §2.3) are escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The target of a request as its client sent it, before a path prefix was removed.
#[derive(Clone, Copy)]
pub struct SignedTarget<'a> {
    pub path: &'a str,
    pub query: Option<&'a str>,
}

impl<'a> From<&'a Uri> for SignedTarget<'a> {
    fn from(uri: &'a Uri) -> Self {
        Self { path: uri.path(), query: uri.query() }
    }
}

/// What the canonical request has for the body: its SHA-256 in hex digits, or [`Self::UNSIGNED`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(String);

impl Payload {
    /// Stands for a body that is not signed.
    pub const UNSIGNED: &'static str = "UNSIGNED-PAYLOAD";

    pub fn of(body: &[u8]) -> Self {
        Self(sha256(body))
    }

    pub fn unsigned() -> Self {
        Self(Self::UNSIGNED.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A part of a canonical request.
pub(super) enum CanonicalPart<'a> {
    Text(&'a [u8]),
    /// The value of a signed header.
    Value {
        name: &'a str,
        value: &'a [u8],
    },
}

/// `None` if a signed header is missing or present twice, because it is then not clear what was signed.
pub fn canonical_request(
    method: &Method,
    target: SignedTarget<'_>,
    headers: &HeaderMap,
    signed_headers: &str,
    payload: &Payload,
) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(512);
    write_canonical(method, target, headers, signed_headers, payload, |part| {
        let (CanonicalPart::Text(part) | CanonicalPart::Value { value: part, .. }) = part;
        text.extend_from_slice(part);
    })?;
    Some(text)
}

/// Writes a canonical request part by part. `None` as in [`canonical_request`].
pub(super) fn write_canonical<'a>(
    method: &'a Method,
    target: SignedTarget<'_>,
    headers: &'a HeaderMap,
    signed_headers: &'a str,
    payload: &'a Payload,
    mut write: impl FnMut(CanonicalPart<'_>),
) -> Option<()> {
    let mut text = Vec::with_capacity(256);
    text.extend_from_slice(method.as_str().as_bytes());
    text.push(b'\n');
    path(target.path, &mut text);
    text.push(b'\n');
    query(target.query.unwrap_or_default(), &mut text);
    text.push(b'\n');
    write(CanonicalPart::Text(&text));
    for name in signed_headers.split(';') {
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        write(CanonicalPart::Text(name.as_bytes()));
        write(CanonicalPart::Text(b":"));
        write(CanonicalPart::Value { name, value: value.as_bytes().trim_ascii() });
        write(CanonicalPart::Text(b"\n"));
    }
    for part in ["\n", signed_headers, "\n", payload.as_str()] {
        write(CanonicalPart::Text(part.as_bytes()));
    }
    Some(())
}

/// The text that the key signs.
pub fn string_to_sign(date: &str, canonical_request: &[u8]) -> String {
    string_to_sign_of_hash(date, &digest(&SHA256, canonical_request))
}

/// The same for the SHA-256 of the canonical request.
pub(super) fn string_to_sign_of_hash(date: &str, hash: &Digest) -> String {
    let mut text = String::with_capacity(SCHEME.len() + date.len() + 2 + 2 * SHA256_OUTPUT_LEN);
    for part in [SCHEME, "\n", date, "\n"] {
        text.push_str(part);
    }
    push_hex(hash.as_ref(), &mut text);
    text
}

fn path(path: &str, text: &mut Vec<u8>) {
    let decoded: Vec<u8> = percent_decode(path.as_bytes()).collect();
    for (index, segment) in decoded.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            text.push(b'/');
        }
        escape(segment, text);
    }
    if decoded.last() != Some(&b'/') {
        text.push(b'/');
    }
}

fn query(query: &str, text: &mut Vec<u8>) {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    pairs.sort();
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            text.push(b'&');
        }
        escape(name, text);
        text.push(b'=');
        escape(value, text);
    }
}

/// A `+` is a space, as in Go. Of the clients that sign, only those in Go send a `+`.
fn decode(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

fn escape(bytes: &[u8], text: &mut Vec<u8>) {
    percent_encode(bytes, ESCAPED).for_each(|part| text.extend_from_slice(part.as_bytes()));
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    push_hex(bytes, &mut text);
    text
}

fn push_hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn canonical(target: &str) -> String {
        let uri: Uri = target.parse().unwrap();
        let headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("h"))]);
        let text = canonical_request(&Method::GET, (&uri).into(), &headers, "host", &Payload::of(b"")).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!([lines[0], lines[3], lines[5]], ["GET", "host:h", "host"]);
        format!("{}?{}", lines[1], lines[2])
    }

    #[test]
    fn equivalent_targets_have_one_spelling() {
        for (target, expected) in [
            ("/", "/?"),
            ("/a/b", "/a/b/?"),
            ("/a/b/", "/a/b/?"),
            ("//a", "//a/?"),
            ("/%61/%7Eb", "/a/~b/?"),
            ("/a%20b(c)", "/a%20b%28c%29/?"),
            ("/a%zz", "/a%25zz/?"),
            ("/a?b=2&a=1", "/a/?a=1&b=2"),
            ("/a?b=2&a=2&a=1", "/a/?a=1&a=2&b=2"),
            ("/a?b=&c", "/a/?b=&c="),
            ("/a?&b=1&&", "/a/?b=1"),
            ("/a?b=x+y%2Bz", "/a/?b=x%20y%2Bz"),
            ("/a?b=%e4%b8%ad", "/a/?b=%E4%B8%AD"),
            ("/a?b=%ff", "/a/?b=%FF"),
            ("/a?b=c=d", "/a/?b=c%3Dd"),
        ] {
            assert_eq!(canonical(target), expected, "{target}");
        }
    }

    #[test]
    fn blanks_around_a_value_are_not_signed() {
        let of = |value: &'static str| {
            let headers = HeaderMap::from_iter([("x-a".parse().unwrap(), HeaderValue::from_static(value))]);
            let target = SignedTarget { path: "/", query: None };
            canonical_request(&Method::GET, target, &headers, "x-a", &Payload::unsigned()).unwrap()
        };
        assert_eq!(of(" \ta b "), of("a b"));
        assert_ne!(of("a  b"), of("a b"));
    }

    #[test]
    fn a_header_that_is_missing_or_present_twice_cannot_be_signed() {
        let mut headers = HeaderMap::new();
        let of = |headers: &HeaderMap| {
            let target = SignedTarget { path: "/", query: None };
            canonical_request(&Method::GET, target, headers, "x-a", &Payload::unsigned())
        };
        assert!(of(&headers).is_none());
        headers.append("x-a", HeaderValue::from_static("1"));
        assert!(of(&headers).is_some());
        headers.append("x-a", HeaderValue::from_static("1"));
        assert!(of(&headers).is_none());
    }
}
