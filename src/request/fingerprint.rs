//! Keyed fingerprints of bytes that contain a credential: a request's head, or a token. They recognise the same bytes
//! again, so that the bytes themselves need not be kept.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use highway::{HighwayHash, HighwayHasher, Key};

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u64; 4]);

impl Fingerprint {
    /// An index below `places`, and 64 other bits that differ for nearly all fingerprints with the same index.
    pub fn mark(&self, places: usize) -> (usize, u64) {
        // Cannot fail: the remainder is smaller than a `usize`.
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
        // The bytes contain a credential, so nothing of the hash is shown.
        f.write_str("Fingerprint(…)")
    }
}

/// For maps with fingerprints as keys. They need no further hashing.
pub(crate) type BuildFingerprintHasher = BuildHasherDefault<FingerprintHasher>;

#[derive(Default)]
pub(crate) struct FingerprintHasher(u64);

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

/// Computes fingerprints.
///
/// It uses HighwayHash: a token has thousands of bytes, and a cryptographic hash of them would cost more than the rest
/// of a hit. The only requirement is that different inputs have different fingerprints. Nobody sees a fingerprint. To
/// be taken for another caller, an attacker would have to produce that caller's fingerprint, knowing neither the key of
/// 256 bits nor the caller's token.
pub struct Fingerprints(Key);

impl Fingerprints {
    /// The key must be random and secret.
    pub fn new(key: [u8; 32]) -> Self {
        let (words, _) = key.as_chunks::<8>();
        Self(Key(std::array::from_fn(|place| words.get(place).copied().map_or(0, u64::from_le_bytes))))
    }

    pub fn of(&self, bytes: &[u8]) -> Fingerprint {
        Fingerprint(HighwayHasher::new(self.0).hash256(bytes))
    }

    /// The fingerprint of bytes that come in parts. It is that of their concatenation.
    pub(crate) fn of_parts(&self) -> PartialFingerprint {
        PartialFingerprint(HighwayHasher::new(self.0))
    }
}

/// A fingerprint while its parts arrive.
pub(crate) struct PartialFingerprint(HighwayHasher);

impl PartialFingerprint {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.append(part);
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize256())
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn fingerprints_differ_by_each_byte_and_by_key() {
        let (one, other) = (Fingerprints::new([1; 32]), Fingerprints::new([2; 32]));
        let head = b"GET / HTTP/1.1\r\nx-auth-token: t\r\n\r\n";
        assert_eq!(one.of(head), one.of(head));
        let mut parts = one.of_parts();
        head.chunks(7).for_each(|part| parts.add(part));
        assert_eq!(parts.finish(), one.of(head), "in parts");
        assert_ne!(one.of(head), other.of(head));
        for place in 0..head.len() {
            let mut changed = *head;
            changed[place] ^= 1;
            assert_ne!(one.of(&changed), one.of(head), "{place}");
        }
        assert_eq!(format!("{:?} {one:?}", one.of(head)), "Fingerprint(…) Fingerprints(…)");
    }

    #[test]
    fn fingerprints_are_spread_over_places_and_maps() {
        let (fingerprints, hasher) = (Fingerprints::new([1; 32]), BuildFingerprintHasher::default());
        let all = || (0..100_u8).map(|number| fingerprints.of(&[number]));
        assert_eq!(all().map(|one| hasher.hash_one(one)).collect::<HashSet<_>>().len(), 100);
        let marks: Vec<_> = all().map(|one| one.mark(7)).collect();
        let places: HashSet<usize> = marks.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, (0..7).collect());
        assert_eq!(marks.iter().map(|(_, bits)| bits).collect::<HashSet<_>>().len(), 100);
    }
}
