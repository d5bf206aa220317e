//! What the gateway knows about a client's connection. The socket and the protocol are the server's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ActiveConfig;
use crate::budget::Account;
use crate::fast_path::RequestTracker;
use crate::request::caller::{Caller, LastCredential};
use crate::request::half_close::HalfClose;
use crate::upstream::gate::GateClient;

pub struct Connection {
    pub(super) local: SocketAddr,
    pub(super) peer: IpAddr,
    /// See [`Connection::new_id`].
    pub(super) id: u64,
    pub(super) credential: LastCredential,
    pub(super) tracker: RequestTracker,
    pub(super) account: Account,
    pub(super) half_close: Arc<HalfClose>,
}

impl Connection {
    pub(super) fn open(local: SocketAddr, peer: IpAddr, account: Account) -> Self {
        Self {
            local,
            peer,
            id: Self::new_id(),
            credential: LastCredential::default(),
            tracker: RequestTracker::default(),
            account,
            half_close: Arc::default(),
        }
    }

    /// A number that is unique in this process.
    pub(super) fn new_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Whose share of the call slots a request on this connection uses.
    pub(super) fn client(&self, active: &ActiveConfig, caller: Option<Caller>) -> GateClient {
        GateClient { caller, peer: active.peer(self.peer), connection: self.id }
    }

    /// Its account of the memory budget. The gateway raises the account's class when a caller turns out to be known.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The server sets this when the client closes its sending side.
    pub fn half_close(&self) -> &Arc<HalfClose> {
        &self.half_close
    }
}
