//! Accounts and charges. Each connection has an account, which counts the bytes that it holds. A charge stands for held
//! bytes and returns them when it is dropped.
//!
//! The bytes of a connection count for three parties: the connection, its peer address, and its caller (the first known
//! caller that sent a request on it). They also count for the class of the connection. `share.rs` decides how much more
//! a party and a class may have.

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

/// How often a waiting request tries again, even if no bytes were returned: a connection that could not be closed
/// before may be closed now.
const RETRY: Duration = Duration::from_millis(100);

/// The class of a connection, by its callers. A later class ranks higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionClass {
    /// No request on the connection had a credential.
    NoCredential,
    /// A request had a credential, but its caller is unknown.
    Unknown,
    /// A caller had a grant or was known. On the admin listener: an operator was authenticated.
    Known,
}

impl ConnectionClass {
    /// All classes, lowest first.
    pub const ALL: [Self; 3] = [Self::NoCredential, Self::Unknown, Self::Known];
}

/// The account of one connection. Clones share it.
#[derive(Clone)]
pub struct Account(Arc<Holdings>);

/// All fields change only while the budget's totals are locked, so that both agree.
struct Holdings {
    budget: Arc<Budget>,
    peer: Option<Peer>,
    bytes: AtomicUsize,
    class: AtomicU8,
    caller: OnceLock<Caller>,
}

impl Account {
    /// Opens the account of a new connection. `peer` is `None` if clients are not distinguished by address.
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

    pub fn peer(&self) -> Option<Peer> {
        self.0.peer
    }

    /// The caller of the connection. `None` if no known caller has sent a request on it.
    pub fn caller(&self) -> Option<Caller> {
        self.0.caller.get().copied()
    }

    /// The class of the connection. It never falls: if upstream later refuses the credential, the connection still
    /// competes with those of known callers.
    pub fn class(&self) -> ConnectionClass {
        match self.0.class.load(Ordering::Relaxed) {
            0 => ConnectionClass::NoCredential,
            1 => ConnectionClass::Unknown,
            _ => ConnectionClass::Known,
        }
    }

    /// Raises the class of the connection, unless it is equal or higher already. `caller` is the caller of the request,
    /// if it is known. It becomes the caller of the connection.
    pub fn raise(&self, class: ConnectionClass, caller: Option<Caller>) {
        // Every hit runs this. Most connections have the class already, so that one atomic load is enough.
        if self.class() < class {
            self.budget().raise(self, class, caller);
        }
    }

    /// Sets the class and the caller. The budget's totals must be locked.
    pub(super) fn set_class(&self, class: ConnectionClass, caller: Option<Caller>) {
        self.0.class.store(class as u8, Ordering::Relaxed);
        if let Some(caller) = caller {
            let _ = self.0.caller.set(caller);
        }
    }

    /// Sets the bytes. The budget's totals must be locked.
    pub(super) fn set_bytes(&self, bytes: usize) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// Charges bytes. `None` if the client may not have them: the refusal is counted, and the server closes
    /// connections.
    pub fn try_charge(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        let taken = self.budget().take(Some(self), purpose, bytes);
        taken.inspect_err(|shortage| self.budget().refuse(*shortage, bytes)).ok()?;
        Some(Charge::new(Holder::Account(self.clone()), purpose, bytes))
    }

    /// Charges bytes for an optional purpose, only if half of the budget then remains free. A refusal is not counted.
    pub fn try_charge_spare(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        let budget = self.budget();
        let is_taken = budget.has_spare(bytes) && budget.take(Some(self), purpose, bytes).is_ok();
        is_taken.then(|| Charge::new(Holder::Account(self.clone()), purpose, bytes))
    }

    /// Charges bytes that are held already, even if the client may not have them.
    pub fn charge(&self, purpose: Purpose, bytes: usize) -> Charge {
        self.budget().add(Some(self), purpose, bytes);
        Charge::new(Holder::Account(self.clone()), purpose, bytes)
    }

    /// Why the client may not have `bytes` more now. `None` if it may.
    pub fn shortage(&self, purpose: Purpose, bytes: usize) -> Option<Shortage> {
        self.budget().shortage(Some(self), purpose, bytes)
    }

    /// Waits until the client may have `bytes`, and charges them. The request must not hold anything that others wait
    /// for. `None` if too many requests wait already. Waiting requests are not charged.
    pub async fn wait(&self, purpose: Purpose, bytes: usize) -> Option<Charge> {
        self.wait_and(purpose, bytes, ready(())).await.map(|(charge, ())| charge)
    }

    /// The same, and then waits for `then`. Until that resolves, the request still counts as waiting. So little memory
    /// is held for requests that wait for something else.
    pub async fn wait_and<T>(
        &self,
        purpose: Purpose,
        bytes: usize,
        then: impl Future<Output = T>,
    ) -> Option<(Charge, T)> {
        let budget = self.budget();
        let is_own = self.shortage(purpose, bytes).is_some_and(Shortage::is_of_client);
        let _waiting = budget.begin_waiting(bytes, is_own)?;
        self.wait_until(bytes, || budget.take(Some(self), purpose, bytes)).await;
        let charge = Charge::new(Holder::Account(self.clone()), purpose, bytes);
        // There may be room for another waiter.
        budget.wake_one(self.class());
        Some((charge, then.await))
    }

