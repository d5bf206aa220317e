//! A client of HTTP/1 that closes its sending side after its request, and may still wait for the answer.
//!
//! Until the gateway writes to it, such a client cannot be told from one that has gone. So its request must not take from others what
//! it may not need: its connection tells here that the client has closed, and the gateway has the request give way.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use crate::sync::{Mutex, MutexGuard};

/// Moves a slot's call to the class `half-closed`. Returns `false` if the slot must be released.
type GivesWay = Box<dyn Fn() -> bool + Send>;

/// Whether the client of one connection has closed its sending side.
#[derive(Default)]
pub struct HalfClose {
    is_closed: AtomicBool,
    state: Mutex<HalfCloseState>,
}

#[derive(Default)]
struct HalfCloseState {
    /// Of the request that is under way, where it waits for something.
    waiting: Option<Waker>,
    /// Of the slot that it has, or had.
    gives_way: Option<GivesWay>,
}

impl HalfClose {
    /// Whether the client has closed its sending side.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Notes that it has. `false` if the request under way has a slot that cannot give way, so that its connection has to
    /// end.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        self.is_closed.store(true, Ordering::Release);
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        state.gives_way.take().is_none_or(|gives_way| gives_way())
    }

    /// Resolves when the client closes its sending side. One at a time may wait for it.
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

    /// Notes that the request under way has a slot, which gives way once the client closes its sending side. `false` if it
    /// has closed already, and the slot cannot give way.
    pub fn holds(&self, gives_way: impl Fn() -> bool + Send + 'static) -> bool {
        let mut state = self.state();
        if self.is_closed() {
            return gives_way();
        }
        state.gives_way = Some(Box::new(gives_way));
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

    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_and_a_slot_gives_way() {
        for gives_way in [true, false] {
            let half_close = Arc::new(HalfClose::default());
            assert!(half_close.holds(move || gives_way));
            let waiting = tokio::spawn({
                let half_close = Arc::clone(&half_close);
                async move { half_close.closed().await }
            });
            tokio::task::yield_now().await;
            assert!(!half_close.is_closed());
            assert_eq!(half_close.close(), gives_way);
            waiting.await.unwrap();
            assert_eq!(half_close.holds(move || gives_way), gives_way, "a slot that is taken later gives way at once");
        }
    }
}
