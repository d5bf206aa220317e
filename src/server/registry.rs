//! The open connections of a listener, and requests to close some of them for others.
//!
//! [`Registry::shed_bytes`] and [`Registry::shed_one`] may be called by any part of the server that lacks something
//! that connections hold. `shed.rs` chooses the connections. `serve.rs` closes them: it checks with
//! [`OpenConnection::is_still_chosen`] that no request has arrived since, and then ends them as at a timeout.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::activity::ConnectionActivity;
use super::memory::CONNECTION;
use super::shed::{Candidate, MinimumAge, ShedOrder};
use crate::budget::{Account, Charge, Purpose, Shortage};
use crate::random::HashMap;
use crate::request::half_close::HalfClose;
use crate::request::peer::Peer;
use crate::sync::{Mutex, MutexGuard};

pub(super) struct Registry {
    minimum: MinimumAge,
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Default)]
struct Open {
    connections: HashMap<u64, Arc<OpenConnection>>,
    by_peer: HashMap<Peer, usize>,
    next_id: u64,
}

pub(super) struct OpenConnection {
    activity: Arc<ConnectionActivity>,
    account: Account,
    /// The memory that the connection takes while it is open.
    charge: Mutex<Charge>,
    /// When this connection was requested to close.
    close_requested_at: Mutex<Option<Instant>>,
    close_request: Notify,
}

/// How many connections are closed at once for memory: each choice scans all connections.
const MAX_AT_ONCE: usize = 32;

/// How the connections of classes and peers are added up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Number,
    Bytes,
}

impl OpenConnection {
    /// A connection that was just accepted. `half_close` notifies the gateway when the client has closed its sending
    /// side.
    pub(super) fn new(account: Account, half_close: Arc<HalfClose>) -> Self {
        let charge = Mutex::new(account.charge(Purpose::Connections, CONNECTION));
        let activity = Arc::new(ConnectionActivity::new(half_close));
        Self { account, charge, activity, close_requested_at: Mutex::default(), close_request: Notify::new() }
    }

    pub(super) fn activity(&self) -> &Arc<ConnectionActivity> {
        &self.activity
    }

    /// What the client holds of the memory budget.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Charges more memory until the connection is closed.
    pub(super) fn add_charge(&self, bytes: usize) {
        self.charge.lock().add(bytes);
    }

    /// Resolves when the connection is requested to close. Then check [`Self::is_still_chosen`].
    pub(super) async fn close_requested(&self) {
        self.close_request.notified().await;
    }

    /// Whether the connection still has to close: since the request to close, no request has arrived and the client has
    /// read nothing. If not, the request to close is withdrawn.
    pub(super) fn is_still_chosen(&self) -> bool {
        let mut close_requested_at = self.close_requested_at();
        let since = self.activity.state().since();
        let is_chosen = since.is_some_and(|since| close_requested_at.is_some_and(|requested_at| since < requested_at));
        if !is_chosen {
            *close_requested_at = None;
        }
        is_chosen
    }

    fn request_close(&self, now: Instant) {
        *self.close_requested_at() = Some(now);
        self.close_request.notify_one();
    }

    fn is_close_requested(&self) -> bool {
        self.close_requested_at().is_some()
    }

    fn close_requested_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.close_requested_at.lock()
    }

    fn candidate(&self, id: u64, weight: Weight) -> Candidate {
        let weight = match weight {
            Weight::Number => 1,
            Weight::Bytes => self.account.bytes(),
        };
        let (peer, class) = (self.account.peer(), self.account.class());
        Candidate { id, peer, class, weight, activity: self.activity.state() }
    }

    /// Whether closing the connection would help with this shortage.
    fn relieves(&self, shortage: Shortage) -> bool {
        match shortage {
            Shortage::Budget => true,
            Shortage::Class(class) => self.account.class() == class,
            Shortage::Peer(peer) => self.account.peer() == Some(peer),
            Shortage::Caller(caller) => self.account.caller() == Some(caller),
            // Its client is sending a request, so it is not idle.
            Shortage::Connection => false,
        }
    }
}

/// Keeps a connection in the registry until dropped.
pub(super) struct Registered {
    registry: Arc<Registry>,
    id: u64,
    connection: Arc<OpenConnection>,
}

impl Deref for Registered {
    type Target = Arc<OpenConnection>;

    fn deref(&self) -> &Arc<OpenConnection> {
        &self.connection
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.remove(self.id);
    }
}

