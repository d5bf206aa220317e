//! How a listener closes. Nothing here closes connections: they follow the stages.
//!
//! A listener of the gateway's own is closed immediately: from then on, clients cannot connect, and idle connections
//! may end. An inherited listener is served on by another process, so clients must not notice. For a short time,
//! responses announce that the connection ends (`Connection: close`, GOAWAY). Only then do idle connections end.
//!
//! An HTTP/2 connection with requests in progress gets its GOAWAY after their responses, because some clients close as
//! soon as they read one. If it always has requests in progress, it gets GOAWAY after half of the shutdown timeout.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long the end of connections is announced. Clients that send requests continually are idle for less than this.
/// The connections of others may close without an announcement.
const ANNOUNCE_TIME: Duration = Duration::from_secs(1);

/// The stages of closing, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Stage {
    Open,
    Announced,
    Draining,
    GoawayForced,
}

/// Controls the shutdown of one listener.
pub(super) struct ShutdownControl {
    requested: watch::Receiver<bool>,
    is_inherited: bool,
    stage: Arc<AtomicU8>,
    changes: watch::Sender<Stage>,
    draining: watch::Sender<bool>,
}

/// Shows the connections of a listener the stage of its shutdown.
#[derive(Clone)]
pub(super) struct ListenerShutdown {
    /// Read on each request: cheaper than the channel.
    stage: Arc<AtomicU8>,
    changes: watch::Receiver<Stage>,
}

impl ShutdownControl {
    /// `requested` becomes true when the listener has to close.
    pub(super) fn new(requested: watch::Receiver<bool>, is_inherited: bool) -> Self {
        let (changes, draining) = (watch::channel(Stage::Open).0, watch::channel(false).0);
        Self { requested, is_inherited, stage: Arc::new(AtomicU8::new(Stage::Open as u8)), changes, draining }
    }

    pub(super) fn shutdown(&self) -> ListenerShutdown {
        ListenerShutdown { stage: Arc::clone(&self.stage), changes: self.changes.subscribe() }
    }

    /// Becomes true when idle connections have to end.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Resolves when no more connections may be accepted.
    pub(super) fn requested(&self) -> impl Future<Output = ()> + use<> {
        let mut requested = self.requested.clone();
        async move { draining(&mut requested).await }
    }

    /// Closes all connections gracefully, and waits until `all_closed`. Returns false at the timeout.
    pub(super) async fn close<F: Future>(&self, all_closed: impl Fn() -> F, limit: Duration) -> bool {
        let mut left = limit;
        if self.is_inherited {
            self.announce();
            let announced = ANNOUNCE_TIME.min(limit / 2);
            if timeout(announced, all_closed()).await.is_ok() {
                return true;
            }
            left -= announced;
        }
        self.drain();
        if timeout(left / 2, all_closed()).await.is_ok() {
            return true;
        }
        self.force_goaway();
        timeout(left - left / 2, all_closed()).await.is_ok()
    }

    /// From now on, responses announce that the connection ends.
    pub(super) fn announce(&self) {
        self.set_stage(Stage::Announced);
    }

    /// From now on, idle connections end.
    pub(super) fn drain(&self) {
        self.set_stage(Stage::Draining);
        self.draining.send_replace(true);
    }

    /// From now on, HTTP/2 connections with requests in progress get GOAWAY, too. These requests are still answered.
    pub(super) fn force_goaway(&self) {
        self.set_stage(Stage::GoawayForced);
    }

    fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
        self.changes.send_replace(stage);
    }
}

impl ListenerShutdown {
    /// Whether shutdown has started, so that the next response is the connection's last one.
    pub(super) fn has_started(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= Stage::Announced as u8
    }

    /// Whether the end of connections is announced and no connection is closed yet.
    pub(super) fn is_announcing(&self) -> bool {
        self.stage.load(Ordering::Acquire) == Stage::Announced as u8
    }

    /// Resolves when shutdown starts; never if the control is dropped before.
    pub(super) async fn started(&mut self) {
        self.reached(Stage::Announced).await;
    }

    /// Resolves when HTTP/2 connections have to send GOAWAY even with requests in progress; never if the control is
    /// dropped before.
    pub(super) async fn goaway_forced(&mut self) {
        self.reached(Stage::GoawayForced).await;
    }

    async fn reached(&mut self, stage: Stage) {
        if self.changes.wait_for(|&current| current >= stage).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Resolves when `drain` becomes true; never if its sender is dropped before.
pub(super) async fn draining(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|&draining| draining).await.is_err() {
        std::future::pending().await
    }
}
