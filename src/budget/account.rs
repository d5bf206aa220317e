//! Accounts: what each client holds of the budget. Each connection has one. And charges: bytes that are held, and returned when
//! the charge is dropped.
//!
//! What a connection holds counts for three parties: the connection, its peer address, and the caller that it belongs to
//! (the first known one that sent a request on it). It also counts for the connection's class. `share.rs` decides how much
//! more a party and a class may have.

use std::fmt;
use std::future::{Future, ready};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{Budget, Purpose, Shortage};
use crate::request::caller::Caller;
use crate::request::peer::Peer;

/// How often a request that waits tries again, even if nothing was returned: a connection that could not be closed then may
/// be closed now.
const RETRY: Duration = Duration::from_millis(100);

/// How far the callers of a connection are known. A later class ranks higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionClass {
    /// No request on the connection had a credential.
    NoCredential,
    /// A request had a credential, of a caller that is not known.
    Unknown,
    /// A caller had a grant, or upstream had answered it well. On the admin listener: an operator who was let in.
    Known,
}

impl ConnectionClass {
    /// All classes, the lowest first.
    pub const ALL: [Self; 3] = [Self::NoCredential, Self::Unknown, Self::Known];
}

/// The account of one connection. Clones share it.
#[derive(Clone)]
pub struct Account(Arc<Holdings>);

/// Whatever changes here changes while the budget's totals are locked, so that they agree.
struct Holdings {
    budget: Arc<Budget>,
    peer: Option<Peer>,
    bytes: AtomicUsize,
    class: AtomicU8,
    caller: OnceLock<Caller>,
}

impl Account {
    /// The account of a new connection. `peer` is `None` where clients are not told apart by address.
    pub fn open(budget: &Arc<Budget>, peer: Option<Peer>) -> Self {
        Self(Arc::new(Holdings {
            budget: Arc::clone(budget),
            peer,
            bytes: AtomicUsize::new(0),
            class: AtomicU8::new(ConnectionClass::NoCredential as u8),
            caller: OnceLock::new(),
        }))
    }

    /// The bytes that the connection holds.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// The peer address of the connection.
    pub fn peer(&self) -> Option<Peer> {
        self.0.peer
    }

    /// The caller that the connection belongs to, if it is known.
    pub fn caller(&self) -> Option<Caller> {
        self.0.caller.get().copied()
    }

    /// The class of the connection at present. It only rises: a credential that upstream refuses later was known once, and
    /// its connections compete with those of known callers.
    pub fn class(&self) -> ConnectionClass {
        match self.0.class.load(Ordering::Relaxed) {
            0 => ConnectionClass::NoCredential,
            1 => ConnectionClass::Unknown,
            _ => ConnectionClass::Known,
        }
    }

    /// Raises the connection to a class, unless it has that class or a higher one. `caller` is whose request it is, if that
    /// caller is known: the connection belongs to it from now on.
    pub fn raise(&self, class: ConnectionClass, caller: Option<Caller>) {
        // Hits come here. Nearly all connections have the class already, and then one load is all it takes.
        if self.class() < class {
            self.budget().raise(self, class, caller);
        }
    }

    /// Changes the class and the caller. The budget's totals are locked.
    pub(super) fn set_class(&self, class: ConnectionClass, caller: Option<Caller>) {
        self.0.class.store(class as u8, Ordering::Relaxed);
        if let Some(caller) = caller {
            let _ = self.0.caller.set(caller);
        }
    }

    /// Changes the bytes. The budget's totals are locked.
    pub(super) fn set_bytes(&self, bytes: usize) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// Charges bytes, if the client may have them. A refusal is counted, and has connections closed.
    pub fn try_charge(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        let taken = self.budget().take(Some(self), purpose, bytes);
        taken.inspect_err(|shortage| self.budget().refuse(*shortage, bytes)).ok()?;
        Some(Charge::new(Holder::Account(self.clone()), purpose, bytes))
    }

    /// Charges bytes for what works without them: only while more than half of the budget is free.
    pub fn try_charge_spare(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        let budget = self.budget();
        let is_taken = budget.has_spare(bytes) && budget.take(Some(self), purpose, bytes).is_ok();
        is_taken.then(|| Charge::new(Holder::Account(self.clone()), purpose, bytes))
    }

    /// Charges bytes that are held already, whether the client may have them or not.
    pub fn charge(&self, purpose: Purpose, bytes: usize) -> Charge {
        self.budget().add(Some(self), purpose, bytes);
        Charge::new(Holder::Account(self.clone()), purpose, bytes)
    }

