//! Chooses which connections to close when there are too many. Pure: the time is an argument, and nothing is closed
//! here.
//!
//! The order: first, connections of a peer address that holds more than half of all; then those of the class that holds
//! most. Within a class, the connection that has been idle longest comes first. If none has been idle long enough, it
//! is the one whose client has read nothing for the longest time. A connection with a request in progress is never
//! chosen while its client reads.

use std::time::Duration;

use tokio::time::Instant;

use crate::budget::ConnectionClass;
use crate::random::HashMap;
use crate::request::peer::Peer;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ActivityState {
    /// Since when no request was received. While a head is incomplete: since its first byte.
    Idle(Instant),
    /// Since when the client has read nothing, although there is something to read.
    Blocked(Instant),
    /// A request is in progress.
    Busy,
}

impl ActivityState {
    pub(super) fn is_idle(self) -> bool {
        matches!(self, Self::Idle(_))
    }

    /// Since when the connection could be closed.
    pub(super) fn since(self) -> Option<Instant> {
        match self {
            Self::Idle(since) | Self::Blocked(since) => Some(since),
            Self::Busy => None,
        }
    }
}

/// A snapshot of an open connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) peer: Option<Peer>,
    pub(super) class: ConnectionClass,
    /// Its share in the sums: 1, or the bytes charged to it.
    pub(super) weight: usize,
    pub(super) activity: ActivityState,
}

/// How long a connection must have been idle or blocked before it may be closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct MinimumAge {
    /// By class, in the order of [`ConnectionClass::ALL`].
    pub(super) idle: [Duration; 3],
    pub(super) blocked: Duration,
}

/// Chooses connections one after the other from a snapshot.
pub(super) struct ShedOrder {
    /// The oldest first.
    candidates: Vec<Candidate>,
    by_peer: HashMap<Peer, usize>,
    by_class: [usize; 3],
    minimum: MinimumAge,
    now: Instant,
}

impl ShedOrder {
    pub(super) fn new(mut candidates: Vec<Candidate>, minimum: MinimumAge, now: Instant) -> Self {
        candidates.sort_by_key(|candidate| (candidate.activity.since(), candidate.id));
        let (mut by_peer, by_class) = (HashMap::default(), weigh(candidates.iter()));
        for candidate in &candidates {
            if let Some(peer) = candidate.peer {
                *by_peer.entry(peer).or_default() += candidate.weight;
            }
        }
        Self { candidates, by_peer, by_class, minimum, now }
    }

    /// The next connection to close, of any peer.
    pub(super) fn any(&mut self) -> Option<u64> {
        let is_over_half = |weight: usize| weight.saturating_mul(2) > self.total();
        let greedy = self.by_peer.iter().find(|&(_, &weight)| is_over_half(weight)).map(|(&peer, _)| peer);
        let index = greedy.and_then(|peer| self.find(Some(peer))).or_else(|| self.find(None))?;
        Some(self.take(index))
    }

    /// The next connection to close of this peer address.
    pub(super) fn of(&mut self, peer: Peer) -> Option<u64> {
        let index = self.find(Some(peer))?;
        Some(self.take(index))
    }

    fn total(&self) -> usize {
        self.by_class.iter().sum()
    }

    fn take(&mut self, index: usize) -> u64 {
        let taken = self.candidates.remove(index);
        self.by_class[taken.class as usize] -= taken.weight;
        if let Some(weight) = taken.peer.and_then(|peer| self.by_peer.get_mut(&peer)) {
            *weight -= taken.weight;
        }
        taken.id
    }

    /// The index of the next connection to close, of all or of one peer address.
    fn find(&self, peer: Option<Peer>) -> Option<usize> {
        let is_among = |candidate: &Candidate| peer.is_none() || candidate.peer == peer;
        let by_class = match peer {
            None => self.by_class,
            Some(_) => weigh(self.candidates.iter().filter(|candidate| is_among(candidate))),
        };
        let mut classes = ConnectionClass::ALL;
        // The sort is stable: of two classes that hold as much, the lower one comes first.
        classes.sort_by_key(|&class| std::cmp::Reverse(by_class[class as usize]));
        classes.into_iter().find_map(|class| {
            let find = |is_due: &dyn Fn(&Candidate) -> bool| {
                let matches = |it: &Candidate| it.class == class && it.weight > 0 && is_among(it) && is_due(it);
                self.candidates.iter().position(matches)
            };
            let MinimumAge { idle, blocked } = self.minimum;
            let is_idle = |it: &Candidate| {
                matches!(it.activity, ActivityState::Idle(since) if self.is_past(since, idle[class as usize]))
            };
            let is_blocked = |it: &Candidate| {
                matches!(it.activity, ActivityState::Blocked(since) if self.is_past(since, blocked))
            };
            find(&is_idle).or_else(|| find(&is_blocked))
        })
    }

