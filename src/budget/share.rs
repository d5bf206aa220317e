//! Decides how much more memory a client may have. Pure: nothing waits and no connection is closed here.
//!
//! **Parties.** A connection, a peer address or a caller may have more only if it then holds no more than what remains
//! free for its class. So a single party gets at most half. If several parties take all they can get, they have equal
//! shares, and the same amount remains free. So a new party always finds room, and nothing must be reserved. These are
//! the dynamic thresholds of A. Choudhury and E. Hahne, "Dynamic queue length thresholds for shared-memory packet
//! switches", IEEE/ACM Transactions on Networking 6 (1998), with α = 1. For small requests in progress, α is 4: a
//! client whose slow downloads hold its half still gets hits.
//!
//! **Classes.** A client can invent any number of tokens and open many connections. So all unknown callers together get
//! at most half of what known callers leave, and all connections without a credential at most a quarter. A quarter
//! remains for known callers.

use std::hash::Hash;

use strum::VariantArray;

use super::Purpose;
use super::account::{Account, ConnectionClass};
use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::request::peer::Peer;

/// Unknown callers get at most 1/2 of what known callers leave.
const UNKNOWN_DIVISOR: usize = 2;

/// Connections without a credential get at most 1/4 of what known callers leave.
const NO_CREDENTIAL_DIVISOR: usize = 4;

/// For a small request in progress, a party may hold this many times what remains free.
const SMALL_REQUEST_FACTOR: usize = 4;

/// The largest charge of a small request, in bytes.
const SMALL_REQUEST: usize = 32 * 1024;

/// A party that holds at most 1/16 of the budget is not the cause of a shortage.
const SMALL_PARTY_DIVISOR: usize = 16;

/// Maps are shrunk only if their capacity is larger than this.
const SMALL_MAP: usize = 256;

/// Why a client may not have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Other clients hold the budget.
    Budget,
    /// The connections of this class hold their part.
    Class(ConnectionClass),
    /// The peer address holds its part.
    Peer(Peer),
    /// The caller holds its part.
    Caller(Caller),
    /// The connection holds its part.
    Connection,
}

impl Shortage {
    /// Whether the client itself holds too much.
    pub(super) fn is_of_client(self) -> bool {
        matches!(self, Self::Peer(_) | Self::Caller(_) | Self::Connection)
    }
}

/// The held bytes.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) limit: usize,
    pub(super) used: usize,
    pub(super) by_purpose: [usize; Purpose::VARIANTS.len()],
    /// In the order of [`ConnectionClass::ALL`].
    by_class: [usize; 3],
    by_peer: HashMap<Peer, usize>,
    by_caller: HashMap<Caller, usize>,
}

impl Totals {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// Why the client of an account may not have `bytes` more. `None` if it may.
    pub(super) fn shortage(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) -> Option<Shortage> {
        let class = account.map_or(ConnectionClass::Known, Account::class);
        let Some(room) = self.room(class).checked_sub(bytes) else { return Some(self.shortage_of(class)) };
        let account = account?;
        let connection = (account.bytes(), Shortage::Connection);
        let peer = account.peer().map(|peer| (held(&self.by_peer, &peer), Shortage::Peer(peer)));
        let caller = account.caller().map(|caller| (held(&self.by_caller, &caller), Shortage::Caller(caller)));
        let mut parties = [Some(connection), peer, caller].into_iter().flatten();
        let is_small = purpose == Purpose::Requests && bytes <= SMALL_REQUEST;
        let max = if is_small { room.saturating_mul(SMALL_REQUEST_FACTOR) } else { room };
        let (held, shortage) = parties.find(|(held, _)| held + bytes > max)?;
        Some(if held > self.limit / SMALL_PARTY_DIVISOR { shortage } else { self.shortage_of(class) })
    }

    /// The bytes that a class may still have.
    pub(super) fn room(&self, class: ConnectionClass) -> usize {
        self.part(class).min(self.free())
    }

    /// What remains of the part of a class. Other classes may hold some of it.
    fn part(&self, class: ConnectionClass) -> usize {
        let [none, unknown, _] = self.by_class;
        let left = self.limit.saturating_sub(self.used - none - unknown);
        match class {
            ConnectionClass::Known => left,
            ConnectionClass::Unknown => (left / UNKNOWN_DIVISOR).saturating_sub(unknown),
            ConnectionClass::NoCredential => (left / NO_CREDENTIAL_DIVISOR).saturating_sub(none),
        }
    }

