//! The engine (Valkey or Redis) that several gateways share, as a second tier. A request never depends on it: without an
//! answer within its budget, the request goes on without it.
//!
//! - `keeper`: the task that keeps a link to the engine.
//! - `commands`: the commands, and how replies are read. Pure.
//! - `link`: connections to the node that has the keys; `stream` and `framing` bound what it may send, `tls`
//!   is for `rediss://`.
//! - `breaker`: when look-ups are sent. Pure.
//! - `pending`: what has become void and must be told. Pure.

mod breaker;
mod commands;
mod framing;
mod keeper;
mod link;
mod pending;
mod stream;
mod tls;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

pub(crate) use self::commands::Fault;
use self::commands::{Keys, LookUp, read_done};
pub(crate) use self::keeper::check;
use self::link::{Link, MAX_IN_FLIGHT};
use self::pending::Pending;
use crate::cache::second_tier::{Incarnation, LookedUp, Order, Place, SecondTier, Ticket, Voided};
use crate::clock::Clock;
use crate::config::fleet::FleetConfig;
use crate::random::Random;
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

/// What the engine was told.
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

/// What is reported of the engine.
pub(crate) trait Watcher: Send + Sync {
    fn looked_up(&self, result: LookUpResult, took: Duration);
    fn stored(&self, result: StoreResult);
    /// A link has ended, or could not be opened.
    fn faulted(&self, fault: Fault);
    /// The engine is in use from now on, or no longer because of `fault`, with details for an operator.
    fn changed(&self, state: Result<(), LinkError>);
}

/// Whether the engine is in use, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineState {
    InUse,
    /// It does not answer in time.
    Slow,
    /// There is no usable connection.
    Unlinked(Fault),
    /// No connection has been tried yet.
    Starting,
}

impl From<EngineState> for &'static str {
    fn from(state: EngineState) -> Self {
        match state {
            EngineState::InUse => "in-use",
            EngineState::Slow => "slow",
            EngineState::Unlinked(fault) => fault.into(),
            EngineState::Starting => "starting",
        }
    }
}

/// The records on their way to the engine have at most so many KiB, or there is only one of them.
const MAX_STORED_KIB: u32 = 4096;
/// A record is kept no longer than a response can be of use by default, in any case.
const MAX_LIFETIME: Duration = Duration::from_secs(2 * 3600 + 300);

