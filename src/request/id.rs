//! Request ids: 32 hex digits, unique in a process and very likely across processes.
//!
//! An id is a keyed hash of a counter, so it must not reveal how many requests there were or which came first.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use highway::{HighwayHash, HighwayHasher, Key};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn new([first, second]: [u64; 2]) -> Self {
        let bits = (u128::from(first) << 64) | u128::from(second);
        let digit = |place: usize| (bits >> (4 * (31 - place)) & 0xf) as u8;
        Self(std::array::from_fn(|place| match digit(place) {
            digit @ 0..=9 => b'0' + digit,
            digit => b'a' + digit - 10,
        }))
    }

    /// The id of the request's span in a trace (W3C Trace Context): the second half of the id. Never zero.
    pub fn span(&self) -> u64 {
        let (_, half) = self.as_str().split_at(16);
        u64::from_str_radix(half, 16).unwrap_or_default().max(1)
    }

    /// The id as a number.
    pub(super) fn bits(&self) -> u128 {
        u128::from_str_radix(self.as_str(), 16).unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        // Cannot fail: hex digits are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

pub struct RequestIds {
    key: Key,
    next: AtomicU64,
}

impl RequestIds {
    /// The key must be random and secret. The same key gives the same ids.
    pub fn new(key: [u8; 32]) -> Self {
        let (words, _) = key.as_chunks::<8>();
        let word = |place: usize| words.get(place).copied().map_or(0, u64::from_le_bytes);
        Self { key: Key(std::array::from_fn(word)), next: AtomicU64::new(0) }
    }

    pub fn next(&self) -> RequestId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        RequestId::new(HighwayHasher::new(self.key).hash128(&number.to_le_bytes()))
    }
}

impl fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Shows neither the key nor the number of requests.
        f.write_str("RequestIds(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ids(key: [u8; 32], number: usize) -> Vec<RequestId> {
        let ids = RequestIds::new(key);
        (0..number).map(|_| ids.next()).collect()
    }

    #[test]
    fn spans_differ_and_are_never_zero() {
        let spans: HashSet<u64> = ids([0; 32], 1_000).iter().map(RequestId::span).collect();
        assert!(spans.len() == 1_000 && !spans.contains(&0));
        assert_eq!(RequestId::new([1, 0]).span(), 1);
    }

    #[test]
    fn an_id_is_32_digits_and_the_second_half_is_the_span() {
        let id = RequestId::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        assert_eq!(id.as_str(), "0123456789abcdeffedcba9876543210");
        assert_eq!(id.span(), 0xfedc_ba98_7654_3210);
    }

    #[test]
    fn ids_show_neither_their_order_nor_their_number() {
        let ids = ids([7; 32], 4_096);
        let texts: HashSet<&str> = ids.iter().map(RequestId::as_str).collect();
        assert_eq!(texts.len(), ids.len(), "all ids differ");
        let bits = |id: &RequestId| u128::from_str_radix(id.as_str(), 16).unwrap();
        let pairs = || ids.iter().zip(&ids[1..]).map(|(one, next)| (bits(one), bits(next)));
        // Each bit changes in half of the pairs, and the second id is larger in half of them, within five standard
        // deviations.
        for place in 0..128 {
            let changes = pairs().filter(|(one, next)| (one ^ next) >> place & 1 == 1).count();
            assert!(changes.abs_diff(2_048) < 160, "bit {place} changes {changes} times");
        }
        let rises = pairs().filter(|(one, next)| one < next).count();
        assert!(rises.abs_diff(2_048) < 160, "{rises} of 4,095 are larger than the one before");
        let distances: HashSet<u128> = pairs().map(|(one, next)| next.wrapping_sub(one)).collect();
        assert_eq!(distances.len(), ids.len() - 1, "no difference occurs twice");
    }

    #[test]
    fn another_key_gives_other_ids_and_the_same_key_the_same() {
        assert_eq!(ids([7; 32], 9), ids([7; 32], 9));
        let both: HashSet<String> =
            [ids([7; 32], 999), ids([8; 32], 999)].concat().iter().map(|id| id.as_str().to_owned()).collect();
        assert_eq!(both.len(), 2 * 999);
        assert_eq!(format!("{:?}", RequestIds::new([7; 32])), "RequestIds(…)");
    }
}
