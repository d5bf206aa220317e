//! The memory budget: one count of all bytes that clients can make the process, and the kernel for it, hold.
//!
//! What the cache keeps is not counted here: `cache.max_size` bounds it. Everything else that grows with what clients send
//! or leave unread is: connections, heads, request bodies, responses that are held for them, and socket buffers. Fixed
//! tables (grants, known heads, refusals) are bounded by number.
//!
//! ```text
//! account   what one client holds        collected   bodies that are read whole
//! share     who may have how much more   cgroup      the memory limit of the process
//! ```
//!
//! Where a client may not have more, the server closes connections (`server/shed.rs`), and what was asked for waits or is
//! refused. Nothing here waits while it holds something: [`Account::wait`] charges all that is needed at once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use strum::{IntoStaticStr, VariantArray};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::request::caller::Caller;
use crate::sync::{Mutex, MutexGuard};

mod account;
mod cgroup;
mod collected;
mod share;

pub(crate) use account::ConnectionClass;
use account::Holder;
pub use account::{Account, Charge};
pub(crate) use cgroup::memory_limit;
pub(crate) use collected::Collected;
pub(crate) use share::Shortage;
use share::Totals;

/// The budget where nothing else is configured and no cgroup limits the process, in bytes.
pub const DEFAULT: usize = 256 << 20;

/// The smallest budget, in bytes.
pub(crate) const SMALLEST: usize = 8 << 20;

/// When unknown callers have so many bytes left together, the budget counts as reached.
const SLACK: usize = 64 << 10;

/// How many shortages are noted until somebody looks at them. Each is of another class, peer address or caller.
const MAX_UNSEEN: usize = 16;

/// The part of the budget that requests may wait for: one in so many bytes. Requests of clients that hold too much themselves may
/// wait for half of it.
const WAITING: usize = 16;

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Purpose {
    /// Open connections: their state, read buffers and what the kernel's send buffer takes from the start.
    Connections,
    /// Heads larger than what a connection is charged for.
    Heads,
    /// Requests in progress: their state, and what has come of their bodies unread.
    Requests,
    /// Bodies of requests that are read before they are sent on.
    Bodies,
    /// Responses that are held whole for clients, and buffers of relayed ones.
    Responses,
    /// Larger send buffers, for clients that read large responses.
    Sockets,
    /// Log lines that are not yet written: the most that may wait, for as long as the gateway runs.
    Log,
}

/// The budget. Shared by everything that holds bytes for clients.
pub struct Budget {
    totals: Mutex<Totals>,
    refused: AtomicUsize,
    /// Bytes that requests wait for.
    waiting: AtomicUsize,
    /// Told whenever something is returned, for waiters of each class, in the order of [`ConnectionClass::ALL`].
    freed: [Notify; ConnectionClass::ALL.len()],
    /// The shortages that nobody has looked at, and the bytes that were needed.
    unseen: Mutex<Vec<(Shortage, usize)>>,
    runs_short: Notify,
}

