//! A fair queue: the next slot goes to the client that holds the fewest slots.
//!
//! Clients form a tree. A queued call has a path of parties, for example its caller, its peer address and its
//! connection. On each level, the party that holds the fewest slots is next. If several hold as few, the one that was
//! served or arrived the longest ago is next. So a client with one call waits for at most one call of each other
//! client, even if those have queued many. The calls with the same path are served in order of arrival.
//!
//! Each operation takes logarithmic time in the number of queued calls.

use std::collections::{BTreeMap, BTreeSet};

use super::{Party, Ticket};
use crate::random::HashMap;

/// The queued calls, and how many slots their clients hold.
#[derive(Default)]
pub(super) struct FairQueue {
    root: Node,
    /// The number of changes so far. It orders parties that hold the same number of slots.
    changes: u64,
}

/// All calls whose paths have the same prefix.
#[derive(Default)]
struct Node {
    held: usize,
    waiting: usize,
    /// The number of the change with which a call of this node last got a slot, or the node was created. It is unique
    /// among the children of a node.
    served: u64,
    /// The queued calls whose path ends here.
    tickets: BTreeSet<Ticket>,
    children: HashMap<Party, Node>,
    /// The children with queued calls, by the number of slots and by `served`.
    order: BTreeMap<(usize, u64), Party>,
}

#[derive(Clone, Copy)]
enum QueueChange {
    Queue(Ticket),
    Withdraw(Ticket),
    Start(Ticket),
    Release,
}

impl FairQueue {
    pub(super) fn queue(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Queue(ticket));
    }

    pub(super) fn withdraw(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Withdraw(ticket));
    }

    /// Gives a slot to a queued call.
    pub(super) fn start(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Start(ticket));
    }

    /// Takes back a slot from a call with this path.
    pub(super) fn release(&mut self, path: &[Party]) {
        self.change(path, QueueChange::Release);
    }

    /// The next call among those whose path contains no party of `except`.
    pub(super) fn first(&self, except: &[Party]) -> Option<Ticket> {
        self.root.first(except)
    }

    pub(super) fn held(&self) -> usize {
        self.root.held
    }

    pub(super) fn waiting(&self) -> usize {
        self.root.waiting
    }

    fn change(&mut self, path: &[Party], change: QueueChange) {
        self.changes += 1;
        self.root.change(path, change, self.changes);
    }
}

impl Node {
    fn change(&mut self, path: &[Party], change: QueueChange, now: u64) {
        match change {
            QueueChange::Queue(_) => self.waiting += 1,
            QueueChange::Withdraw(_) => self.waiting -= 1,
            QueueChange::Start(_) => {
                self.waiting -= 1;
                self.held += 1;
                self.served = now;
            }
            QueueChange::Release => self.held -= 1,
        }
        let Some((party, rest)) = path.split_first() else {
            match change {
                QueueChange::Queue(ticket) => _ = self.tickets.insert(ticket),
                QueueChange::Withdraw(ticket) | QueueChange::Start(ticket) => _ = self.tickets.remove(&ticket),
                QueueChange::Release => {}
            }
            return;
        };
        let child = self.children.entry(*party).or_insert_with(|| Self { served: now, ..Self::default() });
        self.order.remove(&(child.held, child.served));
        child.change(rest, change, now);
        if child.waiting > 0 {
            self.order.insert((child.held, child.served), *party);
        } else if child.held == 0 {
            self.children.remove(party);
        }
    }

    fn first(&self, except: &[Party]) -> Option<Ticket> {
        let children = self.order.values().filter(|party| !except.contains(party));
        let mut found = children.filter_map(|party| self.children.get(party)?.first(except));
        self.tickets.first().copied().or_else(|| found.next())
    }
}

#[cfg(test)]
impl FairQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.root.children.is_empty() && self.root.order.is_empty() && self.root.waiting == 0 && self.root.held == 0
    }
}
