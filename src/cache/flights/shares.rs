//! Places that are bounded in all, and of which one caller holds at most half.

use std::collections::HashMap;
use std::sync::Arc;

use crate::request::caller::Caller;
use crate::sync::Mutex;

/// So many places a caller may hold in any case, however few there are.
const LEAST: usize = 2;

/// How many places are held, and by whom.
#[derive(Default)]
pub(super) struct Shares {
    all: usize,
    /// Of the callers that hold any.
    by_caller: HashMap<Caller, usize>,
}

impl Shares {
    /// Takes a place of so many for a caller, unless they are all held, or the caller holds half of them.
    pub(super) fn take(&mut self, caller: Caller, places: usize) -> bool {
        let own = self.by_caller.get(&caller).copied().unwrap_or_default();
        let has_room = self.all < places && own < places.div_ceil(2).max(LEAST);
        if has_room {
            self.all += 1;
            self.by_caller.insert(caller, own + 1);
        }
        has_room
    }

    /// Gives back a place that was taken for a caller.
    pub(super) fn give_back(&mut self, caller: Caller) {
        self.all -= 1;
        if let Some(own) = self.by_caller.get_mut(&caller) {
            *own -= 1;
            if *own == 0 {
                self.by_caller.remove(&caller);
            }
        }
    }
}

/// How many places are held.
pub(super) fn all(shares: &Mutex<Shares>) -> usize {
    shares.lock().all
}

/// A place that is given back when this is dropped.
pub(super) struct Share {
    shares: Arc<Mutex<Shares>>,
    caller: Caller,
}

impl Share {
    /// A place of so many for a caller, unless they are all held, or the caller holds half of them.
    pub(super) fn take(shares: &Arc<Mutex<Shares>>, caller: Caller, places: usize) -> Option<Self> {
        let has_taken = shares.lock().take(caller, places);
        has_taken.then(|| Self { shares: Arc::clone(shares), caller })
    }
}

impl Drop for Share {
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
    fn one_caller_gets_half_of_the_places_and_others_the_rest() {
        let [one, other] = ["a", "b"].map(|token| Callers::new([0; 32]).of_token(&HeaderValue::from_static(token)));
        for (places, half) in [(1, 1), (2, 2), (3, 2), (8, 4), (9, 5)] {
            let mut shares = Shares::default();
            let taken = (0..places).filter(|_| shares.take(one, places)).count();
            assert_eq!(taken, half, "of {places}");
            let rest = (0..places).filter(|_| shares.take(other, places)).count();
            assert_eq!((rest, shares.all), (places - half, places), "of {places}");
            shares.give_back(one);
            assert!(shares.take(one, places) && !shares.take(other, places));
            (0..half).for_each(|_| shares.give_back(one));
            (0..rest).for_each(|_| shares.give_back(other));
            assert!(shares.all == 0 && shares.by_caller.is_empty());
        }
    }
}