/// A request that waits, until this is dropped.
struct WaitingRequest<'b> {
    budget: &'b Budget,
    bytes: usize,
}

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            totals: Mutex::new(Totals::new(limit)),
            refused: AtomicUsize::default(),
            waiting: AtomicUsize::default(),
            freed: Default::default(),
            unseen: Mutex::default(),
            runs_short: Notify::new(),
        })
    }

    /// The budget as configured, or half of the smallest memory limit of the process's cgroups, but [`DEFAULT`] at most.
    pub fn size(configured: Option<usize>) -> usize {
        configured.unwrap_or_else(|| match memory_limit(Path::new("/")) {
            Some(limit) => usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(SMALLEST, DEFAULT),
            None => DEFAULT,
        })
    }

    /// Changes how many bytes there are. Charges that stand are not touched.
    pub fn resize(&self, limit: usize) {
        self.totals().limit = limit;
        self.freed.iter().for_each(Notify::notify_waiters);
    }

    /// How many bytes there are in all.
    pub fn limit(&self) -> usize {
        self.totals().limit
    }

    /// How many bytes are held.
    pub fn used(&self) -> usize {
        self.totals().used
    }

    /// How many bytes are held for a purpose.
    pub fn used_for(&self, purpose: Purpose) -> usize {
        self.totals().by_purpose[purpose as usize]
    }

    /// How many charges have been refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether nobody but known callers gets any more of it.
    pub fn is_reached(&self) -> bool {
        self.totals().room(ConnectionClass::Unknown) < SLACK
    }

    /// Charges bytes that are held already and that no client answers for.
    pub fn charge(self: &Arc<Self>, purpose: Purpose, bytes: usize) -> Charge {
        self.add(None, purpose, bytes);
        Charge::new(Holder::Nobody(Arc::clone(self)), purpose, bytes)
    }

    /// Waits until clients may not have what they need. Says why, and how many bytes that is.
    pub async fn runs_short(&self) -> Vec<(Shortage, usize)> {
        loop {
            let told = self.runs_short.notified();
            let unseen = std::mem::take(&mut *self.unseen());
            if !unseen.is_empty() {
                return unseen;
            }
            told.await;
        }
    }

    /// Notes that a client may not have what it needs, so that connections are closed. Where only the connection itself holds
    /// too much, closing others would not help.
    fn note(&self, shortage: Shortage, bytes: usize) {
        if shortage == Shortage::Connection {
            return;
        }
        let mut unseen = self.unseen();
        let number = unseen.len();
        match unseen.iter_mut().find(|(noted, _)| *noted == shortage) {
            Some((_, needed)) => *needed = bytes.max(*needed),
            None if number < MAX_UNSEEN => unseen.push((shortage, bytes)),
            None => {}
        }
        drop(unseen);
        self.runs_short.notify_one();
    }

    /// Counts a refusal, and notes it.
    fn refuse(&self, shortage: Shortage, bytes: usize) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.note(shortage, bytes);
    }

    fn shortage(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) -> Option<Shortage> {
        self.totals().shortage(account, purpose, bytes)
    }

    /// Whether more than half of the budget is free besides so many bytes.
    fn has_spare(&self, bytes: usize) -> bool {
        let totals = self.totals();
        totals.used.saturating_add(bytes) <= totals.limit / 2
    }

    fn take(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) -> Result<(), Shortage> {
        let mut totals = self.totals();
        match totals.shortage(account, purpose, bytes) {
            Some(shortage) => Err(shortage),
            None => {
                totals.add(account, purpose, bytes);
                Ok(())
            }
        }
    }

    fn add(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) {
        self.totals().add(account, purpose, bytes);
    }

    fn give_back(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) {
        if bytes > 0 {
            self.totals().subtract(account, purpose, bytes);
            self.freed.iter().for_each(Notify::notify_one);
        }
    }

    fn raise(&self, account: &Account, class: ConnectionClass, caller: Option<Caller>) {
        let is_over = self.totals().raise(account, class, caller);
        if let Some(caller) = caller.filter(|_| is_over) {
            self.note(Shortage::Caller(caller), account.bytes());
        }
    }

    fn begin_waiting(&self, bytes: usize, is_own: bool) -> Option<WaitingRequest<'_>> {
        let most = self.limit() / if is_own { 2 * WAITING } else { WAITING };
        let fits = |waiting: usize| waiting.checked_add(bytes).filter(|waiting| *waiting <= most);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(WaitingRequest { budget: self, bytes })
    }

    /// Resolves for one waiter of the class when something has been returned. That may have been before, when nobody waited.
    fn freed(&self, class: ConnectionClass) -> Notified<'_> {
        self.freed[class as usize].notified()
    }

    /// Wakes one waiter of the class.
    fn wake_one(&self, class: ConnectionClass) {
        self.freed[class as usize].notify_one();
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock()
    }

    fn unseen(&self) -> MutexGuard<'_, Vec<(Shortage, usize)>> {
        self.unseen.lock()
    }

    #[cfg(test)]
    fn with_totals(&self, look: impl FnOnce(&Totals)) {
        look(&self.totals());
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const PURPOSE: Purpose = Purpose::Heads;

    #[test]
    fn a_refusal_is_told_and_counted_unless_the_client_can_do_without() {
        let budget = Budget::new(800);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let mut short = pin!(budget.runs_short());
        let mut context = Context::from_waker(Waker::noop());
        assert!(account.try_charge_spare(PURPOSE, 500).is_none());
        assert!(short.as_mut().poll(&mut context).is_pending());
        assert!(account.try_charge(PURPOSE, 900).is_none());
        assert_eq!(short.as_mut().poll(&mut context), Poll::Ready(vec![(Shortage::Budget, 900)]));
        assert_eq!(budget.refused(), 1);
    }

    #[test]
    fn it_is_reached_when_unknown_callers_get_no_more() {
        let budget = Budget::new(16 * SLACK);
        assert!(!budget.is_reached());
        let charge = budget.charge(PURPOSE, 14 * SLACK + 2);
        assert!(budget.is_reached());
        drop(charge);
        assert!(!budget.is_reached());
    }
}
