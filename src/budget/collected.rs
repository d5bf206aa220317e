//! Buffers for complete bodies. Memory must be charged before it is allocated.

use bytes::{Bytes, BytesMut};

use super::Purpose;
use super::account::{Account, Charge};

pub(crate) struct Collected {
    charge: Charge,
    bytes: BytesMut,
    max: usize,
}

impl Collected {
    /// Allocates `capacity` bytes for a body of at most `max` bytes. `None` if the client may not have the memory.
    pub(crate) fn with_capacity(account: &Account, purpose: Purpose, capacity: usize, max: usize) -> Option<Self> {
        let charge = account.try_charge(purpose, capacity)?;
        Some(Self { charge, bytes: BytesMut::with_capacity(capacity), max })
    }

    /// Adds bytes. Returns false, and adds nothing, if the client may not have the memory.
    pub(crate) fn push(&mut self, data: &[u8]) -> bool {
        let needed = self.bytes.len() + data.len();
        if needed > self.charge.bytes() {
            let capacity = needed.next_power_of_two().min(self.max.max(needed));
            if !self.charge.grow(capacity - self.charge.bytes()) {
                return false;
            }
            self.bytes.reserve(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        true
    }

    /// Returns the body. The charge ends when the last clone or slice of it is dropped.
    pub(crate) fn finish(self) -> Bytes {
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
