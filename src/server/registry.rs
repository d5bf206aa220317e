//! The open connections of a listener: which there are, and how one is told to end so that another can have its place.
//!
//! [`Registry::shed_bytes`] and [`Registry::shed_one`] may be called from anywhere in the server that has run out of
//! something that connections hold. Which connection is chosen is in `shed.rs`. How a connection ends is in `serve.rs`: it checks with
//! [`OpenConnection::is_still_chosen`] that no request has come since, and then ends as if its time were over.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::activity::ConnectionActivity;
use super::memory::CONNECTION;
use super::shed::{Candidate, MinimumAge, ShedOrder};
use crate::budget::{Account, Charge, Purpose, Shortage};
use crate::request::half_close::HalfClose;
use crate::request::peer::Peer;
use crate::sync::{Mutex, MutexGuard};

/// The open connections of one listener.
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

/// One of them.
pub(super) struct OpenConnection {
    activity: Arc<ConnectionActivity>,
    account: Account,
    /// What it takes while it is open.
    charge: Mutex<Charge>,
    /// When it was told to end.
    told_at: Mutex<Option<Instant>>,
    told: Notify,
}

/// How many connections are told to end at once, for want of memory: choosing one looks at all of them.
const MAX_AT_ONCE: usize = 32;

/// By what the connections of classes and peers are added up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Number,
    Bytes,
}

impl OpenConnection {
    /// One that is accepted now. The gateway is told by `half_close` when its client has closed its sending side.
    pub(super) fn new(account: Account, half_close: Arc<HalfClose>) -> Self {
        let charge = Mutex::new(account.charge(Purpose::Connections, CONNECTION));
        let activity = Arc::new(ConnectionActivity::new(half_close));
        Self { account, charge, activity, told_at: Mutex::default(), told: Notify::new() }
    }

    /// What it is doing.
    pub(super) fn activity(&self) -> &Arc<ConnectionActivity> {
        &self.activity
    }

    /// What its client holds of the memory budget.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Notes that it takes more memory until it is closed.
    pub(super) fn takes(&self, bytes: usize) {
        self.charge.lock().add(bytes);
    }

    /// Resolves when it is told to end. Then [`Self::is_still_chosen`] says whether it has to.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether the connection still has to end: no request has come since it was told, and its client has read nothing.
    /// If not, it goes on as if it had not been told.
    pub(super) fn is_still_chosen(&self) -> bool {
        let mut told_at = self.told_at();
        let since = self.activity.activity().since();
        let is_chosen = since.is_some_and(|since| told_at.is_some_and(|told_at| since < told_at));
        if !is_chosen {
            *told_at = None;
        }
        is_chosen
    }

    /// Tells the connection to end.
    fn tell(&self, now: Instant) {
        *self.told_at() = Some(now);
        self.told.notify_one();
    }

    fn is_told(&self) -> bool {
        self.told_at().is_some()
    }

    fn told_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.told_at.lock()
    }

    fn candidate(&self, id: u64, weight: Weight) -> Candidate {
        let weight = match weight {
            Weight::Number => 1,
            Weight::Bytes => self.account.bytes(),
        };
        let (peer, class) = (self.account.peer(), self.account.class());
        Candidate { id, peer, class, weight, activity: self.activity.activity() }
    }

    /// Whether closing it would help where this is short.
    fn relieves(&self, shortage: Shortage) -> bool {
        match shortage {
            Shortage::Budget => true,
            Shortage::Class(class) => self.account.class() == class,
            Shortage::Peer(peer) => self.account.peer() == Some(peer),
            Shortage::Caller(caller) => self.account.caller() == Some(caller),
            // Its client is asking for more, so that it is not idle.
            Shortage::Connection => false,
        }
    }
}

