//! Request ids: 32 hex digits, unique within a process and very likely beyond it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The id of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    fn new(process: u64, number: u64) -> Self {
        let numbers = (u128::from(process) << 64) | u128::from(number);
        let digit = |place: usize| (numbers >> (4 * (31 - place)) & 0xf) as u8;
        Self(std::array::from_fn(|place| match digit(place) {
            digit @ 0..=9 => b'0' + digit,
            digit => b'a' + digit - 10,
        }))
    }

    /// The number by which the request is known in a trace that it is part of (W3C Trace Context, parent id): another for
    /// each request, and never zero.
    pub fn span(&self) -> u64 {
        let half = |digits| u64::from_str_radix(digits, 16).unwrap_or_default();
        let (process, number) = self.as_str().split_at(16);
        // Odd, so that different numbers stay different; and those of two processes don't come one after the other.
        let spread = half(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (half(process) ^ spread).max(1)
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        // Digits are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Hands out request ids.
#[derive(Debug)]
pub struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// With a number that tells this process from others.
    pub fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(0) }
    }

    /// The next id.
    pub fn next(&self) -> RequestId {
        RequestId::new(self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_differ_and_are_never_zero() {
        let ids = RequestIds::new(0);
        let spans: std::collections::HashSet<u64> = (0..1_000).map(|_| ids.next().span()).collect();
        assert!(spans.len() == 1_000 && !spans.contains(&0));
    }

    #[test]
    fn an_id_is_the_process_and_a_number() {
        let ids = RequestIds::new(0x0123_4567_89ab_cdef);
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000000");
        assert_eq!(ids.next().as_str(), "0123456789abcdef0000000000000001");
        assert_eq!(RequestId::new(u64::MAX, u64::MAX - 1).as_str(), format!("{}e", "f".repeat(31)));
    }
}