    /// Waits until the client may have `bytes`. Nothing is charged.
    pub async fn room_for(&self, purpose: Purpose, bytes: usize) {
        self.wait_until(bytes, || self.shortage(purpose, bytes).map_or(Ok(()), Err)).await;
    }

    /// Waits until an attempt to get `bytes` succeeds. A return of bytes wakes one waiter of each class. If it woke
    /// all, it would be slow with many waiters. Each waiter also tries again after [`RETRY`].
    async fn wait_until(&self, bytes: usize, attempt: impl Fn() -> Result<(), Shortage>) {
        let budget = self.budget();
        let mut is_woken = false;
        loop {
            let class = self.class();
            let freed = budget.freed(class);
            let Err(shortage) = attempt() else { return };
            budget.note(shortage, bytes);
            if shortage.is_of_client() {
                // Bytes that other clients return do not help this waiter, but may help the next one.
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

/// The account that a charge counts for.
pub(super) enum Holder {
    Account(Account),
    /// The bytes count for no client.
    NoClient(Arc<Budget>),
}

impl Holder {
    fn budget(&self) -> &Arc<Budget> {
        match self {
            Self::Account(account) => account.budget(),
            Self::NoClient(budget) => budget,
        }
    }

    fn account(&self) -> Option<&Account> {
        match self {
            Self::Account(account) => Some(account),
            Self::NoClient(_) => None,
        }
    }
}

/// Held bytes. They are returned when this is dropped.
pub struct Charge {
    holder: Holder,
    purpose: Purpose,
    bytes: usize,
}

impl Charge {
    /// A charge for bytes that the budget has counted already.
    pub(super) fn new(holder: Holder, purpose: Purpose, bytes: usize) -> Self {
        Self { holder, purpose, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Attaches the charge to `bytes`. It is returned when the last clone or slice of them is dropped.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        struct ChargedBytes(Bytes, #[expect(dead_code, reason = "dropped with the bytes")] Charge);

        impl AsRef<[u8]> for ChargedBytes {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        Bytes::from_owner(ChargedBytes(bytes, self))
    }

    /// Increases the charge. Returns false if the client may not have `by` more: the charge is unchanged, the refusal
    /// is counted, and the server closes connections.
    pub fn grow(&mut self, by: usize) -> bool {
        let budget = self.holder.budget();
        let taken = budget.take(self.holder.account(), self.purpose, by);
        match taken {
            Ok(()) => self.bytes += by,
            Err(shortage) => budget.refuse(shortage, by),
        }
        taken.is_ok()
    }

    /// Increases the charge by bytes that are held already.
    pub fn add(&mut self, bytes: usize) {
        self.holder.budget().add(self.holder.account(), self.purpose, bytes);
        self.bytes += bytes;
    }

    /// Reduces the charge to `bytes`, unless it is smaller.
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
    fn a_class_never_falls() {
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
    fn an_account_counts_what_is_charged_to_it() {
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
    async fn a_waiting_request_is_charged_when_enough_was_returned() {
        let budget = Budget::new(800);
        let (account, other) = (Account::open(&budget, None), Account::open(&budget, None));
        account.raise(ConnectionClass::Known, None);
        let (first, second) = (other.charge(PURPOSE, 500), other.charge(PURPOSE, 300));
        let mut waiting = pin!(account.wait(PURPOSE, 40));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        // Charges of other clients count, even if they may not have them.
        let third = other.charge(PURPOSE, 260);
        drop(second);
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop((first, third));
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_return_of_bytes_wakes_one_waiter_and_the_next_if_there_is_more_room() {
        struct Wakes(AtomicUsize);

        impl Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        // Each needs 300, and gets it only if a quarter of that remains free.
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
                    Poll::Ready(charge) => charges.push(charge.expect("few requests wait")),
                    Poll::Pending => break,
                }
            }
            assert_eq!(charges.len(), served, "{returned}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_at_most_a_sixteenth_of_the_budget() {
        let budget = Budget::new(1_600);
        let account = Account::open(&budget, None);
        let _all = budget.charge(PURPOSE, 1_600);
        let mut context = Context::from_waker(Waker::noop());
        // Other clients hold the whole budget.
        let mut first = Box::pin(account.wait(PURPOSE, 100));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(account.wait(PURPOSE, 1).await.is_none());
        drop(first);
        assert!(pin!(account.wait(PURPOSE, 1)).poll(&mut context).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_client_that_holds_too_much_wait_for_at_most_half_of_that() {
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
    async fn a_waiting_request_reports_its_shortage_repeatedly() {
        let budget = Budget::new(800);
        let account = Account::open(&budget, None);
        let _all = budget.charge(PURPOSE, 800);
        let waiting = account.wait(PURPOSE, 10);
        let reports = async {
            for _ in 0..3 {
                assert_eq!(budget.shortages().await, [(Shortage::Budget, 10)]);
            }
        };
        tokio::select! {
            _ = waiting => panic!("there is no room"),
            () = reports => {}
        }
    }
}
