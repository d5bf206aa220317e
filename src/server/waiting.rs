//! Accepted connections that wait because the listener is full. There are only a few. They are served in order of
//! arrival, except two kinds, which are served last and closed first when too many wait:
//!
//! - Connections of a peer address that holds its half of the places. They are accepted only to learn their address, so
//!   that they do not block others in the kernel's queue. The latest one is closed first.
//! - On the internal listeners (metrics and admin), connections that have sent nothing. A probe sends its request
//!   immediately, so clients that open connections again and again do not delay it. The oldest one is closed first,
//!   because it has had the most time.

use std::collections::VecDeque;

use super::registry::Registry;
use crate::net::Accepted;
use crate::request::peer::Peer;

/// How many connections wait here. Further ones wait in the kernel's queue.
pub(super) const MAX_WAITING: usize = 32;

pub(super) struct WaitingConnections<S = Accepted> {
    max_connections: usize,
    is_silent: fn(&S) -> bool,
    queue: VecDeque<(S, Option<Peer>)>,
}

/// In which order connections are served. A later value is served later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    First,
    Silent,
    HoldsHalf,
}

impl<S> WaitingConnections<S> {
    /// For a listener with this connection limit. Connections for which `is_silent` is true are served last.
    pub(super) fn new(max_connections: usize, is_silent: fn(&S) -> bool) -> Self {
        Self { max_connections, is_silent, queue: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn has_room(&self, registry: &Registry) -> bool {
        self.queue.len() < MAX_WAITING || self.queue.iter().any(|it| self.rank(it, registry) > Rank::First)
    }

    /// Adds a connection. If more than [`MAX_WAITING`] wait then, returns one of low rank, which has to be closed.
    pub(super) fn add(&mut self, stream: S, peer: Option<Peer>, registry: &Registry) -> Option<S> {
        self.queue.push_back((stream, peer));
        if self.queue.len() <= MAX_WAITING {
            return None;
        }
        let last = self.queue.iter().rposition(|(_, peer)| self.holds_half(*peer, registry));
        let last = last.or_else(|| self.queue.iter().position(|(stream, _)| (self.is_silent)(stream)))?;
        self.queue.remove(last).map(|(stream, _)| stream)
    }

    /// Takes the next connection to serve.
    pub(super) fn next(&mut self, registry: &Registry) -> Option<(S, Option<Peer>)> {
        let places = self.queue.iter().enumerate();
        let first = places.min_by_key(|(_, it)| self.rank(it, registry)).map(|(place, _)| place)?;
        self.queue.remove(first)
    }

    /// The peers of all waiting connections, in the order in which they will be served.
    pub(super) fn peers(&self, registry: &Registry) -> Vec<Option<Peer>> {
        let mut ranked: Vec<_> = self.queue.iter().map(|it| (self.rank(it, registry), it.1)).collect();
        ranked.sort_by_key(|&(rank, _)| rank);
        ranked.into_iter().map(|(_, peer)| peer).collect()
    }

    fn rank(&self, (stream, peer): &(S, Option<Peer>), registry: &Registry) -> Rank {
        if self.holds_half(*peer, registry) {
            Rank::HoldsHalf
        } else if (self.is_silent)(stream) {
            Rank::Silent
        } else {
            Rank::First
        }
    }

    fn holds_half(&self, peer: Option<Peer>, registry: &Registry) -> bool {
        peer.is_some_and(|peer| registry.holds_half(peer, self.max_connections))
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
    async fn connections_of_a_peer_address_that_holds_half_are_served_last_and_closed_first() {
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
    async fn silent_connections_are_served_last_and_the_oldest_is_closed_first() {
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