impl Registry {
    /// An empty registry. `minimum`: how long connections must have been idle or blocked before they may be closed for
    /// others.
    pub(super) fn new(minimum: MinimumAge) -> Arc<Self> {
        Arc::new(Self { minimum, open: Mutex::default(), changed: Notify::new() })
    }

    pub(super) fn add(self: &Arc<Self>, connection: OpenConnection) -> Registered {
        let connection = Arc::new(connection);
        let mut open = self.open();
        let id = open.next_id;
        open.next_id += 1;
        if let Some(peer) = connection.account.peer() {
            *open.by_peer.entry(peer).or_default() += 1;
        }
        open.connections.insert(id, Arc::clone(&connection));
        Registered { registry: Arc::clone(self), id, connection }
    }

    fn remove(&self, id: u64) {
        let mut open = self.open();
        let peer = open.connections.remove(&id).and_then(|connection| connection.account.peer());
        if let Some(peer) = peer
            && let Some(count) = open.by_peer.get_mut(&peer)
        {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&peer);
            }
        }
        drop(open);
        self.changed.notify_waiters();
    }

    pub(super) fn len(&self) -> usize {
        self.open().connections.len()
    }

    /// Whether a peer address has at least half of the `limit` connections.
    pub(super) fn holds_half(&self, peer: Peer, limit: usize) -> bool {
        self.open().holds_half(peer, limit)
    }

    /// Resolves when a connection has closed since this was called, even if it is awaited later.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Resolves when no connection is open.
    pub(super) async fn emptied(&self) {
        loop {
            let changed = self.changed();
            if self.len() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Requests connections to close that hold `needed` bytes of the memory budget, starting in the class that holds
    /// most bytes. Connections that were requested before and are still open count.
    pub(super) fn shed_bytes(&self, shortage: Shortage, needed: usize, now: Instant) -> usize {
        let relieves = |connection: &OpenConnection| connection.relieves(shortage);
        self.close_chosen(now, Weight::Bytes, relieves, |mut order, open| {
            let bytes = |id: &u64| open.connections.get(id).map_or(0, |it| it.account.bytes());
            let requested = open.connections.values().filter(|it| it.is_close_requested() && relieves(it));
            let mut freed: usize = requested.map(|it| it.account.bytes()).sum();
            let mut chosen = Vec::new();
            while freed < needed
                && chosen.len() < MAX_AT_ONCE
                && let Some(id) = order.any()
            {
                freed += bytes(&id);
                chosen.push(id);
            }
            chosen
        })
    }

    /// Requests one connection to close, to free a file descriptor: in the class that has most connections. Returns
    /// false if none can be closed now.
    pub(super) fn shed_one(&self, now: Instant) -> bool {
        self.close_chosen(now, Weight::Number, |_| true, |mut order, _| order.any().into_iter().collect()) > 0
    }

    /// Requests as many connections to close as the newcomers need. Connections that were requested before and are
    /// still open count. A newcomer whose peer address holds half of the `limit` only gets places of that address.
    pub(super) fn make_room(&self, newcomers: &[Option<Peer>], limit: usize, now: Instant) {
        self.close_chosen(
            now,
            Weight::Number,
            |_| true,
            |mut order, open| {
                let requested = open.connections.values().filter(|it| it.is_close_requested()).count();
                let place = |peer: &Option<Peer>| match *peer {
                    Some(peer) if open.holds_half(peer, limit) => order.of(peer),
                    _ => order.any(),
                };
                newcomers.iter().skip(requested).filter_map(place).collect()
            },
        );
    }

    /// Requests the chosen connections to close, and returns their number. They close later: see [`Self::changed`].
    /// This scans all connections, and again for each chosen one. It should be called at most a few hundred times per
    /// second.
    fn close_chosen(
        &self,
        now: Instant,
        weight: Weight,
        is_among: impl Fn(&OpenConnection) -> bool,
        choose: impl FnOnce(ShedOrder, &Open) -> Vec<u64>,
    ) -> usize {
        let open = self.open();
        let candidates = open.connections.iter().filter(|(_, it)| !it.is_close_requested() && is_among(it));
        let candidates = candidates.map(|(&id, connection)| connection.candidate(id, weight)).collect();
        let chosen = choose(ShedOrder::new(candidates, self.minimum, now), &open);
        let requested = chosen.iter().filter_map(|id| open.connections.get(id));
        requested.inspect(|connection| connection.request_close(now)).count()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }
}

impl Open {
    fn holds_half(&self, peer: Peer, limit: usize) -> bool {
        self.by_peer.get(&peer).is_some_and(|&count| count.saturating_mul(2) >= limit)
    }
}
