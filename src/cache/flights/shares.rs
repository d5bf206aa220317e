//! A bounded number of places, of which one caller holds at most half, and unknown callers together at most half.

use std::sync::Arc;

use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::sync::Mutex;

/// The number of places that one caller, or unknown callers together, may hold in any case, even if that is more than
/// half.
const MIN_SHARE: usize = 2;

/// A caller that takes a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightCaller {
    pub caller: Caller,
    /// Whether upstream has answered the caller successfully. Credentials can be invented without limit, so that half
    /// of the places is reserved for the others.
    pub is_known: bool,
}

#[derive(Default)]
pub(super) struct Shares {
    total: usize,
    of_unknown: usize,
    by_caller: HashMap<Caller, usize>,
}

impl Shares {
    /// Takes one of `places` for a caller. Returns false if all are taken, if the caller holds half of them, or if it is
    /// unknown and such callers hold half of them.
    pub(super) fn take(&mut self, FlightCaller { caller, is_known }: FlightCaller, places: usize) -> bool {
        let own = self.by_caller.get(&caller).copied().unwrap_or_default();
        let half = places.div_ceil(2).max(MIN_SHARE);
        let has_room = self.total < places && own < half && (is_known || self.of_unknown < half);
        if has_room {
            self.total += 1;
            self.of_unknown += usize::from(!is_known);
            self.by_caller.insert(caller, own + 1);
        }
        has_room
    }

    pub(super) fn give_back(&mut self, FlightCaller { caller, is_known }: FlightCaller) {
        self.total -= 1;
        self.of_unknown -= usize::from(!is_known);
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
    caller: FlightCaller,
}

impl FlightPlace {
    /// Takes one of `places` for a request that waits. `None` if all are taken or its caller holds half of them.
    pub(super) fn take(shares: &Arc<Mutex<Shares>>, caller: Caller, places: usize) -> Option<Self> {
        // Unknown callers wait only for calls of their own.
        let caller = FlightCaller { caller, is_known: true };
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

    fn callers<const N: usize>(tokens: [&'static str; N], is_known: bool) -> [FlightCaller; N] {
        let callers = Callers::new([0; 32]);
        tokens.map(|token| FlightCaller { caller: callers.of_token(&HeaderValue::from_static(token)), is_known })
    }

    #[test]
    fn unknown_callers_together_get_half_of_the_places() {
        let unknown = callers(["a", "b", "c", "d", "e", "f", "g", "h"], false);
        let [known, other] = callers(["y", "z"], true);
        for (places, half) in [(1, 1), (2, 2), (3, 2), (8, 4)] {
            let mut shares = Shares::default();
            let taken: Vec<_> = unknown.into_iter().filter(|caller| shares.take(*caller, places)).collect();
            assert_eq!(taken.len(), half, "of {places}");
            let remaining = [known, other].into_iter().cycle().take(places);
            let remaining: Vec<_> = remaining.filter(|caller| shares.take(*caller, places)).collect();
            assert_eq!((remaining.len(), shares.total), (places - half, places), "of {places}");
            taken.into_iter().chain(remaining).for_each(|caller| shares.give_back(caller));
            assert!(shares.total == 0 && shares.of_unknown == 0 && shares.by_caller.is_empty());
        }
    }

    #[test]
    fn one_caller_gets_half_of_the_places_and_another_the_remaining_ones() {
        let [one, other] = callers(["a", "b"], true);
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
