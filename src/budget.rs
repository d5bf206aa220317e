//! The memory budget: it counts all bytes that clients can make the process hold, and the kernel on its behalf.
//!
//! It counts everything that grows with what clients send or do not read: connections, heads, request bodies, buffered
//! responses and socket buffers. It does not count entries in the cache, which `cache.max_size` bounds, or tables that
//! are bounded by number (grants, known heads, refusals).
//!
//! ```text
//! account   what one client holds               collected   bodies that are buffered completely
//! share     how much more a client may have     cgroup      the memory limit of the process
//! ```
//!
//! When a client may not have more memory, the server closes connections (`server/shed.rs`), and the request waits or
//! is refused. A request must not wait while it holds memory that others wait for: [`Account::wait`] charges all that
//! it needs at once.

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

/// The budget in bytes, if none is configured and no cgroup limits the memory of the process.
pub const DEFAULT: usize = 256 << 20;

/// The smallest budget, in bytes.
pub(crate) const SMALLEST: usize = 8 << 20;

/// If less than this is left for unknown callers, in bytes, the limit counts as reached.
const SLACK: usize = 64 << 10;

/// The maximum number of shortages that wait to be handled. Each is of a different class, peer address or caller.
const MAX_PENDING: usize = 16;

/// Requests may wait for at most this fraction of the budget in all: 1/16. Requests of clients that hold too much
/// themselves may wait for half of that.
const WAITING_DIVISOR: usize = 16;

/// The purpose of held bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Purpose {
    /// Open connections: their state, their read buffers and the initial send buffer in the kernel.
    Connections,
    /// Heads, beyond the part that the charge of the connection includes.
    Heads,
    /// Requests in progress: their state, and received parts of bodies that are not read yet.
    Requests,
    /// Request bodies that are buffered completely before they are sent.
    Bodies,
    /// Responses that are buffered completely, and the buffers of relayed responses.
    Responses,
    /// Larger send buffers, for large responses.
    Sockets,
    /// Log lines that wait to be written, and spans that wait to be exported. The maximum is charged while the gateway runs.
    Log,
}

pub struct Budget {
    totals: Mutex<Totals>,
    /// The number of refused charges.
    refused: AtomicUsize,
    /// Bytes that requests wait for.
    waiting: AtomicUsize,
    /// Notified when bytes are returned: one for the waiters of each class, in the order of [`ConnectionClass::ALL`].
    freed: [Notify; ConnectionClass::ALL.len()],
    /// The shortages that wait to be handled, and the bytes that were needed.
    pending: Mutex<Vec<(Shortage, usize)>>,
    shortage_noted: Notify,
}

/// A request that waits for memory, until this is dropped.
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
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            totals: Mutex::new(Totals::new(limit)),
            refused: AtomicUsize::default(),
            waiting: AtomicUsize::default(),
            freed: Default::default(),
            pending: Mutex::default(),
            shortage_noted: Notify::new(),
        })
    }

    /// The size of the budget in bytes: the configured one, or half of the smallest memory limit of the process's
    /// cgroups, but at least [`SMALLEST`] and at most [`DEFAULT`].
    pub fn size(configured: Option<usize>) -> usize {
        configured.unwrap_or_else(|| match memory_limit(Path::new("/")) {
            Some(limit) => usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(SMALLEST, DEFAULT),
            None => DEFAULT,
        })
    }

    /// Changes the limit. Existing charges stay.
    pub fn resize(&self, limit: usize) {
        self.totals().limit = limit;
        self.freed.iter().for_each(Notify::notify_waiters);
    }

    /// The size of the budget, in bytes.
    pub fn limit(&self) -> usize {
        self.totals().limit
    }

    /// The held bytes.
    pub fn used(&self) -> usize {
        self.totals().used
    }

    pub fn used_for(&self, purpose: Purpose) -> usize {
        self.totals().by_purpose[purpose as usize]
    }

    /// The number of charges that were refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether only known callers may have more.
    pub fn is_reached(&self) -> bool {
        self.totals().room(ConnectionClass::Unknown) < SLACK
    }

    /// Charges bytes that are held already and that count for no client.
    pub fn charge(self: &Arc<Self>, purpose: Purpose, bytes: usize) -> Charge {
        self.add(None, purpose, bytes);
        Charge::new(Holder::NoClient(Arc::clone(self)), purpose, bytes)
    }

    /// Waits until clients may not have the memory that they need. Returns each shortage with the bytes that were
    /// needed.
    pub async fn shortages(&self) -> Vec<(Shortage, usize)> {
        loop {
            let notified = self.shortage_noted.notified();
            let pending = std::mem::take(&mut *self.pending());
            if !pending.is_empty() {
                return pending;
            }
            notified.await;
        }
    }

    /// Notes a shortage, so that connections are closed. If only the connection itself holds too much, closing other
    /// connections would not help.
    fn note(&self, shortage: Shortage, bytes: usize) {
        if shortage == Shortage::Connection {
            return;
        }
        let mut pending = self.pending();
        let number = pending.len();
        match pending.iter_mut().find(|(noted, _)| *noted == shortage) {
            Some((_, needed)) => *needed = bytes.max(*needed),
            None if number < MAX_PENDING => pending.push((shortage, bytes)),
            None => {}
        }
        drop(pending);
        self.shortage_noted.notify_one();
    }

    /// Counts a refused charge, and notes the shortage.
    fn refuse(&self, shortage: Shortage, bytes: usize) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.note(shortage, bytes);
    }

    fn shortage(&self, account: Option<&Account>, purpose: Purpose, bytes: usize) -> Option<Shortage> {
        self.totals().shortage(account, purpose, bytes)
    }

    /// Whether at least half of the budget would be free after a charge of `bytes`.
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
        let max = self.limit() / if is_own { 2 * WAITING_DIVISOR } else { WAITING_DIVISOR };
        let fits = |waiting: usize| waiting.checked_add(bytes).filter(|waiting| *waiting <= max);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(WaitingRequest { budget: self, bytes })
    }

    /// Resolves for one waiter of the class when bytes have been returned, also if no request waited at that time.
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

    fn pending(&self) -> MutexGuard<'_, Vec<(Shortage, usize)>> {
        self.pending.lock()
    }

    #[cfg(test)]
    fn with_totals(&self, check: impl FnOnce(&Totals)) {
        check(&self.totals());
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
    fn a_refused_charge_is_reported_and_counted_unless_it_is_optional() {
        let budget = Budget::new(800);
        let account = Account::open(&budget, None);
        account.raise(ConnectionClass::Known, None);
        let mut shortages = pin!(budget.shortages());
        let mut context = Context::from_waker(Waker::noop());
        assert!(account.try_charge_spare(PURPOSE, 500).is_none());
        assert!(shortages.as_mut().poll(&mut context).is_pending());
        assert!(account.try_charge(PURPOSE, 900).is_none());
        assert_eq!(shortages.as_mut().poll(&mut context), Poll::Ready(vec![(Shortage::Budget, 900)]));
        assert_eq!(budget.refused(), 1);
    }

    #[test]
    fn the_limit_is_reached_when_unknown_callers_may_not_have_more() {
        let budget = Budget::new(16 * SLACK);
        assert!(!budget.is_reached());
        let charge = budget.charge(PURPOSE, 14 * SLACK + 2);
        assert!(budget.is_reached());
        drop(charge);
        assert!(!budget.is_reached());
    }
}
