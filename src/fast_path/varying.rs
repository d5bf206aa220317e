//! Splits a head into what makes it known and the values of its *varying fields*. Clients send another value of these with
//! each request: a trace, a signature and its date, a validator. Of `Authorization` only the signature varies.
//!
//! A head is known by all its bytes but these values. So its other lines, and the names, number and order of its fields,
//! have been read and checked before. Only the values are new, and each that is used is read anew. A value that the full
//! path could read in another way makes the head unknown.

use std::fmt;

use http::request::Parts;
use memchr::{memchr, memmem};

use crate::request::validate::has_blanks;

/// The varying fields. The gateway reads neither `tracestate` nor a client's `X-Request-Id` on a hit.
const NAMES: [&str; 6] = ["traceparent", "tracestate", "x-request-id", "x-sdk-date", "authorization", "if-none-match"];

/// Places in [`NAMES`].
const TRACEPARENT: usize = 0;
const TRACESTATE: usize = 1;
const X_REQUEST_ID: usize = 2;
const SDK_DATE: usize = 3;
const AUTHORIZATION: usize = 4;
const IF_NONE_MATCH: usize = 5;

/// The last part of an `Authorization`. Only what comes after it varies.
const SIGNATURE: &[u8] = b"Signature=";

/// The longest value that may vary, in bytes.
const MAX_VALUE: usize = 1_024;

/// The values of the varying fields of one head, without the blanks around them. Each is visible ASCII and blanks.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VaryingFields<'h> {
    values: [Option<&'h str>; NAMES.len()],
}

impl fmt::Debug for VaryingFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One of the values is a signature.
        f.write_str("VaryingFields(…)")
    }
}

impl<'h> VaryingFields<'h> {
    /// Sets the field at a place in [`NAMES`]. Returns how many bytes of its value do not vary: all of them if the value is
    /// too long, or has bytes that are not visible ASCII or a space, and nothing reads it on a hit. `None` if the head
    /// must not be remembered: such a value, or a second one, is read on a hit, or a list could have another number of
    /// members.
    fn set(&mut self, place: usize, value: &'h [u8]) -> Option<usize> {
        let constant = match place {
            AUTHORIZATION => memmem::rfind(value, SIGNATURE).map_or(value.len(), |begin| begin + SIGNATURE.len()),
            _ => 0,
        };
        let varying = &value[constant..];
        let may_vary = |byte: &u8| match place {
            AUTHORIZATION => byte.is_ascii_alphanumeric(),
            IF_NONE_MATCH => matches!(byte, b' '..=b'~') && *byte != b',',
            _ => matches!(byte, b' '..=b'~'),
        };
        let is_second = self.values[place].is_some();
        if is_second || varying.len() > MAX_VALUE || !varying.iter().all(may_vary) {
            let is_read = match place {
                TRACESTATE | X_REQUEST_ID => false,
                // Without its signature, the full path reads it.
                AUTHORIZATION => is_second,
                _ => true,
            };
            return (!is_read).then_some(value.len());
        }
        self.values[place] = Some(std::str::from_utf8(varying).ok()?.trim_matches(' '));
        Some(constant)
    }

    fn by_name(self) -> Vec<(&'static str, &'h str)> {
        NAMES.into_iter().zip(self.values).filter_map(|(name, value)| Some((name, value?))).collect()
    }

    pub(super) fn traceparent(&self) -> Option<&'h str> {
        self.values[TRACEPARENT]
    }

    pub(crate) fn sdk_date(&self) -> Option<&'h str> {
        self.values[SDK_DATE]
    }

    /// The signature in `Authorization`. Empty if that has another form.
    pub(crate) fn signature(&self) -> Option<&'h str> {
        self.values[AUTHORIZATION]
    }

    pub(super) fn if_none_match(&self) -> Option<&'h str> {
        self.values[IF_NONE_MATCH]
    }
}

