//! The head of a request as bytes: where it ends, and whether it may be remembered. Fields are not parsed here.

use http::header::{CONNECTION, EXPECT, IF_MODIFIED_SINCE, TE, UPGRADE};
use http::request::Parts;
use http::{Method, Version};
use memchr::memchr_iter;

/// Finds the blank line that ends a head, in data that arrives in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadScanner {
    /// The last two bytes, or zeros at the beginning.
    tail: [u8; 2],
}

impl HeadScanner {
    /// The index after the end of the first head in the next piece. Lines may end in a bare line feed (RFC 9112 §2.2).
    pub fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let at = |place: usize, back: usize| match place.checked_sub(back) {
            Some(place) => bytes[place],
            None => self.tail.get(2 + place - back).copied().unwrap_or(0),
        };
        let is_blank = |&end: &usize| at(end, 1) == b'\n' || (at(end, 1) == b'\r' && at(end, 2) == b'\n');
        if let Some(end) = memchr_iter(b'\n', bytes).find(is_blank) {
            return Some(end + 1);
        }
        self.tail = match *bytes {
            [] => self.tail,
            [last] => [self.tail[1], last],
            [.., before, last] => [before, last],
        };
        None
    }
}

/// Whether the next bytes after the head begin the next request, if the request has no body.
pub(super) fn is_whole_request(head: &Parts) -> bool {
    head.method == Method::GET || head.method == Method::HEAD
}

/// Whether the same head, but for the values of its varying fields, always means the same request. So the head must have
/// no connection option but `keep-alive`, and no condition but `If-None-Match`.
pub fn is_repeatable(head: &Parts) -> bool {
    let is_persistent =
        head.headers.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
    let others = [UPGRADE, EXPECT, TE, IF_MODIFIED_SINCE];
    let is_plain = || others.iter().all(|name| !head.headers.contains_key(name));
    let is_known_version = matches!(head.version, Version::HTTP_11 | Version::HTTP_2);
    head.method == Method::GET && is_known_version && is_persistent && is_plain()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    /// The end of the first head by the definition, line by line.
    fn end(bytes: &[u8]) -> Option<usize> {
        let mut place = 0;
        for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            place += line.len();
            if number > 0 && matches!(line, b"\n" | b"\r\n") {
                return Some(place);
            }
        }
        None
    }

    proptest! {
        #[test]
        fn the_end_of_a_head_does_not_depend_on_its_pieces(text in "x[x\r\n]{0,12}", cuts in prop::collection::vec(0..12_usize, 0..4)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut scan = HeadScanner::default();
            let found = cuts.windows(2).find_map(|cut| Some(cut[0] + scan.end(&bytes[cut[0]..cut[1]])?));
            prop_assert_eq!(found, end(bytes));
        }
    }

    #[test]
    fn a_blank_line_before_the_request_line_does_not_end_the_head() {
        assert_eq!(HeadScanner::default().end(b"\r\nGET / HTTP/1.1\r\n\r\n"), Some(20));
    }

    #[test]
    fn a_head_with_a_date_condition_or_a_connection_option_is_not_repeatable() {
        let is_repeatable = |method: &str, pairs: &[(&str, &str)]| {
            let mut request = Request::builder().method(method);
            for (name, value) in pairs {
                request = request.header(*name, *value);
            }
            super::is_repeatable(&request.body(()).unwrap().into_parts().0)
        };
        assert!(is_repeatable("GET", &[("host", "h"), ("x-auth-token", "t")]));
        assert!(is_repeatable("GET", &[("connection", "Keep-Alive")]));
        assert!(is_repeatable("GET", &[("if-none-match", "*"), ("traceparent", "odd")]));
        assert!(!is_repeatable("HEAD", &[]));
        for (name, value) in [
            ("connection", "close"),
            ("connection", "keep-alive, x-auth-token"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert!(!is_repeatable("GET", &[(name, value)]), "{name}: {value}");
        }
    }
}