    /// The shortage of a class that has no room: its part or the whole budget. If other classes hold what is not free,
    /// their connections must be closed.
    fn shortage_of(&self, class: ConnectionClass) -> Shortage {
        let is_part = class != ConnectionClass::Known && self.part(class) < self.free();
        if is_part { Shortage::Class(class) } else { Shortage::Budget }
    }

    pub(super) fn add(&mut self, account: Option<&Account>, purpose: Purpose, bytes: usize) {
        self.used += bytes;
        self.by_purpose[purpose as usize] += bytes;
        if let Some(account) = account {
            account.set_bytes(account.bytes() + bytes);
            self.by_class[account.class() as usize] += bytes;
            account.peer().into_iter().for_each(|peer| add(&mut self.by_peer, peer, bytes));
            account.caller().into_iter().for_each(|caller| add(&mut self.by_caller, caller, bytes));
        }
    }

    pub(super) fn subtract(&mut self, account: Option<&Account>, purpose: Purpose, bytes: usize) {
        self.used -= bytes;
        self.by_purpose[purpose as usize] -= bytes;
        if let Some(account) = account {
            account.set_bytes(account.bytes() - bytes);
            self.by_class[account.class() as usize] -= bytes;
            account.peer().into_iter().for_each(|peer| subtract(&mut self.by_peer, peer, bytes));
            account.caller().into_iter().for_each(|caller| subtract(&mut self.by_caller, caller, bytes));
        }
    }

    /// Raises the class of a connection, and counts its bytes for its caller. Returns whether that caller now holds
    /// more than its part.
    pub(super) fn raise(&mut self, account: &Account, class: ConnectionClass, caller: Option<Caller>) -> bool {
        let (before, bytes) = (account.class(), account.bytes());
        if before >= class {
            return false;
        }
        self.by_class[before as usize] -= bytes;
        self.by_class[class as usize] += bytes;
        let has_caller = account.caller().is_some();
        account.set_class(class, caller);
        let Some(caller) = caller.filter(|_| !has_caller) else { return false };
        add(&mut self.by_caller, caller, bytes);
        held(&self.by_caller, &caller) > self.free()
    }
}

fn held<K: Eq + Hash>(map: &HashMap<K, usize>, key: &K) -> usize {
    map.get(key).copied().unwrap_or(0)
}

fn add<K: Eq + Hash>(map: &mut HashMap<K, usize>, key: K, bytes: usize) {
    if bytes > 0 {
        *map.entry(key).or_default() += bytes;
    }
}

