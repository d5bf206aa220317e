//! A request's head as it came over the wire, before anything is read in it: where it ends, and a fingerprint by
//! which the same head is known again.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use highway::{HighwayHash, HighwayHasher, Key};
use http::header::{CONNECTION, EXPECT, IF_NONE_MATCH, TE, UPGRADE};
use http::request::Parts;
use http::{Method, Version};
use memchr::memchr_iter;

use super::trace::TRACEPARENT;

/// A head, known by a keyed hash of all of its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u64; 4]);

impl Fingerprint {
    /// A part of it that tells it from most others, and its place among so many.
    pub fn mark(&self, places: usize) -> (usize, u64) {
        // A remainder of a number below another fits.
        (usize::try_from(self.0[1] % places.max(1) as u64).unwrap_or(0), self.0[2])
    }
}

impl Hash for Fingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There is a credential in what it is of.
        f.write_str("Fingerprint(…)")
    }
}

/// For maps of fingerprints, which are as good as random already.
pub type BuildFingerprintHasher = BuildHasherDefault<FingerprintHasher>;

/// Takes a part of the fingerprint for its hash.
#[derive(Default)]
pub struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Takes fingerprints, with a key that should be random and told to nobody.
///
/// HighwayHash, because a head is mostly its token, thousands of bytes, and a cryptographic hash of them would cost
/// more than all the rest of a hit. It has to keep apart what it is given, and no more: nobody sees a
/// fingerprint, and whoever would be taken for somebody else has to meet that one's, under a key of 256 bits that he
/// doesn't know, which is of a head with a token in it that he doesn't know either.
pub struct Fingerprints(Key);

impl Fingerprints {
    /// With this key.
    pub fn new(key: [u64; 4]) -> Self {
        Self(Key(key))
    }

    /// The fingerprint of a head.
    pub fn of(&self, head: &[u8]) -> Fingerprint {
        Fingerprint(HighwayHasher::new(self.0).hash256(head))
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints(…)")
    }
}

/// Follows what comes over a connection up to the blank line that ends a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The last two bytes, zero where there were none.
    tail: [u8; 2],
}

impl Scan {
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
pub fn is_all(head: &Parts) -> bool {
    head.method == Method::GET || head.method == Method::HEAD
}

/// Whether a head asks for the same each time it comes, as far as it alone can tell, and is answered by an answer and
/// nothing else: with no word on the connection but that it stays, no condition that an answer has to be held against, and
/// no trace, of which the log would have to tell (and which is another one each time).
pub fn is_repeatable(head: &Parts) -> bool {
    let stays =
        head.headers.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
    let is_plain =
        || [UPGRADE, EXPECT, TE, IF_NONE_MATCH, TRACEPARENT].iter().all(|name| !head.headers.contains_key(name));
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
            let mut scan = Scan::default();
            let found = cuts.windows(2).find_map(|cut| Some(cut[0] + scan.end(&bytes[cut[0]..cut[1]])?));
            prop_assert_eq!(found, end(bytes));
        }
    }

    #[test]
    fn a_line_break_before_the_first_line_is_no_blank_line() {
        assert_eq!(Scan::default().end(b"\r\nGET / HTTP/1.1\r\n\r\n"), Some(20));
    }

    #[test]
    fn fingerprints_differ_by_each_byte_and_by_key() {
        let (one, other) = (Fingerprints::new([1; 4]), Fingerprints::new([2; 4]));
        let head = b"GET / HTTP/1.1\r\nx-auth-token: t\r\n\r\n";
        assert_eq!(one.of(head), one.of(head));
        assert_ne!(one.of(head), other.of(head));
        for place in 0..head.len() {
            let mut changed = *head;
            changed[place] ^= 1;
            assert_ne!(one.of(&changed), one.of(head), "{place}");
        }
        assert_eq!(format!("{:?} {one:?}", one.of(head)), "Fingerprint(…) Fingerprints(…)");
    }

    #[test]
    fn what_says_more_than_a_question_is_read_each_time() {
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
            ("traceparent", "odd"),
        ] {
            assert!(!is_repeatable("GET", &[(name, value)]), "{name}: {value}");
        }
    }
}