    /// Why the client may not have so many bytes more now, if that is so.
    pub fn shortage(&self, purpose: Purpose, bytes: usize) -> Option<Shortage> {
        self.budget().shortage(Some(self), purpose, bytes)
    }

    /// Charges bytes as soon as the client may have them. It must hold nothing that others wait for. `None` if too many
    /// wait already: what waits is not charged.
    pub async fn wait(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        self.wait_and(purpose, bytes, ready(())).await.map(|(charge, ())| charge)
    }

    /// The same, and then waits for something else. Until it has that, too, it counts as waiting, so that little memory is
    /// held for what still has to wait.
    pub async fn wait_and<T>(
        &self,
        purpose: Purpose,
        bytes: usize,
        then: impl Future<Output = T>,
    ) -> Option<(Charge, T)> {
        let budget = self.budget();
        let is_own = self.shortage(purpose, bytes).is_some_and(Shortage::is_of_client);
        let _waiting = budget.begin_waiting(bytes, is_own)?;
        self.until(bytes, || budget.take(Some(self), purpose, bytes)).await;
        let charge = Charge::new(Holder::Account(self.clone()), purpose, bytes);
        // There may be room for the next waiter, too.
        budget.wake_one(self.class());
        Some((charge, then.await))
    }

    /// Waits until the client may have so many bytes. Nothing is charged.
    pub async fn room_for(&self, purpose: Purpose, bytes: usize) {
        self.until(bytes, || self.shortage(purpose, bytes).map_or(Ok(()), Err)).await;
    }

    /// Waits until an attempt to have so many bytes succeeds. Each return of bytes wakes one waiter of each class: were all
    /// woken, many waiters would make each return slow. All look again after [`RETRY`].
    async fn until(&self, bytes: usize, attempt: impl Fn() -> Result<(), Shortage>) {
        let budget = self.budget();
        let mut is_woken = false;
        loop {
            let class = self.class();
            let freed = budget.freed(class);
            let Err(shortage) = attempt() else { return };
            budget.note(shortage, bytes);
            if shortage.is_of_client() {
                // What others return does not help this one. It may help the next.
                if is_woken {
                    budget.wake_one(class);
                }
                sleep(RETRY).await;
                is_woken = false;
            } else {
                is_woken = timeout(RETRY, freed).await.is_ok();
            }
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("bytes", &self.bytes()).field("class", &self.class()).finish_non_exhaustive()
    }
}

/// Who holds the bytes.
pub(super) enum Holder {
    Account(Account),
    /// No client in particular.
    Nobody(Arc<Budget>),
}

impl Holder {
    fn budget(&self) -> &Arc<Budget> {
        match self {
            Self::Account(account) => account.budget(),
            Self::Nobody(budget) => budget,
        }
    }

    fn account(&self) -> Option<&Account> {
        match self {
            Self::Account(account) => Some(account),
            Self::Nobody(_) => None,
        }
    }
}

/// Bytes that are held. They are returned when this is dropped.
pub struct Charge {
    holder: Holder,
    purpose: Purpose,
    bytes: usize,
}

impl Charge {
    /// The charge for bytes that the budget has counted.
    pub(super) fn new(holder: Holder, purpose: Purpose, bytes: usize) -> Self {
        Self { holder, purpose, bytes }
    }

    /// How many bytes it is for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// These bytes, for as long as anybody has any of them.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        struct ChargedBytes(Bytes, #[expect(dead_code, reason = "dropped with the bytes")] Charge);

        impl AsRef<[u8]> for ChargedBytes {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        Bytes::from_owner(ChargedBytes(bytes, self))
    }

    /// Makes it larger, if its client may have so much more. If not, it is as it was, the refusal is counted, and connections
    /// are closed.
    pub fn grow(&mut self, by: usize) -> bool {
        let budget = self.holder.budget();
        let taken = budget.take(self.holder.account(), self.purpose, by);
        match taken {
            Ok(()) => self.bytes += by,
            Err(shortage) => budget.refuse(shortage, by),
        }
        taken.is_ok()
    }

    /// Makes it larger by what is held in any case.
    pub fn add(&mut self, bytes: usize) {
        self.holder.budget().add(self.holder.account(), self.purpose, bytes);
        self.bytes += bytes;
    }

    /// Makes it smaller.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.holder.budget().give_back(self.holder.account(), self.purpose, less);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge").field("purpose", &self.purpose).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    const PURPOSE: Purpose = Purpose::Requests;