/// Whether the name is that of a varying field.
pub(crate) fn is_varying(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Splits the bytes of a head. `known` gets the parts that make it known, in their order. Returns `None` if the head must
/// not be remembered. So two heads with the same known parts have as many fields and list members.
pub(super) fn split<'h>(head: &'h [u8], mut known: impl FnMut(&'h [u8])) -> Option<VaryingFields<'h>> {
    let mut fields = VaryingFields::default();
    // The next byte that `known` has not got, and the beginning of the next line.
    let (mut rest, mut begin) = (0, 0);
    while let Some(length) = memchr(b'\n', &head[begin..]) {
        let line = &head[begin..begin + length];
        if let Some((place, name_length)) = varying_field(line) {
            let value = line[name_length + 1..].strip_suffix(b"\r")?;
            let value_begin = begin + name_length + 1;
            known(&head[rest..value_begin + fields.set(place, value)?]);
            rest = value_begin + value.len();
        }
        begin += length + 1;
    }
    known(&head[rest..]);
    Some(fields)
}

/// Splits a head that hyper has read. `known` gets as much as identifies the head without the values of its varying
/// fields. `None` as in [`split`].
pub(super) fn split_parsed<'h>(head: &'h Parts, mut known: impl FnMut(&'h [u8])) -> Option<VaryingFields<'h>> {
    // No part has a NUL, so no two heads give the same sequence of bytes.
    const END: &[u8] = b"\0";
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    for part in [head.uri.scheme_str().unwrap_or(""), authority, target] {
        known(part.as_bytes());
        known(END);
    }
    let mut fields = VaryingFields::default();
    for (name, value) in &head.headers {
        known(name.as_str().as_bytes());
        known(END);
        match NAMES.iter().position(|varying| varying == name) {
            // In HTTP/2, such a value is malformed (RFC 9113 §8.2.1).
            Some(_) if has_blanks(value) => return None,
            Some(place) => known(&value.as_bytes()[..fields.set(place, value.as_bytes())?]),
            None => known(value.as_bytes()),
        }
        known(END);
    }
    Some(fields)
}

/// What makes a head known, and the values of its varying fields by name. `None` if it must not be remembered. For fuzz
/// targets.
type SplitHead<'h> = Option<(Vec<u8>, Vec<(&'static str, &'h str)>)>;

/// Splits the bytes of an HTTP/1 head as the fast path does.
pub fn split_head(head: &[u8]) -> SplitHead<'_> {
    let mut parts = Vec::new();
    let fields = split(head, |part| parts.extend_from_slice(part))?;
    Some((parts, fields.by_name()))
}

/// Splits an HTTP/2 head that hyper has read as the fast path does.
pub fn split_parsed_head(head: &Parts) -> SplitHead<'_> {
    let mut parts = Vec::new();
    let fields = split_parsed(head, |part| parts.extend_from_slice(part))?;
    Some((parts, fields.by_name()))
}

/// The place in [`NAMES`] of the field in a line, and the length of its name.
fn varying_field(line: &[u8]) -> Option<(usize, usize)> {
    // Most fields have other first letters, which takes less time to see.
    if !matches!(line.first()? | 0x20, b't' | b'x' | b'a' | b'i') {
        return None;
    }
    let name = line.get(..memchr(b':', line)?)?;
    let place = NAMES.iter().position(|varying| name.eq_ignore_ascii_case(varying.as_bytes()))?;
    Some((place, name.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known parts of a head as one text, and its varying fields.
    fn split_text(head: &str) -> Option<(String, VaryingFields<'_>)> {
        let mut known = Vec::new();
        let fields = split(head.as_bytes(), |part| known.extend_from_slice(part))?;
        Some((String::from_utf8(known).unwrap(), fields))
    }

    #[test]
    fn only_the_values_of_varying_fields_are_split_off() {
        let head = "GET /a?traceparent:b HTTP/1.1\r\nHost: h\r\nTraceParent: 00-1\r\ntracestate: s\r\nx-request-id:1\r\n\
                    X-Sdk-Date:  20261122T120000Z \r\nAuthorization: SDK Signature=0a\r\nif-none-match: \"a\"\r\nx-auth-token: T\r\n\r\n";
        let (known, fields) = split_text(head).unwrap();
        assert_eq!(
            known,
            "GET /a?traceparent:b HTTP/1.1\r\nHost: h\r\nTraceParent:\r\ntracestate:\r\nx-request-id:\r\n\
             X-Sdk-Date:\r\nAuthorization: SDK Signature=\r\nif-none-match:\r\nx-auth-token: T\r\n\r\n"
        );
        assert_eq!(fields.values, ["00-1", "s", "1", "20261122T120000Z", "0a", "\"a\""].map(Some));
    }

    #[test]
    fn each_name_has_its_place() {
        for (place, name) in NAMES.iter().enumerate() {
            for name in [(*name).to_owned(), name.to_uppercase()] {
                assert_eq!(varying_field(format!("{name}: v\r").as_bytes()), Some((place, name.len())), "{name}");
                for other in [format!("{name} : v"), format!(" {name}: v"), format!("x{name}: v"), name] {
                    assert_eq!(varying_field(other.as_bytes()), None, "{other}");
                }
            }
        }
    }

    #[test]
    fn a_head_with_a_doubtful_value_is_not_split() {
        for lines in [
            "traceparent: a\r\ntraceparent: a\r\n",
            "traceparent: a\r\nTRACEPARENT: b\r\n",
            "traceparent: a\n",
            "traceparent: a\rb\r\n",
            "traceparent: a\tb\r\n",
            "if-none-match: \u{e9}\r\n",
            "x-sdk-date: \0\r\n",
            "if-none-match: \"a\", \"b\"\r\n",
            "if-none-match: \"a\"\r\nif-none-match: \"b\"\r\n",
            "authorization: SDK Signature=0\r\nauthorization: SDK Signature=1\r\n",
        ] {
            assert_eq!(split_text(&format!("GET / HTTP/1.1\r\n{lines}\r\n")), None, "{lines:?}");
        }
        let head = |length| format!("GET / HTTP/1.1\r\ntraceparent:{}\r\n\r\n", "v".repeat(length));
        assert!(split_text(&head(MAX_VALUE)).is_some() && split_text(&head(MAX_VALUE + 1)).is_none());
    }

    #[test]
    fn a_doubtful_value_that_is_not_read_makes_a_head_known() {
        let long = format!("tracestate: {}\r\n", "v".repeat(MAX_VALUE));
        for lines in [
            "tracestate: a\tb\r\n",
            "x-request-id: \u{e9}\r\n",
            "authorization: SDK Signature=0, a\r\n",
            "authorization: SDK Signature= 0\r\n",
            "authorization: Bearer a\r\n",
            &long,
        ] {
            let head = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let (known, fields) = split_text(&head).unwrap();
            assert!(known == head && fields.signature().unwrap_or_default().is_empty(), "{lines:?}");
        }
        let (known, _) = split_text("GET / HTTP/1.1\r\ntracestate: a\r\ntracestate: b\r\n\r\n").unwrap();
        assert_eq!(known, "GET / HTTP/1.1\r\ntracestate:\r\ntracestate: b\r\n\r\n");
    }
}
