//! Connections that have been accepted while there was no room for them. They are few. They wait in order of arrival, but for two
//! kinds, which are served last, and closed when too many wait:
//!
//! - Those of a peer address that holds its half of the places. They are accepted only to see whose they are, so
//!   that they do not stand in the way of others. The last to come is closed first.
//! - On the listeners for metrics and for the operator, those that have sent nothing. A probe sends its request at once; so
//!   whoever opens connections again and again delays no probe. The first to come is closed first: it had the most time.

use std::collections::VecDeque;

use super::registry::Registry;
use crate::net::Accepted;
use crate::request::peer::Peer;

/// How many wait here. Further ones wait in the kernel.
pub(super) const MAX_WAITING: usize = 32;

/// Those that wait.
pub(super) struct WaitingConnections<S = Accepted> {
    max_connections: usize,
    is_silent: fn(&S) -> bool,
    queue: VecDeque<(S, Option<Peer>)>,
}

/// Why a connection comes last. A later reason ranks below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It does not.
    First,
    Silent,
    HasItsHalf,
}

impl<S> WaitingConnections<S> {
    /// For room on a listener that may have so many connections. Those that are silent come last.
    pub(super) fn new(max_connections: usize, is_silent: fn(&S) -> bool) -> Self {
        Self { max_connections, is_silent, queue: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether another may be added.
    pub(super) fn has_room(&self, registry: &Registry) -> bool {
        self.queue.len() < MAX_WAITING || self.queue.iter().any(|it| self.rank(it, registry) > Rank::First)
    }

    /// Adds one. Beyond [`MAX_WAITING`] one of those that come last is given back, to be closed.
    pub(super) fn add(&mut self, stream: S, peer: Option<Peer>, registry: &Registry) -> Option<S> {
        self.queue.push_back((stream, peer));
        if self.queue.len() <= MAX_WAITING {
            return None;
        }
        let last = self.queue.iter().rposition(|(_, peer)| self.has_its_half(*peer, registry));
        let last = last.or_else(|| self.queue.iter().position(|(stream, _)| (self.is_silent)(stream)))?;
        self.queue.remove(last).map(|(stream, _)| stream)
    }

    /// The next to have room.
    pub(super) fn next(&mut self, registry: &Registry) -> Option<(S, Option<Peer>)> {
        let places = self.queue.iter().enumerate();
        let first = places.min_by_key(|(_, it)| self.rank(it, registry)).map(|(place, _)| place)?;
        self.queue.remove(first)
    }

    /// Whose they are, in the order in which they are to have room.
    pub(super) fn peers(&self, registry: &Registry) -> Vec<Option<Peer>> {
        let mut ranked: Vec<_> = self.queue.iter().map(|it| (self.rank(it, registry), it.1)).collect();
        ranked.sort_by_key(|&(rank, _)| rank);
        ranked.into_iter().map(|(_, peer)| peer).collect()
    }

    fn rank(&self, (stream, peer): &(S, Option<Peer>), registry: &Registry) -> Rank {
        if self.has_its_half(*peer, registry) {
            Rank::HasItsHalf
        } else if (self.is_silent)(stream) {
            Rank::Silent
        } else {
            Rank::First
        }
    }

    fn has_its_half(&self, peer: Option<Peer>, registry: &Registry) -> bool {
        peer.is_some_and(|peer| registry.has_its_half(peer, self.max_connections))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::registry::OpenConnection;
    use super::super::shed::MinimumAge;
    use super::*;
    use crate::budget::{Account, Budget};

    const MINIMUM: MinimumAge = MinimumAge { idle: [Duration::ZERO; 3], blocked: Duration::ZERO };

    #[tokio::test]
    async fn those_whose_peer_address_holds_its_half_come_last_and_leave_first() {
        let [greedy, other] = [1, 2].map(|last| Some(Peer::V4([10, 0, 0, last].into())));
        let registry = Registry::new(MINIMUM);
        let connection =
            || registry.add(OpenConnection::new(Account::open(&Budget::new(1 << 20), greedy), Arc::default()));
        let open = [connection(), connection()];
        let mut waiting = WaitingConnections::new(4, |_| false);
        for (name, peer) in [(0, greedy), (1, other), (2, greedy), (3, None)] {
            assert_eq!(waiting.add(name, peer, &registry), None);
        }
        assert_eq!(waiting.peers(&registry), [other, None, greedy, greedy]);
        for name in 4..MAX_WAITING {
            assert_eq!(waiting.add(name, other, &registry), None);
        }
        assert!(waiting.has_room(&registry));
        assert_eq!(waiting.add(100, other, &registry), Some(2));
        assert_eq!(waiting.add(101, greedy, &registry), Some(101));
        assert_eq!(waiting.add(102, other, &registry), Some(0));
        assert!(!waiting.has_room(&registry), "all that wait now have a right to");
        drop(open);
        assert_eq!(waiting.next(&registry), Some((1, other)));
        assert_eq!(waiting.next(&registry), Some((3, None)));
    }

    #[tokio::test]
    async fn a_peer_address_that_waits_alone_gets_more_than_its_half() {
        let greedy = Some(Peer::V4([10, 0, 0, 1].into()));
        let registry = Registry::new(MINIMUM);
        let _open = registry.add(OpenConnection::new(Account::open(&Budget::new(1 << 20), greedy), Arc::default()));
        let mut waiting = WaitingConnections::new(2, |()| false);
        waiting.add((), greedy, &registry);
        assert_eq!(waiting.next(&registry), Some(((), greedy)));
        assert_eq!(waiting.next(&registry), None);
    }

    #[tokio::test]
    async fn those_that_have_sent_nothing_come_after_others_and_the_oldest_leaves_first() {
        let registry = Registry::new(MINIMUM);
        let mut waiting = WaitingConnections::new(4, |name: &usize| *name < 100);
        for name in 0..MAX_WAITING - 1 {
            assert_eq!(waiting.add(name, None, &registry), None);
        }
        assert_eq!(waiting.add(100, None, &registry), None);
        assert_eq!(waiting.add(101, None, &registry), Some(0));
        assert_eq!(waiting.add(50, None, &registry), Some(1));
        let order: Vec<_> = std::iter::from_fn(|| waiting.next(&registry).map(|(name, _)| name)).collect();
        assert_eq!(order[..3], [100, 101, 2]);
        assert_eq!(order.last(), Some(&50));
    }
}
