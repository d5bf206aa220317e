//! A gateway as its clients see it, and what is known of it as a member of a fleet.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;

use super::lock;

/// How often it is looked whether the engine was told.
const LOOK: Duration = Duration::from_millis(5);
/// A gateway that has been killed tells no more: after a minute nobody looks.
const MAX_LOOKS: usize = 12_000;

/// When the engine certainly knew what a gateway had to tell.
pub(crate) type Told = Arc<OnceLock<Instant>>;

pub(crate) struct Endpoint {
    process: Mutex<Process>,
}

struct Process {
    address: SocketAddr,
    /// If it is in a fleet and in this process.
    member: Option<Arc<Gateway>>,
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
        Self { process: Mutex::new(Process { address, member }) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        lock(&self.process).address
    }

    pub(crate) fn member(&self) -> Option<Arc<Gateway>> {
        lock(&self.process).member.clone()
    }

    /// Another process has taken its place.
    pub(crate) fn restart(&self, address: SocketAddr, member: Option<Arc<Gateway>>) {
        *lock(&self.process) = Process { address, member };
    }

    fn in_sync_until(&self) -> Option<Instant> {
        let member = self.member()?;
        let (until, _) = member.fleet_sync()?;
        // The clocks of a gateway may be ahead.
        let (now, shown) = (Clock::System.now(), member.now());
        until.checked_duration_since(shown).map_or_else(|| now.checked_sub(shown - until), |left| Some(now + left))
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
        if let Some(member) = self.member() {
            let known = Arc::clone(&told);
            tokio::spawn(async move {
                for _ in 0..MAX_LOOKS {
                    if member.fleet_sync().is_none_or(|(_, is_all_told)| is_all_told) {
                        return known.set(Clock::System.now()).expect("nobody else sets it");
                    }
                    tokio::time::sleep(LOOK).await;
                }
            });
        }
        told
    }
}