/// A connection that is open until this is dropped.
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
    /// Of no connections. They may be closed for others once they have been idle, or blocked, for so long.
    pub(super) fn new(minimum: MinimumAge) -> Arc<Self> {
        Arc::new(Self { minimum, open: Mutex::default(), changed: Notify::new() })
    }

    /// Adds a connection that has been accepted.
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
            && let Some(held) = open.by_peer.get_mut(&peer)
        {
            *held -= 1;
            if *held == 0 {
                open.by_peer.remove(&peer);
            }
        }
        drop(open);
        self.changed.notify_waiters();
    }

    /// How many connections are open.
    pub(super) fn len(&self) -> usize {
        self.open().connections.len()
    }

    /// Whether a peer address has half of all connections that there may be, or more.
    pub(super) fn has_its_half(&self, peer: Peer, most: usize) -> bool {
        self.open().has_its_half(peer, most)
    }

    /// Resolves when a connection has ended since this was called, even if it is awaited only later.
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

    /// Tells as many connections to end as hold so many bytes, for the memory budget is short of them. Those that have been
    /// told and are still open count. Of these connections, the class that holds most bytes gives up its own first.
    pub(super) fn shed_bytes(&self, shortage: Shortage, needed: usize, now: Instant) -> usize {
        let relieves = |connection: &OpenConnection| connection.relieves(shortage);
        self.tell(now, Weight::Bytes, relieves, |mut selection, open| {
            let bytes = |id: &u64| open.connections.get(id).map_or(0, |it| it.account.bytes());
            let told = open.connections.values().filter(|it| it.is_told() && relieves(it));
            let mut freed: usize = told.map(|it| it.account.bytes()).sum();
            let mut chosen = Vec::new();
            while freed < needed
                && chosen.len() < MAX_AT_ONCE
                && let Some(id) = selection.any()
            {
                freed += bytes(&id);
                chosen.push(id);
            }
            chosen
        })
    }

    /// Tells one connection to end, for want of a file descriptor: in the class that has most connections. False if none can
    /// be closed now.
    pub(super) fn shed_one(&self, now: Instant) -> bool {
        self.tell(now, Weight::Number, |_| true, |mut selection, _| selection.any().into_iter().collect()) > 0
    }

    /// Tells as many connections to end as these newcomers need, but for those that have been told and are still open. A
    /// newcomer whose peer address holds half of all `most` connections gets only places of that address.
    pub(super) fn make_room(&self, newcomers: &[Option<Peer>], most: usize, now: Instant) {
        self.tell(
            now,
            Weight::Number,
            |_| true,
            |mut selection, open| {
                let told = open.connections.values().filter(|it| it.is_told()).count();
                let place = |peer: &Option<Peer>| match *peer {
                    Some(peer) if open.has_its_half(peer, most) => selection.of(peer),
                    _ => selection.any(),
                };
                newcomers.iter().skip(told).filter_map(place).collect()
            },
        );
    }

    /// Tells those to end that are chosen among some, and says how many these are. They end soon, not before this returns: see
    /// [`Self::changed`]. This looks at each connection, once for each that it
    /// chooses, and is meant to be called at most some hundred times a second.
    fn tell(
        &self,
        now: Instant,
        weight: Weight,
        is_among: impl Fn(&OpenConnection) -> bool,
        choose: impl FnOnce(ShedOrder, &Open) -> Vec<u64>,
    ) -> usize {
        let open = self.open();
        let candidates = open.connections.iter().filter(|(_, it)| !it.is_told() && is_among(it));
        let candidates = candidates.map(|(&id, connection)| connection.candidate(id, weight)).collect();
        let chosen = choose(ShedOrder::new(candidates, self.minimum, now), &open);
        let told = chosen.iter().filter_map(|id| open.connections.get(id));
        told.inspect(|connection| connection.tell(now)).count()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }
}

impl Open {
    /// Whether a peer address has half of all connections that there may be.
    fn has_its_half(&self, peer: Peer, most: usize) -> bool {
        self.by_peer.get(&peer).is_some_and(|&held| held.saturating_mul(2) >= most)
    }
}
