//! Tracks whether an HTTP/1 client has closed its sending side (TCP half-close) while its request is in progress.
//!
//! Such a client may have gone, or may still wait for the response; the gateway sees which only when it writes. So the
//! request must not hold resources that others need: the connection reports the half-close here, and the request's call
//! may lose its slot.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use crate::sync::{AtomicBool, Mutex, MutexGuard};

/// Moves a call that has a slot to the class `half-closed`. Returns whether the call may keep its slot.
type HalfCloseHandler = Box<dyn Fn() -> bool + Send>;

/// Whether the client of one connection has closed its sending side.
#[derive(Default)]
pub struct HalfClose {
    is_closed: AtomicBool,
    state: Mutex<HalfCloseState>,
}

#[derive(Default)]
struct HalfCloseState {
    /// Wakes the request that waits in [`HalfClose::closed`].
    waiting: Option<Waker>,
    /// For the last slot that a request of the connection has got.
    handler: Option<HalfCloseHandler>,
}

impl HalfClose {
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Records that the client has closed its sending side. Returns `false` if the request loses its
    /// call slot, so that the connection must be closed.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        self.is_closed.store(true, Ordering::Release);
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        state.handler.take().is_none_or(|may_keep_slot| may_keep_slot())
    }

    /// Resolves when the client closes its sending side. Only one task at a time may wait.
    pub async fn closed(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if self.is_closed() {
                return Poll::Ready(());
            }
            state.waiting = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Records that the request has got a call slot. `may_keep_slot` is called when the client closes its sending side.
    /// Returns whether the request may keep the slot now: if the client has closed already, that is asked at once.
    pub fn may_keep_slot(&self, may_keep_slot: impl Fn() -> bool + Send + 'static) -> bool {
        let mut state = self.state();
        if self.is_closed() {
            return may_keep_slot();
        }
        state.handler = Some(Box::new(may_keep_slot));
        true
    }

    fn state(&self) -> MutexGuard<'_, HalfCloseState> {
        self.state.lock()
    }
}

impl fmt::Debug for HalfClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HalfClose").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use shuttle::future::block_on;
    use shuttle::thread;

    use super::*;
    use crate::sync::explore::explore;

    #[test]
    fn a_request_sees_every_half_close_and_is_asked_for_its_slot_once() {
        explore(|| {
            let (half_close, asked) = (HalfClose::default(), Arc::new(AtomicUsize::new(0)));
            let handler = {
                let asked = Arc::clone(&asked);
                move || asked.fetch_add(1, Ordering::SeqCst) == 0
            };
            thread::scope(|threads| {
                threads.spawn(|| block_on(half_close.closed()));
                threads.spawn(|| half_close.may_keep_slot(handler));
                threads.spawn(|| half_close.close());
            });
            assert_eq!(asked.load(Ordering::SeqCst), 1);
        });
    }

    #[tokio::test]
    async fn a_half_close_wakes_the_waiting_request_and_asks_for_its_slot() {
        for keeps in [true, false] {
            let half_close = Arc::new(HalfClose::default());
            assert!(half_close.may_keep_slot(move || keeps));
            let waiting = tokio::spawn({
                let half_close = Arc::clone(&half_close);
                async move { half_close.closed().await }
            });
            tokio::task::yield_now().await;
            assert!(!half_close.is_closed());
            assert_eq!(half_close.close(), keeps);
            waiting.await.unwrap();
            assert_eq!(format!("{half_close:?}"), "HalfClose { is_closed: true, .. }");
            assert_eq!(half_close.may_keep_slot(move || keeps), keeps, "a later slot is asked for immediately");
        }
    }
}
