//! Buffers for complete bodies. Memory must be charged before it is allocated.

use bytes::{Bytes, BytesMut};

use super::Purpose;
use super::account::{Account, Charge};

pub(crate) struct Collected {
    /// At least `capacity`.
    charge: Charge,
    bytes: BytesMut,
    /// What is allocated, in bytes.
    capacity: usize,
    max: usize,
}

impl Collected {
    /// Allocates `capacity` bytes for a body of at most `max` bytes. `None` if the client may not have the memory.
    pub(crate) fn with_capacity(account: &Account, purpose: Purpose, capacity: usize, max: usize) -> Option<Self> {
        Self::with_charge(account.try_charge(purpose, capacity)?, capacity, max)
    }

    /// Allocates `capacity` bytes for a body of at most `max` bytes, for which memory has been charged before. `None` if
    /// it needs more, and the client may not have that.
    pub(crate) fn with_charge(mut charge: Charge, capacity: usize, max: usize) -> Option<Self> {
        let more = capacity.saturating_sub(charge.bytes());
        let bytes = || BytesMut::with_capacity(capacity);
        (more == 0 || charge.grow(more)).then(|| Self { charge, bytes: bytes(), capacity, max })
    }

    /// Adds bytes. Returns false, and adds nothing, if the client may not have the memory.
    pub(crate) fn push(&mut self, data: &[u8]) -> bool {
        let needed = self.bytes.len() + data.len();
        if needed > self.capacity {
            let capacity = needed.next_power_of_two().min(self.max.max(needed));
            let more = capacity.saturating_sub(self.charge.bytes());
            if more > 0 && !self.charge.grow(more) {
                return false;
            }
            self.bytes.reserve(capacity - self.bytes.len());
            self.capacity = capacity;
        }
        self.bytes.extend_from_slice(data);
        true
    }

    /// Returns the body. The charge ends when the last clone or slice of it is dropped.
    pub(crate) fn finish(mut self) -> Bytes {
        self.charge.shrink_to(self.capacity);
        self.charge.hold(self.bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, ConnectionClass};
    use super::*;

    #[test]
    fn memory_is_charged_before_it_is_allocated() {
        let budget = Budget::new(8 * 1024);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let mut body = Collected::with_capacity(&account, Purpose::Bodies, 100, 3_500).expect("it may have that");
        for (piece, held) in [(100, 100), (1, 128), (900, 1024), (1_000, 2048), (47, 2048), (1_000, 3_500)] {
            assert!(body.push(&vec![b'x'; piece]));
            assert_eq!(budget.used(), held);
        }
        assert!(!body.push(&[b'x'; 2_000]), "more than half of the budget");
        let complete = body.finish();
        assert_eq!((complete.len(), budget.used()), (3_048, 3_500));
        drop(complete);
        assert_eq!(budget.used(), 0);
        assert!(Collected::with_capacity(&account, Purpose::Bodies, 5_000, 5_000).is_none());
    }

    #[test]
    fn memory_that_was_charged_before_is_used_first_and_the_rest_is_returned() {
        let budget = Budget::new(8 * 1024);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let reserved = || account.try_charge(Purpose::Responses, 2_048).expect("it may have that");
        let mut body = Collected::with_charge(reserved(), 0, 3_500).expect("it has been charged");
        // The client may have nothing more.
        let others = account.charge(Purpose::Requests, 4_000);
        for (piece, is_held) in [(1_900, true), (200, false)] {
            assert_eq!((body.push(&vec![b'x'; piece]), budget.used()), (is_held, 6_048), "{piece}");
        }
        drop(others);
        assert!(body.push(b"x"));
        let complete = body.finish();
        assert_eq!((complete.len(), budget.used()), (1_901, 2_048));
        drop(complete);
        let declared = Collected::with_charge(reserved(), 300, 3_500).expect("it has been charged").finish();
        assert_eq!(budget.used(), 300);
        drop(declared);
        assert!(Collected::with_charge(reserved(), 5_000, 5_000).is_none());
    }

    #[test]
    fn bytes_are_charged_until_the_last_slice_is_dropped() {
        let budget = Budget::new(800);
        let bytes = budget.charge(Purpose::Responses, 4).hold(Bytes::from_static(b"text"));
        let last = bytes.slice(3..);
        drop(bytes);
        assert_eq!((&last[..], budget.used()), (&b"t"[..], 4));
        drop(last);
        assert_eq!(budget.used(), 0);
    }
}
