//! What the gateway knows of a client's connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ActiveConfig;
use crate::budget::Account;
use crate::fast_path::RequestTracker;
use crate::request::caller::{Caller, LastCredential};
use crate::request::half_close::HalfClose;
use crate::upstream::gate::GateClient;

/// A client's connection.
pub struct Connection {
    pub(super) local: SocketAddr,
    pub(super) peer: IpAddr,
    /// No other connection of this process has it.
    pub(super) id: u64,
    pub(super) credential: LastCredential,
    pub(super) tracker: RequestTracker,
    pub(super) account: Account,
    pub(super) half_close: Arc<HalfClose>,
}

impl Connection {
    pub(super) fn open(local: SocketAddr, peer: IpAddr, account: Account) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            local,
            peer,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            credential: LastCredential::default(),
            tracker: RequestTracker::default(),
            account,
            half_close: Arc::default(),
        }
    }

    /// Whose request on it this is.
    pub(super) fn client(&self, active: &ActiveConfig, caller: Option<Caller>) -> GateClient {
        GateClient { caller, peer: active.peer(self.peer), connection: self.id }
    }

    /// What its client holds of the memory budget, and how far its callers are known. The gateway raises its class with its
    /// requests.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// By which the gateway is told that the client has closed its sending side.
    pub fn half_close(&self) -> &Arc<HalfClose> {
        &self.half_close
    }
}
