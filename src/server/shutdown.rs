//! How a listener closes. One of the gateway's own is simply gone: from then on nobody can connect, and connections that
//! are just idle may end at once. One that was handed down goes on without this process, so clients must not
//! notice: for a moment those that are connected are told with each answer that they have to come again, and only
//! then idle connections end.
//!
//! A connection in HTTP/2 with requests in progress is told when they are answered, because some clients close as soon as they
//! read a GOAWAY. If it always has some, it is told when half of the time is over.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long clients are told so. Longer than one that keeps asking stays silent; who does for longer may see that its
/// connection has ended before it asks again.
const LAST_ROUND: Duration = Duration::from_secs(1);

/// Stages of closing. Before the first it is 0.
const ANNOUNCED: u8 = 1;
const DRAINING: u8 = 2;
const INSISTING: u8 = 3;

/// Closes a listener.
pub(super) struct ShutdownControl {
    wanted: watch::Receiver<bool>,
    is_inherited: bool,
    stage: Arc<AtomicU8>,
    shutdown: watch::Sender<u8>,
    draining: watch::Sender<bool>,
}

/// Whether the connections of a listener are about to end.
#[derive(Clone)]
pub(super) struct ListenerShutdown {
    /// For those who ask with each request: cheaper than the channels.
    stage: Arc<AtomicU8>,
    changes: watch::Receiver<u8>,
}

impl ShutdownControl {
    /// When it is wanted, from a listener that was handed down or not.
    pub(super) fn new(wanted: watch::Receiver<bool>, is_inherited: bool) -> Self {
        let (shutdown, draining) = (watch::channel(0).0, watch::channel(false).0);
        Self { wanted, is_inherited, stage: Arc::default(), shutdown, draining }
    }

    /// What tells connections that their time is coming.
    pub(super) fn shutdown(&self) -> ListenerShutdown {
        ListenerShutdown { stage: Arc::clone(&self.stage), changes: self.shutdown.subscribe() }
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
        if timeout(left / 2, gone()).await.is_ok() {
            return true;
        }
        self.insist();
        timeout(left - left / 2, gone()).await.is_ok()
    }

    /// From now on answers say that their connection ends.
    pub(super) fn leave(&self) {
        self.enter(ANNOUNCED);
    }

    /// From now on idle connections end.
    pub(super) fn drain(&self) {
        self.enter(DRAINING);
        self.draining.send_replace(true);
    }

    /// From now on those in HTTP/2 end, too, that have requests in progress. These are still answered.
    pub(super) fn insist(&self) {
        self.enter(INSISTING);
    }

    fn enter(&self, stage: u8) {
        self.stage.store(stage, Ordering::Release);
        self.shutdown.send_replace(stage);
    }
}

impl ListenerShutdown {
    /// Whether they are, so that what is answered now is the last answer.
    pub(super) fn is_begun(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= ANNOUNCED
    }

    /// Whether this is the time in which they are told, and nothing else is done.
    pub(super) fn is_last_round(&self) -> bool {
        self.stage.load(Ordering::Acquire) == ANNOUNCED
    }

    /// Resolves when they are; if nobody can say so any more, never.
    pub(super) async fn begun(&mut self) {
        self.reaches(ANNOUNCED).await;
    }

    /// Resolves when connections in HTTP/2 end whatever is in progress; if nobody can say so any more, never.
    pub(super) async fn insists(&mut self) {
        self.reaches(INSISTING).await;
    }

    async fn reaches(&mut self, stage: u8) {
        if self.changes.wait_for(|&reached| reached >= stage).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Resolves when it is time to drain; if nobody can say so any more, never.
pub(super) async fn draining(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|&draining| draining).await.is_err() {
        std::future::pending().await
    }
}
