//! Short keyed digests that identify request keys and callers in `Cache-Status` and in the log.
//!
//! The hash keys are random and live as long as the process. So nobody outside can compute a digest, and the digests of
//! two processes cannot be compared.

use std::fmt;

use blake3::{Hash, Hasher};

use super::caller::Caller;
use super::key::RequestKey;

/// A digest of 64 bits as 16 hex digits. It is kept as text, because it is written more often than computed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShortDigest([u8; 16]);

impl ShortDigest {
    fn of(hash: &Hash) -> Self {
        let digit = |place: usize| {
            let byte = hash.as_bytes()[place / 2];
            let half = if place.is_multiple_of(2) { byte >> 4 } else { byte & 0xf };
            b"0123456789abcdef"[usize::from(half)]
        };
        Self(std::array::from_fn(digit))
    }

    pub fn as_str(&self) -> &str {
        // Cannot fail: hex digits are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for ShortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Computes digests.
pub(crate) struct Digests {
    of_keys: [u8; 32],
    of_callers: [u8; 32],
}

impl Digests {
    /// Both keys must be random and secret.
    pub(crate) fn new(of_keys: [u8; 32], of_callers: [u8; 32]) -> Self {
        Self { of_keys, of_callers }
    }

    /// Two request keys have the same digest exactly if they are equal. It does not depend on the caller.
    pub(crate) fn of_key(&self, key: &RequestKey) -> ShortDigest {
        let mut hasher = Hasher::new_keyed(&self.of_keys);
        let headers = key.headers().iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        // The lengths are hashed too, so that two keys cannot be equal by concatenation.
        for part in [key.scope().path().as_bytes(), key.query().as_bytes()].into_iter().chain(headers) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        ShortDigest::of(&hasher.finalize())
    }

    /// The keyed hash of the caller's keyed hash, with another key.
    pub(crate) fn of_caller(&self, caller: Caller) -> ShortDigest {
        ShortDigest::of(&blake3::keyed_hash(&self.of_callers, caller.as_bytes()))
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digests(…)")
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::request::caller::Callers;

    const NAMES: [HeaderName; 2] = [HeaderName::from_static("x-language"), HeaderName::from_static("x-other")];

    fn key(path: &str, query: Option<&str>, headers: &[(&HeaderName, &'static str)]) -> RequestKey {
        let catalogue = Catalogue::for_tests(NAMES.to_vec());
        let (operation, path_match) = catalogue.operation(path).unwrap();
        let headers = headers.iter().map(|&(name, value)| (name.clone(), HeaderValue::from_static(value)));
        let headers: HeaderMap = headers.collect();
        RequestKey::read(&catalogue, operation, path_match, query, &headers, false).unwrap()
    }

    #[test]
    fn digests_are_equal_exactly_if_keys_are() {
        let digests = Digests::new([1; 32], [2; 32]);
        let [language, other] = &NAMES;
        let cases = || {
            [
                key("/v2/p/products", None, &[]),
                key("/v2/q/products", None, &[]),
                key("/v2/p/products", Some("limit=1"), &[]),
                key("/v2/p/products", Some("limit=12"), &[]),
                key("/v2/p/products", None, &[(language, "en")]),
                key("/v2/p/products", None, &[(other, "en")]),
                key("/v2/p/products", None, &[(language, "en"), (other, "en")]),
                key("/v2/p/products", None, &[(language, "")]),
            ]
        };
        let (ones, others) = (cases(), cases());
        for (number, one) in ones.iter().enumerate() {
            for (place, other) in others.iter().enumerate() {
                assert_eq!(digests.of_key(one) == digests.of_key(other), number == place, "{one:?}, {other:?}");
            }
        }
        assert_ne!(digests.of_key(&ones[0]), Digests::new([3; 32], [2; 32]).of_key(&ones[0]), "of another process");
    }

    #[test]
    fn a_digest_is_the_first_eight_bytes_of_a_hash() {
        let hash = blake3::hash(b"");
        let digest = ShortDigest::of(&hash);
        assert_eq!(digest.as_str(), &hash.to_hex()[..16]);
        assert_eq!(
            format!("{digest:?} {:?}", Digests::new([1; 32], [2; 32])),
            format!("{} Digests(…)", digest.as_str())
        );
    }

    #[test]
    fn a_callers_digest_is_sixteen_digits_that_are_not_part_of_its_hash() {
        let caller = Callers::new([1; 32]).of_token(&HeaderValue::from_static("t"));
        let digest = Digests::new([1; 32], [1; 32]).of_caller(caller);
        assert_eq!(digest, Digests::new([9; 32], [1; 32]).of_caller(caller));
        assert_ne!(digest, Digests::new([1; 32], [2; 32]).of_caller(caller));
        let other = Callers::new([1; 32]).of_token(&HeaderValue::from_static("other"));
        assert_ne!(digest, Digests::new([1; 32], [1; 32]).of_caller(other));
        let hash: String = caller.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!hash.contains(digest.as_str()));
        assert!(digest.as_str().len() == 16 && digest.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