pub(crate) struct Fleet {
    config: FleetConfig,
    keys: Keys,
    clock: Clock,
    random: Random,
    watcher: Arc<dyn Watcher>,
    /// Or why there is none. `None` before the first attempt.
    link: RwLock<Result<Arc<Link>, Option<LinkError>>>,
    /// No look-up is sent for what it concerns.
    pending: Mutex<Pending>,
    to_tell: Notify,
    all_told: Notify,
    in_flight: Arc<Semaphore>,
    stores: Arc<Semaphore>,
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
        clock: Clock,
        random: Random,
        watcher: Arc<dyn Watcher>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            keys: Keys::new(&config.name),
            config,
            clock,
            incarnations: random.key("incarnations")?,
            random,
            watcher,
            link: RwLock::new(Err(None)),
            pending: Mutex::default(),
            to_tell: Notify::new(),
            all_told: Notify::new(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            stores: Arc::new(Semaphore::new(MAX_STORED_KIB as usize)),
            nonce: AtomicU64::default(),
            latest: Mutex::default(),
            state: Mutex::new(EngineState::Starting),
        }))
    }

    pub(crate) fn state(&self) -> EngineState {
        self.state.lock().clone()
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.state() == EngineState::InUse
    }

    /// How much has become void that the engine does not know yet.
    pub(crate) fn to_tell(&self) -> usize {
        self.pending.lock().len()
    }

    fn connect(&self, link: Arc<Link>) {
        *self.link.write() = Ok(link);
        self.report();
    }

    fn unlink(&self, error: LinkError) {
        self.watcher.faulted(error.0);
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
            Ok(_) => (EngineState::InUse, Ok(())),
            Err(Some(error)) => (EngineState::Unlinked(error.0), Err(error.clone())),
            Err(None) => return,
        };
        if std::mem::replace(&mut *state, now.clone()) != now {
            self.watcher.changed(report);
        }
    }

    /// A number that this process has not used yet, and an incarnation that nobody has used.
    fn next(&self) -> (u64, Incarnation) {
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.incarnations, &nonce.to_le_bytes());
        let mut incarnation = Incarnation::default();
        incarnation.copy_from_slice(&hash.as_bytes()[..16]);
        (nonce, incarnation)
    }

    /// The link, if look-ups of a place may be sent.
    fn usable(&self, place: &Place) -> Option<Arc<Link>> {
        let link = self.link.read().as_ref().ok().filter(|link| !link.is_failed()).cloned()?;
        let is_slow = link.breaker.lock().is_open();
        (!is_slow && !self.pending.lock().concerns(place)).then_some(link)
    }

    /// Whether the engine knows all that has become void for a place.
    pub(crate) fn is_told_of(&self, place: &Place) -> bool {
        !self.pending.lock().concerns(place)
    }

    async fn ask(&self, link: &Link, place: &Place, wants_record: bool) -> Result<LookedUp, Fault> {
        let (nonce, incarnation) = self.next();
        let look_up = LookUp { place, wants_record, incarnation, nonce, max_record: self.config.max_record() };
        let replies = link.look_ups.send_all(&self.keys.look_up(&look_up)).await?;
        let looked_up = look_up.read(replies, self.clock.now(), link.number)?;
        if let Some(Ticket { order, .. }) = looked_up.ticket {
            let mut latest = self.latest.lock();
            let is_later = |latest: &Order| latest.incarnation != order.incarnation || latest.number < order.number;
            if latest.as_ref().is_none_or(is_later) {
                *latest = Some(order);
            }
        }
        Ok(looked_up)
    }

    async fn look_up_in_time(&self, place: &Place, wants_record: bool) -> (LookUpResult, Option<LookedUp>) {
        // In this order: who gets the place of one that was late sees whether that has opened the breaker.
        let Ok(_permit) = self.in_flight.try_acquire() else { return (LookUpResult::Skipped, None) };
        let Some(link) = self.usable(place) else { return (LookUpResult::Skipped, None) };
        match timeout(self.config.budget, self.ask(&link, place, wants_record)).await {
            Ok(Ok(looked_up)) => {
                link.breaker.lock().answered();
                if looked_up.ticket.is_none() {
                    self.watcher.faulted(Fault::Full);
                }
                let result = match (wants_record, &looked_up.record) {
                    (false, _) => LookUpResult::Ticket,
                    (true, Some(_)) => LookUpResult::Record,
                    (true, None) => LookUpResult::None,
                };
                (result, Some(looked_up))
            }
            Ok(Err(fault)) => {
                if fault.ends_link() {
                    link.fail(fault);
                }
                (LookUpResult::Failed, None)
            }
            Err(_) => {
                let opens = link.breaker.lock().missed();
                if opens {
                    self.report();
                    // So that the task asks the engine often from now on.
                    self.to_tell.notify_one();
                }
                (LookUpResult::Late, None)
            }
        }
    }
}

impl SecondTier for Fleet {
    fn look_up<'a>(
        &'a self,
        place: &'a Place,
        wants_record: bool,
    ) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        Box::pin(async move {
            let begun = self.clock.timer_now();
            let (result, looked_up) = self.look_up_in_time(place, wants_record).await;
            self.watcher.looked_up(result, self.clock.timer_now() - begun);
            looked_up
        })
    }

    fn store(&self, place: &Place, ticket: &Ticket, record: Bytes, lifetime: Duration) {
        if record.len() > self.config.max_record() {
            return self.watcher.stored(StoreResult::TooLarge);
        }
        let link = self.usable(place).filter(|link| link.number == ticket.connection);
        let size = u32::try_from(record.len() / 1024 + 1).map_or(MAX_STORED_KIB, |size| size.min(MAX_STORED_KIB));
        let (Some(link), Ok(permit)) = (link, Arc::clone(&self.stores).try_acquire_many_owned(size)) else {
            return self.watcher.stored(StoreResult::Skipped);
        };
        let command = self.keys.store(place, ticket, &record, lifetime.min(MAX_LIFETIME));
        let watcher = Arc::clone(&self.watcher);
        tokio::spawn(async move {
            let _permit = permit;
            let result = link.writes.send(&command).await.and_then(|reply| read_done(&reply));
            watcher.stored(match result {
                Ok(true) => StoreResult::Stored,
                Ok(false) => StoreResult::Outdated,
                Err(fault) => {
                    if fault.ends_link() {
                        link.fail(fault);
                    }
                    StoreResult::Failed
                }
            });
        });
    }

    fn void(&self, voided: Voided) {
        self.pending.lock().add(voided);
        self.to_tell.notify_one();
    }
}
