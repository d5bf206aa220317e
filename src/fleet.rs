//! The engine (Valkey or Redis) that several gateways share, as a second tier. A request never depends on it: without an
//! answer within its budget, the request goes on without it.
//!
//! - `keeper`: the task that keeps a link to the engine. It reads the log, and `teller` tells the engine.
//! - `check`: tries whether the engine can be used, for `check --fleet`.
//! - `commands`: the commands, and how replies are read. Pure.
//! - `requests`: what requests do with the engine: look-ups, records and leases.
//! - `link`: connections to the node that has the keys; `dialer` finds the node, `stream` and `framing` bound what it may
//!   send, `tls` is for `rediss://`, and `diagnosis` says what a node seems to be that cannot be used.
//! - `breaker`: when look-ups are sent. Pure.
//! - `notices`: what all gateways must know. Pure.
//! - `log`: how far the log has been read. Pure.

mod breaker;
mod check;
mod commands;
mod connection;
mod diagnosis;
mod dialer;
mod framing;
pub(crate) mod fuzz;
mod keeper;
mod link;
mod log;
mod notices;
mod requests;
mod stream;
mod teller;
mod tls;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};
use tokio::sync::{Notify, Semaphore};

pub(crate) use self::check::check;
pub(crate) use self::commands::Fault;
use self::commands::{Fresh, Keys, OF_PROCESS};
pub use self::commands::{RELEASE, RENEW, STORE, TELL};
use self::connection::MAX_IN_FLIGHT;
use self::link::Link;
use self::log::LogPosition;
use self::notices::Notices;
pub(crate) use self::notices::{Everything, Extent};
use crate::cache::fleet_sync::FleetSync;
use crate::cache::second_tier::{Incarnation, Lease, Name, NoticeKind, Order, Place, RecordKind};
use crate::config::fleet::FleetConfig;
use crate::machine::Machine;
use crate::random::HashMap;
use crate::sync::{Mutex, RwLock};

/// Why the engine is not in use, and details for an operator.
pub(crate) type LinkError = (Fault, String);

/// The result of a look-up. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum LookUpResult {
    /// There was a record. Whether it can be used is found out later.
    Record,
    /// There was no record, or a void one.
    None,
    /// Only a ticket was wanted.
    Ticket,
    /// The engine is not in use, or too many look-ups wait for it.
    Skipped,
    /// No reply within the budget.
    Late,
    /// An error.
    Failed,
}

/// What has become of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum StoreResult {
    Stored,
    /// A later record was there, or the engine has lost its data meanwhile.
    Outdated,
    /// Larger than `fleet.max_body_size`.
    TooLarge,
    /// The engine is not in use, or too many records are on their way.
    Skipped,
    Failed,
}

/// What has become of a notice. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum TellResult {
    Told,
    /// Another gateway has told it again already.
    Known,
    /// It is about a caller that no gateway knows.
    Stranger,
    /// The engine did not accept it. It is told again, unless it is a hint.
    Failed,
    /// There were too many about callers that this gateway does not know, or too many or too long hints.
    Dropped,
}

/// What is reported of the engine.
pub(crate) trait Watcher: Send + Sync {
    fn looked_up(&self, result: LookUpResult, took: Duration);
    fn stored(&self, kind: RecordKind, result: StoreResult);
    fn told(&self, kind: NoticeKind, result: TellResult);
    /// Notices of other gateways have been lost.
    fn missed(&self);
    /// A link has ended, or could not be opened.
    fn faulted(&self, fault: Fault);
    /// The engine is in use from now on, with keys that begin with this; or no longer, or not as it should be, because of a
    /// fault, with details for an operator.
    fn changed(&self, state: Result<String, LinkError>);
}

/// Whether the engine is in use, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineState {
    InUse,
    /// It does not answer in time.
    Slow,
    /// It accepts nothing new. What it has is looked up.
    Full,
    /// There is no usable connection.
    Unlinked(Fault),
    /// No connection has been tried yet.
    Starting,
}

impl EngineState {
    /// Why the engine is not in use, or is not fully. For an operator.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::InUse => "it is in use",
            Self::Slow => Fault::Silent.describe(),
            Self::Full => Fault::Full.describe(),
            Self::Unlinked(fault) => fault.describe(),
            Self::Starting => "no connection has been tried yet",
        }
    }
}

impl From<EngineState> for &'static str {
    fn from(state: EngineState) -> Self {
        match state {
            EngineState::InUse => "in-use",
            EngineState::Slow => "slow",
            EngineState::Full => Fault::Full.into(),
            EngineState::Unlinked(fault) => fault.into(),
            EngineState::Starting => "starting",
        }
    }
}

/// The records on their way to the engine have at most so many KiB, or there is only one of them.
const MAX_STORED_KIB: u32 = 4096;
/// A record is kept no longer than a response can be of use by default, in any case.
const MAX_LIFETIME: Duration = Duration::from_secs(2 * 3600 + 300);

/// What the secret of a fleet gives: names, and notices that only this fleet can read.
pub(crate) struct FleetSecret {
    /// Gateways with another one are another fleet.
    pub(crate) id: Name,
    pub(crate) everything: Everything,
}