    fn is_past(&self, since: Instant, minimum: Duration) -> bool {
        self.now.checked_duration_since(since).is_some_and(|age| age >= minimum)
    }
}

/// Total weights by class, in the order of [`ConnectionClass::ALL`].
fn weigh<'c>(candidates: impl Iterator<Item = &'c Candidate>) -> [usize; 3] {
    let mut by_class = [0; 3];
    for candidate in candidates {
        by_class[candidate.class as usize] += candidate.weight;
    }
    by_class
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;

    const MINIMUM: MinimumAge = MinimumAge { idle: [Duration::from_secs(1); 3], blocked: Duration::from_secs(2) };

    fn peer(last: u8) -> Option<Peer> {
        Some(Peer::V4([10, 0, 0, last].into()))
    }

    /// Ages in seconds.
    #[derive(Clone, Copy, Debug)]
    enum Doing {
        Idle(u64),
        Blocked(u64),
        Busy,
    }

    fn candidates(now: Instant, all: &[(Option<Peer>, ConnectionClass, Doing)]) -> Vec<Candidate> {
        let at = |age| now - Duration::from_secs(age);
        let candidate = |(id, &(peer, class, doing)): (usize, &(Option<Peer>, ConnectionClass, Doing))| Candidate {
            id: id as u64,
            peer,
            class,
            weight: 1,
            activity: match doing {
                Doing::Idle(age) => ActivityState::Idle(at(age)),
                Doing::Blocked(age) => ActivityState::Blocked(at(age)),
                Doing::Busy => ActivityState::Busy,
            },
        };
        all.iter().enumerate().map(candidate).collect()
    }

    fn now() -> Instant {
        Clock::System.timer_now() + Duration::from_secs(10_000)
    }

    fn selection(all: &[(Option<Peer>, ConnectionClass, Doing)]) -> ShedOrder {
        let now = now();
        ShedOrder::new(candidates(now, all), MINIMUM, now)
    }

    use ConnectionClass::{Known, NoCredential, Unknown};
    use Doing::{Blocked, Busy, Idle};

    #[test]
    fn the_longest_idle_connection_is_closed_first_and_busy_ones_are_never_closed() {
        let mut selection = selection(&[
            (None, Known, Idle(3)),
            (None, Known, Busy),
            (None, Known, Idle(0)),
            (None, Known, Blocked(9)),
            (None, Known, Idle(5)),
            (None, Known, Blocked(1)),
        ]);
        let chosen: Vec<_> = std::iter::from_fn(|| selection.any()).collect();
        assert_eq!(chosen, [4, 0, 3]);
    }

    #[test]
    fn each_class_has_a_minimum_age_of_its_own() {
        let now = now();
        let all = candidates(now, &[(None, NoCredential, Idle(2)), (None, Unknown, Idle(0)), (None, Known, Idle(2))]);
        let minimum = MinimumAge { idle: [3, 0, 2].map(Duration::from_secs), ..MINIMUM };
        let mut selection = ShedOrder::new(all, minimum, now);
        let chosen: Vec<_> = std::iter::from_fn(|| selection.any()).collect();
        assert_eq!(chosen, [1, 2]);
    }

    #[test]
    fn connections_of_the_class_that_holds_most_are_closed_first() {
        let mut selection = selection(&[
            (None, Known, Idle(9)),
            (None, NoCredential, Idle(1)),
            (None, Unknown, Busy),
            (None, Unknown, Busy),
            (None, Unknown, Idle(2)),
            (None, Known, Idle(8)),
        ]);
        // Unknown holds three. Then it holds as many as Known and is the lower class. Then it has none that may be
        // closed.
        let chosen: Vec<_> = std::iter::from_fn(|| selection.any()).collect();
        assert_eq!(chosen, [4, 0, 1, 5]);
    }

    #[test]
    fn connections_of_a_peer_address_that_holds_more_than_half_are_closed_first() {
        let mut selection = selection(&[
            (peer(1), Known, Idle(1)),
            (peer(1), Known, Idle(2)),
            (peer(1), Known, Busy),
            (peer(2), Known, Idle(9)),
            (None, NoCredential, Idle(9)),
        ]);
        // Three of five, then two of four, which is not more than half.
        assert_eq!(selection.any(), Some(1));
        assert_eq!(selection.any(), Some(3));
        assert_eq!(selection.of(Peer::V4([10, 0, 0, 1].into())), Some(0));
        assert_eq!(selection.of(Peer::V4([10, 0, 0, 1].into())), None);
        assert_eq!(selection.any(), Some(4));
    }

    #[test]
    fn a_connection_of_weight_zero_is_not_closed() {
        let now = now();
        let mut all = candidates(now, &[(None, Known, Idle(9)), (None, NoCredential, Idle(8)), (None, Known, Idle(2))]);
        for (candidate, weight) in all.iter_mut().zip([0, 7, 5]) {
            candidate.weight = weight;
        }
        let mut selection = ShedOrder::new(all, MINIMUM, now);
        let chosen: Vec<_> = std::iter::from_fn(|| selection.any()).collect();
        assert_eq!(chosen, [1, 2]);
    }

    fn doing() -> impl Strategy<Value = Doing> {
        prop_oneof![(0..5u64).prop_map(Idle), (0..5u64).prop_map(Blocked), Just(Busy)]
    }

    fn connections() -> impl Strategy<Value = Vec<(Option<Peer>, ConnectionClass, Doing)>> {
        let peers = prop_oneof![Just(None), Just(peer(1)), Just(peer(2)), Just(peer(3))];
        let classes = proptest::sample::select(ConnectionClass::ALL.to_vec());
        proptest::collection::vec((peers, classes, doing()), 0..40)
    }

    fn may_go(doing: Doing) -> bool {
        match doing {
            Idle(age) => age >= 1,
            Blocked(age) => age >= 2,
            Busy => false,
        }
    }

    proptest! {
        #[test]
        fn exactly_the_connections_that_may_be_closed_are_chosen_once(all in connections()) {
            let mut selection = selection(&all);
            let mut chosen: Vec<_> = std::iter::from_fn(|| selection.any()).collect();
            chosen.sort_unstable();
            let may: Vec<_> = (0..all.len()).filter(|&id| may_go(all[id].2)).map(|id| id as u64).collect();
            prop_assert_eq!(chosen, may);
        }

        #[test]
        fn the_first_choice_follows_the_documented_order(all in connections()) {
            let Some(chosen) = selection(&all).any() else { return Ok(()) };
            let (its_peer, its_class, its_doing) = all[chosen as usize];
            let count = |peer: Option<Peer>| all.iter().filter(|it| it.0 == peer).count();
            let greedy = [peer(1), peer(2), peer(3)].into_iter().find(|&peer| 2 * count(peer) > all.len());
            let greedy = greedy.filter(|&peer| all.iter().any(|it| it.0 == peer && may_go(it.2)));
            if let Some(greedy) = greedy {
                prop_assert_eq!(its_peer, greedy);
            }
            let among: Vec<_> = all.iter().filter(|it| greedy.is_none_or(|peer| it.0 == peer)).collect();
            let size = |class| among.iter().filter(|it| it.1 == class).count();
            for class in ConnectionClass::ALL {
                if among.iter().any(|it| it.1 == class && may_go(it.2)) {
                    prop_assert!(size(class) <= size(its_class));
                }
            }
            for other in among.iter().filter(|it| it.1 == its_class && may_go(it.2)) {
                match (its_doing, other.2) {
                    (Idle(age), Idle(others)) | (Blocked(age), Blocked(others)) => prop_assert!(age >= others),
                    (Blocked(_), Idle(_)) => prop_assert!(false, "an idle one was spared"),
                    _ => {}
                }
            }
        }
    }
}
