//! How a listener closes. One of the gateway's own is simply gone: from then on nobody can connect, and connections that
//! are just idle may end at once. One that was handed down goes on without this process, so clients must not
//! notice: for a moment those that are connected are told with each answer that they have to come again, and only
//! then idle connections end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::serve::draining;

/// How long clients are told so. Longer than one that keeps asking stays silent; who does for longer may see that its
/// connection has ended before it asks again.
const LAST_ROUND: Duration = Duration::from_secs(1);

/// How far it has come, from nothing.
const LEAVING: u8 = 1;
const DRAINING: u8 = 2;

/// Closes a listener.
pub(super) struct Exit {
    wanted: watch::Receiver<bool>,
    is_inherited: bool,
    stage: Arc<AtomicU8>,
    leaving: watch::Sender<bool>,
    draining: watch::Sender<bool>,
}

/// Whether the connections of a listener are about to end.
#[derive(Clone)]
pub(super) struct Leaving {
    /// For those who ask with each request: cheaper than the channels.
    stage: Arc<AtomicU8>,
    begun: watch::Receiver<bool>,
}

impl Exit {
    /// When it is wanted, from a listener that was handed down or not.
    pub(super) fn new(wanted: watch::Receiver<bool>, is_inherited: bool) -> Self {
        let channel = || watch::channel(false).0;
        Self { wanted, is_inherited, stage: Arc::default(), leaving: channel(), draining: channel() }
    }

    /// What tells connections that their time is coming.
    pub(super) fn leaving(&self) -> Leaving {
        Leaving { stage: Arc::clone(&self.stage), begun: self.leaving.subscribe() }
    }

    /// What tells them that it has come.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Resolves when nothing more is to be accepted.
    pub(super) fn wanted(&self) -> impl Future<Output = ()> + use<> {
        let mut wanted = self.wanted.clone();
        async move { draining(&mut wanted).await }
    }

    /// Has the connections end in good order, and waits until they are `gone`: false if they were not in time.
    pub(super) async fn close<F: Future>(&self, gone: impl Fn() -> F, limit: Duration) -> bool {
        let mut left = limit;
        if self.is_inherited {
            self.leave();
            let round = LAST_ROUND.min(limit / 2);
            if timeout(round, gone()).await.is_ok() {
                return true;
            }
            left -= round;
        }
        self.drain();
        timeout(left, gone()).await.is_ok()
    }

    /// From now on answers say that their connection ends.
    pub(super) fn leave(&self) {
        self.stage.store(LEAVING, Ordering::Release);
        self.leaving.send_replace(true);
    }

    /// From now on idle connections end.
    pub(super) fn drain(&self) {
        self.stage.store(DRAINING, Ordering::Release);
        self.draining.send_replace(true);
    }
}

impl Leaving {
    /// Whether they are, so that what is answered now is the last answer.
    pub(super) fn is_begun(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= LEAVING
    }

    /// Whether this is the time in which they are told, and nothing else is done.
    pub(super) fn is_last_round(&self) -> bool {
        self.stage.load(Ordering::Acquire) == LEAVING
    }

    /// Resolves when they are; if nobody can say so any more, never.
    pub(super) async fn begun(&mut self) {
        draining(&mut self.begun).await;
    }
}