pub(crate) struct Fleet {
    config: FleetConfig,
    keys: Keys,
    machine: Machine,
    watcher: Arc<dyn Watcher>,
    /// Or why there is none. `None` before the first attempt.
    link: RwLock<Result<Arc<Link>, Option<LinkError>>>,
    /// No look-up is sent for what the notices concern that wait.
    notices: Mutex<Notices>,
    /// Until when this gateway knows what the others know.
    sync: Arc<FleetSync>,
    position: Mutex<LogPosition>,
    to_tell: Notify,
    all_told: Notify,
    in_flight: Arc<Semaphore>,
    stores: Arc<Semaphore>,
    /// The leases that this process has, with their holders.
    leases: Mutex<HashMap<Name, Lease>>,
    nonce: AtomicU64,
    /// Incarnations are derived from it, each from another number.
    incarnations: [u8; 32],
    /// The last ticket that the engine has given.
    latest: Mutex<Option<Order>>,
    /// The state that was reported last.
    state: Mutex<EngineState>,
}

impl Fleet {
    /// It connects when [`Self::run`] is called.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn new(
        config: FleetConfig,
        secret: FleetSecret,
        sync: Arc<FleetSync>,
        machine: Machine,
        watcher: Arc<dyn Watcher>,
    ) -> io::Result<Self> {
        let FleetSecret { id, everything } = secret;
        let all = [NoticeKind::Entries, NoticeKind::Grants]
            .map(|kind| everything(kind, Extent::Engine).voids.unwrap_or_default());
        Ok(Self {
            keys: Keys::new(&config.name, id, all),
            config,
            incarnations: machine.random.key("incarnations")?,
            machine,
            watcher,
            link: RwLock::new(Err(None)),
            notices: Mutex::new(Notices::new(everything)),
            sync,
            position: Mutex::default(),
            to_tell: Notify::new(),
            all_told: Notify::new(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            stores: Arc::new(Semaphore::new(MAX_STORED_KIB as usize)),
            leases: Mutex::default(),
            nonce: AtomicU64::default(),
            latest: Mutex::default(),
            state: Mutex::new(EngineState::Starting),
        })
    }

    pub(crate) fn state(&self) -> EngineState {
        self.state.lock().clone()
    }

    /// Whether look-ups are sent.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self.state(), EngineState::InUse | EngineState::Full)
    }

    /// What the names of all its keys begin with. Gateways with the same one in one engine are one fleet.
    pub(crate) fn key_prefix(&self) -> &str {
        self.keys.prefix()
    }

    /// How many notices the engine does not know yet.
    pub(crate) fn to_tell(&self) -> usize {
        self.notices.lock().len()
    }

    /// Whether the engine knows all that has become void here, or that it concerns nobody.
    pub(crate) fn has_told_all(&self) -> bool {
        self.notices.lock().are_told()
    }

    /// Whether this gateway knows what the others know, and until when it does or did.
    pub(crate) fn sync(&self) -> &FleetSync {
        &self.sync
    }

    /// Since when this gateway may not know what the others have told, as a time span until `now`. Zero in sync.
    pub(crate) fn sync_age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.sync.ended())
    }

    fn connect(&self, link: Arc<Link>) {
        *self.link.write() = Ok(link);
        self.report();
    }

    fn unlink(&self, error: LinkError) {
        self.watcher.faulted(error.0);
        if error.0 == Fault::NotMaster {
            // Others tell the other node.
            self.sync.end(self.machine.clock.now());
        }
        *self.link.write() = Err(Some(error));
        self.report();
    }

    /// Reports the state if it has changed.
    fn report(&self) {
        let mut state = self.state.lock();
        let (now, report) = match &*self.link.read() {
            Ok(link) if link.breaker.lock().is_open() => {
                (EngineState::Slow, Err((Fault::Silent, "three look-ups in a row took too long".to_owned())))
            }
            Ok(link) if link.is_full.load(Ordering::Relaxed) => {
                (EngineState::Full, Err((Fault::Full, link.node.clone())))
            }
            Ok(_) => (EngineState::InUse, Ok(self.keys.prefix().to_owned())),
            Err(Some(error)) => (EngineState::Unlinked(error.0), Err(error.clone())),
            Err(None) => return,
        };
        if std::mem::replace(&mut *state, now.clone()) != now {
            self.watcher.changed(report);
        }
    }

    /// A number that this process has not used yet, and 16 bytes that nobody has used.
    fn next(&self) -> Fresh {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.incarnations, &nonce.to_le_bytes());
        let mut incarnation = Incarnation::default();
        incarnation.copy_from_slice(&hash.as_bytes()[..16]);
        Fresh { incarnation, nonce }
    }

    /// The holder of this process's leases, without what differs between them.
    fn holder(&self) -> Incarnation {
        let mut holder = Incarnation::default();
        holder.copy_from_slice(&blake3::keyed_hash(&self.incarnations, b"holder").as_bytes()[..16]);
        holder
    }

    /// The holder of a new lease.
    fn new_holder(&self, nonce: u64) -> Incarnation {
        let mut holder = self.holder();
        holder[OF_PROCESS..].copy_from_slice(&nonce.to_be_bytes());
        holder
    }

    /// The link, if look-ups of these places may be sent.
    fn usable(&self, places: &[Place]) -> Option<Arc<Link>> {
        let link = self.link.read().as_ref().ok().filter(|link| !link.is_failed()).cloned()?;
        let is_slow = link.breaker.lock().is_open();
        let are_told = || {
            let notices = self.notices.lock();
            !places.iter().any(|place| notices.concerns(place))
        };
        (!is_slow && are_told()).then_some(link)
    }

    /// Whether the engine knows all that has become void for a place.
    pub(crate) fn is_told_of(&self, place: &Place) -> bool {
        !self.notices.lock().concerns(place)
    }
}
