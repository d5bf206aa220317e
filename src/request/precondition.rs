//! Preconditions (RFC 9110 §13): the gateway's own to upstream, and those of clients for stored responses.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{CACHE_STATUS, X_REQUEST_ID, copied};

/// The validator of a response, as upstream sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validator {
    EntityTag(HeaderValue),
    /// Only if there is no `ETag`.
    LastModified(HeaderValue),
}

impl Validator {
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let tag = headers.get(ETAG).map(|tag| Self::EntityTag(copied(tag)));
        tag.or_else(|| headers.get(LAST_MODIFIED).map(|date| Self::LastModified(copied(date))))
    }

    /// The request header that revalidates the stored response.
    pub fn header(&self) -> (HeaderName, &HeaderValue) {
        match self {
            Self::EntityTag(tag) => (IF_NONE_MATCH, tag),
            Self::LastModified(date) => (IF_MODIFIED_SINCE, date),
        }
    }

    /// The response header that it was read from.
    pub fn of_answer(&self) -> HeaderName {
        match self {
            Self::EntityTag(_) => ETAG,
            Self::LastModified(_) => LAST_MODIFIED,
        }
    }

    /// Whether a 304 with these headers can confirm the stored response. It must not have another `ETag`.
    pub fn is_meant_by(&self, headers: &HeaderMap) -> bool {
        match (self, headers.get(ETAG)) {
            (Self::EntityTag(sent), Some(received)) => weak(sent.as_bytes()) == weak(received.as_bytes()),
            (Self::EntityTag(_), None) | (Self::LastModified(_), _) => true,
        }
    }
}

/// The fields of a 304 that are those of the 200 in its place (RFC 9110 §15.4.5), and those of every response of the
/// gateway.
const IN_304: [HeaderName; 10] =
    [AGE, CACHE_CONTROL, CACHE_STATUS, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY, X_REQUEST_ID];

pub(crate) fn is_in_304(name: &HeaderName) -> bool {
    IN_304.contains(name)
}

/// Whether the client's stored response is current, so that a 304 answers it. `If-Modified-Since` is ignored if there
/// is an `If-None-Match` (RFC 9110 §13.2.2).
pub fn is_current(request: &HeaderMap, response: &HeaderMap) -> bool {
    if !request.contains_key(IF_NONE_MATCH) {
        return is_unmodified(request, response).unwrap_or(false);
    }
    let Some(tag) = response.get(ETAG) else { return false };
    request.get_all(IF_NONE_MATCH).iter().any(|list| lists(list.as_bytes(), tag))
}

/// Whether the value of an `If-None-Match` names this entity tag.
pub(crate) fn lists(list: &[u8], tag: &HeaderValue) -> bool {
    tags(list).any(|listed| listed == b"*" || weak(listed) == weak(tag.as_bytes()))
}

/// A `Last-Modified` is a strong validator only if it is so much older than `Date`. Otherwise two responses may have
/// the same one (RFC 9110 §8.8.2.2).
const STRONG_DATE: Duration = Duration::from_secs(60);

/// Whether the response has not changed since the client's date. `None` if a date is missing or invalid.
fn is_unmodified(request: &HeaderMap, response: &HeaderMap) -> Option<bool> {
    let since = date(request, IF_MODIFIED_SINCE)?;
    let modified = date(response, LAST_MODIFIED)?;
    let is_strong = date(response, DATE)?.duration_since(modified).is_ok_and(|age| age >= STRONG_DATE);
    Some(is_strong && modified <= since)
}

/// The date of a field that is present exactly once.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut fields = headers.get_all(name).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    httpdate::parse_http_date(field.to_str().ok()?).ok()
}

/// The part of an entity tag that weak comparison compares (RFC 9110 §8.8.3.2).
fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Splits a list of entity tags. A comma within quotes is part of a tag.
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
    fn a_client_is_current_if_it_lists_the_entity_tag() {
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
        assert!(is_in_304(&ETAG) && !is_in_304(&http::header::CONTENT_LENGTH));
    }

    #[test]
    fn a_client_is_current_if_nothing_has_changed_since_its_date() {
        const NOON: &str = "Sun, 06 Nov 1994 12:00:00 GMT";
        const EARLIER: &str = "Sun, 06 Nov 1994 11:59:00 GMT";
        const JUST_BEFORE: &str = "Sun, 06 Nov 1994 11:59:01 GMT";
        for (sent, modified, dated, expected) in [
            (&[("if-modified-since", EARLIER)][..], EARLIER, NOON, true),
            (&[("if-modified-since", NOON)], EARLIER, NOON, true),
            (&[("if-modified-since", "Sunday, 06-Nov-94 12:00:00 GMT")], EARLIER, NOON, true),
            // It has changed since.
            (&[("if-modified-since", "Sun, 06 Nov 1994 11:58:59 GMT")], EARLIER, NOON, false),
            // Two responses may have that date.
            (&[("if-modified-since", NOON)], JUST_BEFORE, NOON, false),
            (&[("if-modified-since", NOON)], NOON, EARLIER, false),
            (&[("if-modified-since", "0")], EARLIER, NOON, false),
            (&[("if-modified-since", NOON), ("if-modified-since", NOON)], EARLIER, NOON, false),
            (&[("if-modified-since", NOON), ("if-none-match", "\"b\"")], EARLIER, NOON, false),
            (&[("if-modified-since", "0"), ("if-none-match", "\"a\"")], EARLIER, NOON, true),
            (&[], EARLIER, NOON, false),
        ] {
            let mut fields = HeaderMap::new();
            for &(name, value) in sent {
                fields.append(name, value.parse().unwrap());
            }
            let response = headers(&[("etag", "\"a\""), ("last-modified", modified), ("date", dated)]);
            assert_eq!(super::is_current(&fields, &response), expected, "{sent:?} {modified} {dated}");
        }
        let undated = headers(&[("last-modified", EARLIER)]);
        assert!(!super::is_current(&headers(&[("if-modified-since", NOON)]), &undated));
    }

    #[test]
    fn a_stored_response_is_revalidated_with_upstreams_validator() {
        let both = headers(&[("etag", "W/\"a\""), ("last-modified", "then")]);
        let tag = Validator::of(&both).unwrap();
        assert_eq!(tag.header(), (IF_NONE_MATCH, &both["etag"]));
        assert_eq!(tag.of_answer(), ETAG);
        assert!(tag.is_meant_by(&HeaderMap::new()) && tag.is_meant_by(&headers(&[("etag", "\"a\"")])));
        assert!(!tag.is_meant_by(&headers(&[("etag", "\"b\"")])));
        let date = Validator::of(&headers(&[("last-modified", "then")])).unwrap();
        assert_eq!((date.header().0, date.of_answer()), (IF_MODIFIED_SINCE, LAST_MODIFIED));
        assert!(date.is_meant_by(&HeaderMap::new()) && date.is_meant_by(&both));
        assert_eq!(Validator::of(&HeaderMap::new()), None);
    }
}
