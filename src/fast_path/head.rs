//! A request's head as it came over the wire: where it ends, and whether it may be remembered.

use http::header::{CONNECTION, EXPECT, IF_MODIFIED_SINCE, IF_NONE_MATCH, TE, UPGRADE};
use http::request::Parts;
use http::{Method, Version};
use memchr::memchr_iter;

use crate::request::trace::TRACEPARENT;

/// Follows what comes over a connection up to the blank line that ends a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadScanner {
    /// The last two bytes, zero where there were none.
    tail: [u8; 2],
}

impl HeadScanner {
    /// Where the first head ends in what has come now, if it does. Lines may end in a bare line feed (RFC 9112 §2.2).
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

/// Whether nothing but the next head can come after a head without a body.
pub(super) fn is_all(head: &Parts) -> bool {
    head.method == Method::GET || head.method == Method::HEAD
}

/// Whether a head asks for the same each time it comes, as far as it alone can tell, and is answered by an answer and
/// nothing else: with no word on the connection but that it stays, no condition that an answer has to be held against, and
/// no trace, of which the log would have to tell (and which is another one each time).
pub fn is_repeatable(head: &Parts) -> bool {
    let stays =
        head.headers.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
    let conditions = [UPGRADE, EXPECT, TE, IF_NONE_MATCH, IF_MODIFIED_SINCE, TRACEPARENT];
    let is_plain = || conditions.iter().all(|name| !head.headers.contains_key(name));
    head.method == Method::GET && head.version == Version::HTTP_11 && stays && is_plain()
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    /// Where a head ends in bytes that come one by one, by the definition.
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
        fn a_head_ends_where_it_ends_however_it_is_cut(text in "x[x\r\n]{0,12}", cuts in prop::collection::vec(0..12_usize, 0..4)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut scan = HeadScanner::default();
            let found = cuts.windows(2).find_map(|cut| Some(cut[0] + scan.end(&bytes[cut[0]..cut[1]])?));
            prop_assert_eq!(found, end(bytes));
        }
    }

    #[test]
    fn a_line_break_before_the_first_line_is_no_blank_line() {
        assert_eq!(HeadScanner::default().end(b"\r\nGET / HTTP/1.1\r\n\r\n"), Some(20));
    }

    #[test]
    fn a_head_with_a_condition_or_a_word_on_the_connection_is_read_each_time() {
        let is_repeatable = |method: &str, pairs: &[(&str, &str)]| {
            let mut request = Request::builder().method(method);
            for (name, value) in pairs {
                request = request.header(*name, *value);
            }
            super::is_repeatable(&request.body(()).unwrap().into_parts().0)
        };
        assert!(is_repeatable("GET", &[("host", "h"), ("x-auth-token", "t")]));
        assert!(is_repeatable("GET", &[("connection", "Keep-Alive")]));
        assert!(!is_repeatable("HEAD", &[]));
        for (name, value) in [
            ("connection", "close"),
            ("connection", "keep-alive, x-auth-token"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("if-none-match", "*"),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("traceparent", "odd"),
        ] {
            assert!(!is_repeatable("GET", &[(name, value)]), "{name}: {value}");
        }
    }
}
