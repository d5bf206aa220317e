//! A gateway as its clients see it, and what is known of it as a member of a fleet.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;

use super::lock;

/// How often it is looked whether the engine was told.
const LOOK: Duration = Duration::from_millis(5);

/// When the engine certainly knew what a gateway had to tell.
pub(crate) type Told = Arc<OnceLock<Instant>>;

pub(crate) struct Endpoint {
    /// Of its present process.
    address: Mutex<SocketAddr>,
    /// If it is in a fleet and in this process.
    pub(crate) member: Option<Arc<Gateway>>,
}

/// How a gateway stood with its fleet during all of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    InSync,
    OutOfSync,
    /// Both, or it is not known.
    Unknown,
}

#[derive(Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) at: Instant,
    in_sync_until: Option<Instant>,
}

impl Begun {
    /// A request to a gateway in another process, which is in sync at least until this time.
    pub(crate) fn elsewhere(in_sync_until: Instant) -> Self {
        Self { at: Clock::System.now(), in_sync_until: Some(in_sync_until) }
    }

    /// The gateway has decided, and is now in sync at least until this time.
    pub(crate) fn end(self, decided: Instant, in_sync_until: Instant) -> Standing {
        match self.in_sync_until {
            Some(before) if before > decided && in_sync_until > decided => Standing::InSync,
            _ => Standing::Unknown,
        }
    }
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, member: Option<Arc<Gateway>>) -> Self {
        Self { address: Mutex::new(address), member }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *lock(&self.address)
    }

    pub(crate) fn move_to(&self, address: SocketAddr) {
        *lock(&self.address) = address;
    }

    fn in_sync_until(&self) -> Option<Instant> {
        self.member.as_ref()?.fleet_sync().map(|(until, _)| until)
    }

    pub(crate) fn is_in_sync(&self) -> bool {
        self.in_sync_until().is_some_and(|until| until > Clock::System.now())
    }

    /// A request begins.
    pub(crate) fn begin(&self) -> Begun {
        let in_sync_until = self.in_sync_until();
        Begun { at: Clock::System.now(), in_sync_until }
    }

    /// The gateway has decided. A gateway knows a second ahead until when it is in sync, so this is exact.
    pub(crate) fn end(&self, begun: Begun) -> (Instant, Standing) {
        let decided = Clock::System.now();
        let standing = match (begun.in_sync_until, self.in_sync_until()) {
            (Some(before), Some(after)) if before > decided && after > decided => Standing::InSync,
            (Some(before), Some(after)) if before <= begun.at && after <= begun.at => Standing::OutOfSync,
            _ => Standing::Unknown,
        };
        (decided, standing)
    }

    /// When the engine knows all that this gateway has to tell now.
    pub(crate) fn told(&self) -> Told {
        let told = Told::default();
        if let Some(member) = self.member.clone() {
            let known = Arc::clone(&told);
            tokio::spawn(async move {
                while member.fleet_sync().is_some_and(|(_, is_all_told)| !is_all_told) {
                    tokio::time::sleep(LOOK).await;
                }
                known.set(Clock::System.now()).expect("nobody else sets it");
            });
        }
        told
    }
}
