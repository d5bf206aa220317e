//! Conditional requests (RFC 9110 §13): what upstream is asked about instead of sending all again, and
//! whether what a client has is what it would be given.

use std::time::{Duration, SystemTime};

use http::header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
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

    /// The header of the answer that it was read from.
    pub fn of_answer(&self) -> HeaderName {
        match self {
            Self::EntityTag(_) => ETAG,
            Self::LastModified(_) => LAST_MODIFIED,
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

/// Whether a client that sends these headers has the answer with those already. Dates count only where there are no entity
/// tags (RFC 9110 §13.2.2).
pub fn is_current(asked: &HeaderMap, answer: &HeaderMap) -> bool {
    if !asked.contains_key(IF_NONE_MATCH) {
        return is_unmodified(asked, answer).unwrap_or(false);
    }
    let Some(tag) = answer.get(ETAG) else { return false };
    let mut listed = asked.get_all(IF_NONE_MATCH).iter().flat_map(|list| tags(list.as_bytes()));
    listed.any(|listed| listed == b"*" || weak(listed) == weak(tag.as_bytes()))
}

/// How much older than its `Date` a `Last-Modified` has to be: what changed twice within a second has one date for two
/// answers (RFC 9110 §8.8.2.2).
const STRONG_DATE: Duration = Duration::from_secs(60);

/// Whether the answer has not changed since the client's date. `None` if there is no date that counts.
fn is_unmodified(asked: &HeaderMap, answer: &HeaderMap) -> Option<bool> {
    let since = date(asked, IF_MODIFIED_SINCE)?;
    let modified = date(answer, LAST_MODIFIED)?;
    let is_strong = date(answer, DATE)?.duration_since(modified).is_ok_and(|age| age >= STRONG_DATE);
    Some(is_strong && modified <= since)
}

/// The date of a field that is there once.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut fields = headers.get_all(name).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    httpdate::parse_http_date(field.to_str().ok()?).ok()
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
            is_current(&headers(&[("if-none-match", list)]), &headers(&[("etag", tag)]))
        };
        for list in ["\"a\"", "\"b\", \"a\"", "W/\"a\"", "*", " \"x,y\" ,\"a\""] {
            assert!(is_current(list, "\"a\"") && is_current(list, "W/\"a\""), "{list}");
        }
        for list in ["\"b\"", "a", "", "\"x, \"a\" y\""] {
            assert!(!is_current(list, "\"a\""), "{list}");
        }
        assert!(is_current("\"x,y\"", "\"x,y\"") && !is_current("\"x,y\"", "\"x\""));
        assert!(!super::is_current(&HeaderMap::new(), &headers(&[("etag", "\"a\"")])));
    }

    #[test]
    fn a_client_has_what_has_not_changed_since_its_date() {
        const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
        const EARLIER: &str = "Sun, 06 Nov 1994 11:59:00 GMT";
        const JUST_BEFORE: &str = "Sun, 06 Nov 1994 11:59:01 GMT";
        for (asked, modified, dated, expected) in [
            (&[("if-modified-since", EARLIER)][..], EARLIER, NOON, true),
            (&[("if-modified-since", NOON)], EARLIER, NOON, true),
            (&[("if-modified-since", "Sunday, 06-Nov-94 12:00:00 GMT")], EARLIER, NOON, true),
            // It has changed since.
            (&[("if-modified-since", "Sun, 06 Nov 1994 11:58:59 GMT")], EARLIER, NOON, false),
            // Two answers may have that date.
            (&[("if-modified-since", NOON)], JUST_BEFORE, NOON, false),
            (&[("if-modified-since", NOON)], NOON, EARLIER, false),
            (&[("if-modified-since", "0")], EARLIER, NOON, false),
            (&[("if-modified-since", NOON), ("if-modified-since", NOON)], EARLIER, NOON, false),
            (&[("if-modified-since", NOON), ("if-none-match", "\"b\"")], EARLIER, NOON, false),
            (&[("if-modified-since", "0"), ("if-none-match", "\"a\"")], EARLIER, NOON, true),
            (&[], EARLIER, NOON, false),
        ] {
            let mut fields = HeaderMap::new();
            for &(name, value) in asked {
                fields.append(name, value.parse().unwrap());
            }
            let answer = headers(&[("etag", "\"a\""), ("last-modified", modified), ("date", dated)]);
            assert_eq!(super::is_current(&fields, &answer), expected, "{asked:?} {modified} {dated}");
        }
        let undated = headers(&[("last-modified", EARLIER)]);
        assert!(!super::is_current(&headers(&[("if-modified-since", NOON)]), &undated));
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
