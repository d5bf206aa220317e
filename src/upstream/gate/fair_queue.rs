//! A queue that serves clients fairly: the next slot goes to the client that holds the fewest.
//!
//! Clients are nested: a waiter has a path of parties, such as its caller, its peer address and its connection. On each
//! level the party that holds the fewest slots is next; among equals, the one that was served longest ago, or came
//! first. So a client with one call waits for at most one call of each other client, however many those have queued.
//! Within the last party of a path the order is that of arrival.
//!
//! Each operation takes time logarithmic in the number of waiters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Party, Ticket};

/// Waiters, and what their clients hold.
#[derive(Default)]
pub(super) struct FairQueue {
    root: Node,
    /// How often something has changed. It orders parties that hold the same number of slots.
    changes: u64,
}

/// All waiters whose paths have the same beginning.
#[derive(Default)]
struct Node {
    held: usize,
    waiting: usize,
    /// The change by which it was served last, or came. No two nodes with the same parent have the same.
    served: u64,
    /// Those whose path ends here.
    tickets: BTreeSet<Ticket>,
    children: HashMap<Party, Node>,
    /// The children that have waiters, by what they hold and when they were served.
    order: BTreeMap<(usize, u64), Party>,
}

#[derive(Clone, Copy)]
enum QueueChange {
    Queue(Ticket),
    Withdraw(Ticket),
    Grant(Ticket),
    Release,
}

impl FairQueue {
    /// Adds a waiter.
    pub(super) fn queue(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Queue(ticket));
    }

    /// Removes a waiter.
    pub(super) fn withdraw(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Withdraw(ticket));
    }

    /// Turns a waiter into a holder of a slot.
    pub(super) fn grant(&mut self, path: &[Party], ticket: Ticket) {
        self.change(path, QueueChange::Grant(ticket));
    }

    /// Takes back a slot that was granted to this path.
    pub(super) fn release(&mut self, path: &[Party]) {
        self.change(path, QueueChange::Release);
    }

    /// The waiter that is next, of those whose path has none of the parties in `except`.
    pub(super) fn first(&self, except: &[Party]) -> Option<Ticket> {
        self.root.first(except)
    }

    /// How many slots are held.
    pub(super) fn held(&self) -> usize {
        self.root.held
    }

    /// How many wait.
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
            QueueChange::Grant(_) => {
                self.waiting -= 1;
                self.held += 1;
                self.served = now;
            }
            QueueChange::Release => self.held -= 1,
        }
        let Some((party, rest)) = path.split_first() else {
            match change {
                QueueChange::Queue(ticket) => _ = self.tickets.insert(ticket),
                QueueChange::Withdraw(ticket) | QueueChange::Grant(ticket) => _ = self.tickets.remove(&ticket),
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
    /// Whether nothing is left of anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.root.children.is_empty() && self.root.order.is_empty() && self.root.waiting == 0 && self.root.held == 0
    }
}
