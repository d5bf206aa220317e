//! Bodies that are read whole, and charged as they are read.

use bytes::{Bytes, BytesMut};

use super::Purpose;
use super::account::{Account, Charge};

/// A body that is read whole. Its memory is charged before it is taken.
pub(crate) struct Collected {
    charge: Charge,
    bytes: BytesMut,
    most: usize,
}

impl Collected {
    /// With memory for so many bytes, for a body that has `most` bytes at most. `None` if the client may not have that.
    pub(crate) fn with_capacity(account: &Account, purpose: Purpose, capacity: usize, most: usize) -> Option<Self> {
        let charge = account.try_charge(purpose, capacity)?;
        Some(Self { charge, bytes: BytesMut::with_capacity(capacity), most })
    }

    /// Adds bytes. False if the client may not have the memory for them: then nothing is added.
    pub(crate) fn push(&mut self, data: &[u8]) -> bool {
        let needed = self.bytes.len() + data.len();
        if needed > self.charge.bytes() {
            let capacity = needed.next_power_of_two().min(self.most.max(needed));
            if !self.charge.grow(capacity - self.charge.bytes()) {
                return false;
            }
            self.bytes.reserve(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        true
    }

    /// The whole body. It is charged for as long as anybody has any of it.
    pub(crate) fn finish(self) -> Bytes {
        self.charge.hold(self.bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, ConnectionClass};
    use super::*;

    #[test]
    fn a_body_that_is_collected_is_charged_before_it_has_memory() {
        let budget = Budget::new(8 * 1024);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let mut body = Collected::with_capacity(&account, Purpose::Bodies, 100, 3_500).expect("it may have that");
        for (piece, held) in [(100, 100), (1, 128), (900, 1024), (1_000, 2048), (47, 2048), (1_000, 3_500)] {
            assert!(body.push(&vec![b'x'; piece]));
            assert_eq!(budget.used(), held);
        }
        assert!(!body.push(&[b'x'; 2_000]), "more than half of the budget");
        let whole = body.finish();
        assert_eq!((whole.len(), budget.used()), (3_048, 3_500));
        drop(whole);
        assert_eq!(budget.used(), 0);
        assert!(Collected::with_capacity(&account, Purpose::Bodies, 5_000, 5_000).is_none());
    }

    #[test]
    fn bytes_are_held_until_the_last_of_them_is_gone() {
        let budget = Budget::new(800);
        let bytes = budget.charge(Purpose::Responses, 4).hold(Bytes::from_static(b"text"));
        let last = bytes.slice(3..);
        drop(bytes);
        assert_eq!((&last[..], budget.used()), (&b"t"[..], 4));
        drop(last);
        assert_eq!(budget.used(), 0);
    }
}