fn subtract<K: Eq + Hash>(map: &mut HashMap<K, usize>, key: K, bytes: usize) {
    let Some(held) = map.get_mut(&key) else { return };
    *held -= bytes;
    if *held == 0 {
        map.remove(&key);
        // A map that many clients have made large shrinks again.
        if map.capacity() > SMALL_MAP && map.len() < map.capacity() / 4 {
            map.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::super::{Budget, Charge};
    use super::*;
    use crate::request::caller::Callers;

    const PURPOSE: Purpose = Purpose::Responses;
    const LIMIT: usize = 9_600;

    use ConnectionClass::{Known, NoCredential, Unknown};

    fn caller(number: usize) -> Caller {
        Callers::new([1; 32]).of_token(&HeaderValue::from(number))
    }

    fn peer(last: u8) -> Option<Peer> {
        Some(Peer::V4([192, 0, 2, last].into()))
    }

    fn account(budget: &Arc<Budget>, class: ConnectionClass, caller: Option<Caller>, peer: Option<Peer>) -> Account {
        let account = Account::open(budget, peer);
        account.raise(class, caller);
        account
    }

    /// Takes all that the account can get, in pieces of 10 bytes. Returns the sum.
    fn take_all(account: &Account, charges: &mut Vec<Charge>) -> usize {
        let before = charges.len();
        while let Some(charge) = account.try_charge(PURPOSE, 10) {
            charges.push(charge);
        }
        (charges.len() - before) * 10
    }

    #[test]
    fn a_single_connection_caller_or_peer_gets_at_most_half_of_the_budget() {
        type Open = fn(&Arc<Budget>) -> Account;
        let (connection, of_a_caller, of_a_peer): (Open, Open, Open) = (
            |budget| account(budget, Known, None, None),
            |budget| account(budget, Known, Some(caller(1)), None),
            |budget| account(budget, Known, None, peer(1)),
        );
        for (name, open, connections) in
            [("connection", connection, 1), ("caller", of_a_caller, 9), ("peer", of_a_peer, 9)]
        {
            let (budget, mut charges) = (Budget::new(LIMIT), Vec::new());
            let accounts: Vec<_> = (0..connections).map(|_| open(&budget)).collect();
            let taken: usize = accounts.iter().map(|account| take_all(account, &mut charges)).sum();
            assert_eq!(taken, LIMIT / 2, "{name}");
        }
    }

    #[test]
    fn a_client_whose_responses_hold_its_half_may_still_have_requests_in_progress() {
        let budget = Budget::new(LIMIT);
        let account = account(&budget, Known, Some(caller(1)), peer(1));
        let mut charges = Vec::new();
        take_all(&account, &mut charges);
        while let Some(charge) = account.try_charge(Purpose::Requests, 10) {
            charges.push(charge);
        }
        assert_eq!(account.bytes(), LIMIT * 4 / 5);
    }

    #[test]
    fn callers_that_take_all_they_can_get_have_equal_shares_and_leave_one_free() {
        for callers in [1, 2, 3, 7] {
            let (budget, mut charges) = (Budget::new(LIMIT), Vec::new());
            let accounts: Vec<_> =
                (0..callers).map(|number| account(&budget, Known, Some(caller(number)), None)).collect();
            // The accounts take turns, so that all get the same.
            while accounts
                .iter()
                .filter(|account| account.try_charge(PURPOSE, 10).map(|it| charges.push(it)).is_some())
                .count()
                > 0
            {}
            for account in &accounts {
                assert!(account.bytes().abs_diff(LIMIT / (callers + 1)) <= 10, "{callers}: {account:?}");
            }
            let newcomer = account(&budget, Known, Some(caller(100)), None);
            assert!(newcomer.try_charge(PURPOSE, LIMIT / (callers + 1) / 2 - 10).is_some(), "{callers}");
        }
    }

    #[test]
    fn each_lower_class_has_at_most_half_of_what_the_higher_one_leaves() {
        for (known, class, max) in [
            (0, Unknown, LIMIT / 2),
            (0, NoCredential, LIMIT / 4),
            (LIMIT / 2, Unknown, LIMIT / 4),
            (LIMIT / 2, NoCredential, LIMIT / 8),
        ] {
            let (budget, mut charges) = (Budget::new(LIMIT), Vec::new());
            let _known = account(&budget, Known, None, None).charge(PURPOSE, known);
            // Many connections of different clients.
            let taken: usize = (0..50).map(|_| take_all(&account(&budget, class, None, None), &mut charges)).sum();
            assert!((max * 9 / 10..=max).contains(&taken), "{class:?} beside {known}: {taken}");
            let left = max - taken;
            assert_eq!(account(&budget, class, None, None).shortage(PURPOSE, left + 10), Some(Shortage::Class(class)));
            // Known callers still find room.
            let above = account(&budget, Known, None, None);
            assert!(above.try_charge(PURPOSE, (LIMIT - known - max) / 2).is_some(), "{class:?} beside {known}");
        }
    }

    #[test]
    fn within_a_class_a_client_leaves_as_much_free_as_it_holds() {
        for (class, part) in [(Unknown, 2), (NoCredential, 4)] {
            let (budget, mut charges) = (Budget::new(LIMIT), Vec::new());
            for _ in 0..9 {
                take_all(&account(&budget, class, None, peer(1)), &mut charges);
            }
            assert_eq!(budget.used(), LIMIT / part / 2, "{class:?}");
            assert!(
                account(&budget, class, None, peer(2)).try_charge(PURPOSE, LIMIT / part / 4).is_some(),
                "{class:?}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_party_that_holds_too_much() {
        let budget = Budget::new(1_000);
        let mine = account(&budget, Known, Some(caller(1)), peer(1));
        let _mine = mine.charge(PURPOSE, 300);
        let of_the_caller = account(&budget, Known, Some(caller(1)), peer(2));
        let of_the_peer = account(&budget, Known, Some(caller(2)), peer(1));
        for (account, bytes, expected) in [
            (&mine, 200, None),
            (&mine, 201, Some(Shortage::Connection)),
            (&of_the_caller, 201, Some(Shortage::Caller(caller(1)))),
            (&of_the_peer, 201, Some(Shortage::Peer(Peer::V4([192, 0, 2, 1].into())))),
            (&mine, 701, Some(Shortage::Budget)),
            // These accounts hold little.
            (&account(&budget, Known, Some(caller(3)), None), 351, Some(Shortage::Budget)),
            (&account(&budget, Unknown, None, None), 351, Some(Shortage::Class(Unknown))),
            (&account(&budget, NoCredential, None, None), 176, Some(Shortage::Class(NoCredential))),
        ] {
            assert_eq!(account.shortage(PURPOSE, bytes), expected, "{account:?} {bytes}");
        }
    }

    #[test]
    fn a_new_client_is_short_of_the_budget_if_others_hold_more_than_their_part() {
        let budget = Budget::new(1_000);
        // The others hold more than their part, because held bytes are charged without a check.
        let _others = account(&budget, Unknown, None, None).charge(PURPOSE, 950);
        assert_eq!(Account::open(&budget, None).shortage(PURPOSE, 45), Some(Shortage::Budget));
        assert_eq!(Account::open(&budget, None).shortage(PURPOSE, 200), Some(Shortage::Budget));
    }

    #[test]
    fn the_bytes_of_a_connection_count_for_its_caller_when_that_is_known() {
        let budget = Budget::new(1_000);
        let connection = Account::open(&budget, None);
        let charge = connection.charge(PURPOSE, 200);
        assert_eq!(Account::open(&budget, None).shortage(PURPOSE, 100), Some(Shortage::Class(NoCredential)));
        connection.raise(Known, Some(caller(1)));
        assert_eq!(Account::open(&budget, None).shortage(PURPOSE, 100), None);
        assert_eq!(
            account(&budget, Known, Some(caller(1)), None).shortage(PURPOSE, 400),
            Some(Shortage::Caller(caller(1)))
        );
        drop(charge);
        assert_eq!(account(&budget, Known, Some(caller(1)), None).shortage(PURPOSE, 400), None);
    }

    proptest! {
        #[test]
        fn totals_are_the_sums_of_the_charges(
            steps in prop::collection::vec((0_usize..7, 0_usize..6, 0_usize..4, 0_usize..300), 0..80),
        ) {
            let budget = Budget::new(1_000);
            let mut accounts: Vec<Account> =
                (0..4).map(|number| Account::open(&budget, [None, peer(1), peer(1), peer(2)][number])).collect();
            let mut charges: Vec<(usize, Charge)> = Vec::new();
            for (purpose, action, index, bytes) in steps {
                let place = bytes % charges.len().max(1);
                match (action, charges.get_mut(place)) {
                    (0, _) if purpose < Purpose::VARIANTS.len() => charges.extend(accounts[index].try_charge(Purpose::VARIANTS[purpose], bytes).map(|it| (index, it))),
                    (0 | 1, _) => charges.push((index, accounts[index].charge(PURPOSE, bytes))),
                    (2, Some((_, charge))) => drop(charge.grow(bytes)),
                    (3, Some((_, charge))) => charge.shrink_to(bytes / 2),
                    (4, Some(_)) => drop(charges.remove(place)),
                    (2..=4, None) => {}
                    _ => accounts[index].raise(ConnectionClass::ALL[bytes % 3], (bytes % 2 == 0).then(|| caller(index / 2))),
                }
                let held = |matches: &dyn Fn(&Account) -> bool| -> usize {
                    charges.iter().filter(|(index, _)| matches(&accounts[*index])).map(|(_, charge)| charge.bytes()).sum()
                };
                budget.with_totals(|totals| {
                    for class in ConnectionClass::ALL {
                        assert_eq!(totals.by_class[class as usize], held(&|account| account.class() == class));
                    }
                    for number in 0..2 {
                        let of_caller = held(&|account| account.caller() == Some(caller(number)));
                        assert_eq!(totals.by_caller.get(&caller(number)).copied().unwrap_or(0), of_caller);
                    }
                    for last in 1..3 {
                        let of_peer = held(&|account| account.peer() == peer(last));
                        assert_eq!(totals.by_peer.get(&peer(last).unwrap()).copied().unwrap_or(0), of_peer);
                    }
                    assert_eq!(totals.used, charges.iter().map(|(_, charge)| charge.bytes()).sum::<usize>());
                    assert_eq!(totals.by_purpose.iter().sum::<usize>(), totals.used);
                });
            }
            charges.clear();
            accounts.clear();
            budget.with_totals(|totals| assert!(totals.used == 0 && totals.by_peer.is_empty() && totals.by_caller.is_empty()));
        }
    }
}
