//! A bounded number of places, of which one caller holds at most half.

use std::collections::HashMap;
use std::sync::Arc;

use crate::request::caller::Caller;
use crate::sync::Mutex;

/// The number of places that one caller may hold in any case, even if that is more than half.
const MIN_SHARE: usize = 2;

#[derive(Default)]
pub(super) struct Shares {
    total: usize,
    by_caller: HashMap<Caller, usize>,
}

impl Shares {
    /// Takes one of `places` for a caller. Returns false if all are taken or the caller holds half of them.
    pub(super) fn take(&mut self, caller: Caller, places: usize) -> bool {
        let own = self.by_caller.get(&caller).copied().unwrap_or_default();
        let has_room = self.total < places && own < places.div_ceil(2).max(MIN_SHARE);
        if has_room {
            self.total += 1;
            self.by_caller.insert(caller, own + 1);
        }
        has_room
    }

    pub(super) fn give_back(&mut self, caller: Caller) {
        self.total -= 1;
        if let Some(own) = self.by_caller.get_mut(&caller) {
            *own -= 1;
            if *own == 0 {
                self.by_caller.remove(&caller);
            }
        }
    }
}

pub(super) fn total(shares: &Mutex<Shares>) -> usize {
    shares.lock().total
}

/// A place of a caller. It is given back when this is dropped.
pub(super) struct FlightPlace {
    shares: Arc<Mutex<Shares>>,
    caller: Caller,
}

impl FlightPlace {
    /// Takes one of `places` for a caller. `None` if all are taken or the caller holds half of them.
    pub(super) fn take(shares: &Arc<Mutex<Shares>>, caller: Caller, places: usize) -> Option<Self> {
        let has_taken = shares.lock().take(caller, places);
        has_taken.then(|| Self { shares: Arc::clone(shares), caller })
    }
}

impl Drop for FlightPlace {
    fn drop(&mut self) {
        self.shares.lock().give_back(self.caller);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::request::caller::Callers;

    #[test]
    fn one_caller_gets_half_of_the_places_and_another_the_remaining_ones() {
        let [one, other] = ["a", "b"].map(|token| Callers::new([0; 32]).of_token(&HeaderValue::from_static(token)));
        for (places, half) in [(1, 1), (2, 2), (3, 2), (8, 4), (9, 5)] {
            let mut shares = Shares::default();
            let taken = (0..places).filter(|_| shares.take(one, places)).count();
            assert_eq!(taken, half, "of {places}");
            let remaining = (0..places).filter(|_| shares.take(other, places)).count();
            assert_eq!((remaining, shares.total), (places - half, places), "of {places}");
            shares.give_back(one);
            assert!(shares.take(one, places) && !shares.take(other, places));
            (0..half).for_each(|_| shares.give_back(one));
            (0..remaining).for_each(|_| shares.give_back(other));
            assert!(shares.total == 0 && shares.by_caller.is_empty());
        }
    }
}