    #[test]
    fn a_class_only_rises() {
        let account = Account::open(&Budget::new(800), None);
        let shared = account.clone();
        assert_eq!(account.class(), ConnectionClass::NoCredential);
        for (raised, expected) in [
            (ConnectionClass::Unknown, ConnectionClass::Unknown),
            (ConnectionClass::NoCredential, ConnectionClass::Unknown),
            (ConnectionClass::Known, ConnectionClass::Known),
            (ConnectionClass::Unknown, ConnectionClass::Known),
        ] {
            account.raise(raised, None);
            assert_eq!(shared.class(), expected, "{raised:?}");
        }
    }

    #[test]
    fn an_account_has_what_is_charged_to_it() {
        let account = Account::open(&Budget::new(800), None);
        account.raise(ConnectionClass::Known, None);
        let mut charge = account.charge(PURPOSE, 100);
        let other = account.try_charge(PURPOSE, 50).expect("it may have that");
        assert!(charge.grow(30));
        assert_eq!(account.bytes(), 180);
        charge.shrink_to(10);
        drop(other);
        assert_eq!(account.bytes(), 10);
        drop(charge);
        assert_eq!(account.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_charged_when_enough_was_returned() {
        let budget = Budget::new(800);
        let (account, other) = (Account::open(&budget, None), Account::open(&budget, None));
        account.raise(ConnectionClass::Known, None);
        let (first, second) = (other.charge(PURPOSE, 500), other.charge(PURPOSE, 300));
        let mut waiting = pin!(account.wait(PURPOSE, 40));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        // What is charged for others counts, whoever may have it.
        let third = other.charge(PURPOSE, 260);
        drop(second);
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop((first, third));
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_returned_wakes_one_waiter_and_the_next_if_there_is_more_room() {
        struct Wakes(AtomicUsize);

        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        // Each needs 300, and must leave a quarter of that free.
        for (returned, served) in [(350, 0), (500, 1), (700, 2), (2_000, 3)] {
            let budget = Budget::new(16_000);
            let part = budget.charge(PURPOSE, returned);
            let _rest = budget.charge(PURPOSE, 16_000 - returned);
            let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
            let waker = Waker::from(Arc::clone(&wakes));
            let mut context = Context::from_waker(&waker);
            let accounts: Vec<_> = (0..3).map(|_| Account::open(&budget, None)).collect();
            accounts.iter().for_each(|account| account.raise(ConnectionClass::Known, None));
            let mut waiting: Vec<_> = accounts.iter().map(|account| Box::pin(account.wait(PURPOSE, 300))).collect();
            assert!(waiting.iter_mut().all(|waiter| waiter.as_mut().poll(&mut context).is_pending()));
            drop(part);
            let mut charges = Vec::new();
            for number in 1..=3 {
                let before = wakes.0.load(Ordering::Relaxed);
                assert_eq!(before, number.min(served + 1), "{returned}");
                match waiting.remove(0).as_mut().poll(&mut context) {
                    Poll::Ready(charge) => charges.push(charge.expect("few wait")),
                    Poll::Pending => break,
                }
            }
            assert_eq!(charges.len(), served, "{returned}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_sixteenth_of_the_budget_waits() {
        let budget = Budget::new(1_600);
        let account = Account::open(&budget, None);
        let _all = budget.charge(PURPOSE, 1_600);
        let mut context = Context::from_waker(Waker::noop());
        // Others hold all.
        let mut first = Box::pin(account.wait(PURPOSE, 100));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(account.wait(PURPOSE, 1).await.is_none());
        drop(first);
        assert!(pin!(account.wait(PURPOSE, 1)).poll(&mut context).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_holds_too_much_itself_has_half_of_the_room_to_wait() {
        let budget = Budget::new(1_600);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let _most = account.charge(PURPOSE, 1_500);
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Box::pin(account.wait(PURPOSE, 50));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(account.wait(PURPOSE, 50).await.is_none());
        let (other, _rest) = (Account::open(&budget, None), budget.charge(PURPOSE, 100));
        assert!(pin!(other.wait(PURPOSE, 50)).poll(&mut context).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_has_connections_closed_again_and_again() {
        let budget = Budget::new(800);
        let account = Account::open(&budget, None);
        let _all = budget.charge(PURPOSE, 800);
        let waiting = account.wait(PURPOSE, 10);
        let told = async {
            for _ in 0..3 {
                assert_eq!(budget.runs_short().await, [(Shortage::Budget, 10)]);
            }
        };
        tokio::select! {
            _ = waiting => panic!("there is no room"),
            () = told => {}
        }
    }
}
