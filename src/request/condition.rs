//! Conditional requests (RFC 9110 §13): what upstream is asked about instead of sending all again, and
//! whether what a client has is what it would be given.

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::copied;

/// What tells one answer from the next, in upstream's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validator {
    /// Its `ETag`.
    EntityTag(HeaderValue),
    /// Its `Last-Modified`, where there is no `ETag`.
    LastModified(HeaderValue),
}

impl Validator {
    /// The validator of an answer, if upstream has given it one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let tag = headers.get(ETAG).map(|tag| Self::EntityTag(copied(tag)));
        tag.or_else(|| headers.get(LAST_MODIFIED).map(|date| Self::LastModified(copied(date))))
    }

    /// The header by which upstream is asked whether it still holds.
    pub fn header(&self) -> (HeaderName, &HeaderValue) {
        match self {
            Self::EntityTag(tag) => (IF_NONE_MATCH, tag),
            Self::LastModified(date) => (IF_MODIFIED_SINCE, date),
        }
    }

    /// Whether a 304 with these headers can be the answer to that question: it must not be about
    /// another answer.
    pub fn is_meant_by(&self, headers: &HeaderMap) -> bool {
        match (self, headers.get(ETAG)) {
            (Self::EntityTag(asked), Some(said)) => weak(asked.as_bytes()) == weak(said.as_bytes()),
            (Self::EntityTag(_), None) | (Self::LastModified(_), _) => true,
        }
    }
}

/// Whether a client that sends these headers has the answer with this `ETag` already.
pub fn is_current(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .flat_map(|list| tags(list.as_bytes()))
        .any(|listed| listed == b"*" || weak(listed) == weak(tag.as_bytes()))
}

/// An entity tag for weak comparison (RFC 9110 §8.8.3.2).
fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The entity tags of a list. A comma within quotes is part of a tag.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_quoted = false;
    let tags = list.split(move |&byte| {
        is_quoted ^= byte == b'"';
        byte == b',' && !is_quoted
    });
    tags.map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_client_has_what_it_names() {
        let is_current = |list: &'static str, tag: &'static str| {
            is_current(&headers(&[("if-none-match", list)]), &HeaderValue::from_static(tag))
        };
        for list in ["\"a\"", "\"b\", \"a\"", "W/\"a\"", "*", " \"x,y\" ,\"a\""] {
            assert!(is_current(list, "\"a\"") && is_current(list, "W/\"a\""), "{list}");
        }
        for list in ["\"b\"", "a", "", "\"x, \"a\" y\""] {
            assert!(!is_current(list, "\"a\""), "{list}");
        }
        assert!(is_current("\"x,y\"", "\"x,y\"") && !is_current("\"x,y\"", "\"x\""));
        assert!(!super::is_current(&HeaderMap::new(), &HeaderValue::from_static("\"a\"")));
    }

    #[test]
    fn upstream_is_asked_about_its_own_validator() {
        let both = headers(&[("etag", "W/\"a\""), ("last-modified", "then")]);
        let tag = Validator::of(&both).unwrap();
        assert_eq!(tag.header(), (IF_NONE_MATCH, &both["etag"]));
        assert!(tag.is_meant_by(&HeaderMap::new()) && tag.is_meant_by(&headers(&[("etag", "\"a\"")])));
        assert!(!tag.is_meant_by(&headers(&[("etag", "\"b\"")])));
        let date = Validator::of(&headers(&[("last-modified", "then")])).unwrap();
        assert_eq!(date.header().0, IF_MODIFIED_SINCE);
        assert_eq!(Validator::of(&HeaderMap::new()), None);
    }
}
