//! The engine (Valkey or Redis) that several gateways share, as a second tier. A request never depends on it: without an
//! answer within its budget, the request goes on without it.
//!
//! - `commands`: what is said to the engine, and how replies are read. Pure.
//! - `link`: connections to the node that has the keys; `stream` bounds what it may send, `tls` is for `rediss://`.
//! - `breaker`: when look-ups are sent. Pure.
//!
//! One task keeps a link ([`Fleet::run`]): it connects, finds out whether the engine has lost data, tells it what has
//! become void, and pings it. Until all that is done, look-ups do not reach the engine.

mod breaker;
mod commands;
mod link;
mod stream;
mod tls;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use self::breaker::Breaker;
pub(crate) use self::commands::Fault;
use self::commands::{Keys, LookUp, read_done};
use self::link::{Link, MAX_IN_FLIGHT, SILENT};
use crate::cache::second_tier::{Incarnation, LookedUp, Order, Place, SecondTier, Ticket, Voided};
use crate::clock::Clock;
use crate::config::fleet::FleetConfig;
use crate::random::Random;
use crate::sync::{Mutex, RwLock};

/// What has become of a look-up. The label of a metric.
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
    fn changed(&self, state: Result<(), (Fault, String)>);
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

/// How many records are on their way to the engine at most.
const MAX_STORES: usize = 16;
/// The most that is kept to be told. With more, everything becomes void.
const MAX_PENDING: usize = 256;
/// A record is kept no longer than a response can be of use by default, in any case.
const MAX_LIFETIME: Duration = Duration::from_secs(2 * 3600 + 300);
const PING_IN_USE: Duration = Duration::from_millis(500);
const PING_WHILE_SLOW: Duration = Duration::from_millis(20);
const SHORTEST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(300);
/// After a fault that only an operator can end.
const RETRY_OF_SETTINGS: Duration = Duration::from_secs(5);

/// What has become void, and was not told to the engine yet. No look-up is sent meanwhile.
#[derive(Default)]
struct Pending {
    queue: Vec<Voided>,
    /// Whether one is being told. If the same becomes void meanwhile, that is told again.
    is_telling: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.is_telling
    }

    fn add(&mut self, voided: Voided) {
        if voided == Voided::Everything || self.queue.len() >= MAX_PENDING {
            self.queue = vec![Voided::Everything];
        } else if !self.queue.contains(&voided) && !self.queue.contains(&Voided::Everything) {
            self.queue.push(voided);
        }
    }

    fn begin(&mut self) -> Option<Voided> {
        let next = self.queue.pop();
        self.is_telling = next.is_some();
        next
    }

    fn end(&mut self) {
        self.is_telling = false;
    }
}

pub(crate) struct Fleet {
    config: FleetConfig,
    keys: Keys,
    clock: Clock,
    random: Random,
    watcher: Arc<dyn Watcher>,
    link: RwLock<Option<Arc<Link>>>,
    breaker: Mutex<Breaker>,
    pending: Mutex<Pending>,
    to_tell: Notify,
    in_flight: Arc<Semaphore>,
    stores: Arc<Semaphore>,
    nonce: AtomicU64,
    /// The last ticket that the engine has given.
    latest: Mutex<Option<Order>>,
    state: Mutex<EngineState>,
}

impl Fleet {
    /// It connects when [`Self::run`] is called.
    pub(crate) fn new(config: FleetConfig, clock: Clock, random: Random, watcher: Arc<dyn Watcher>) -> Arc<Self> {
        Arc::new(Self {
            keys: Keys::new(&config.name),
            config,
            clock,
            random,
            watcher,
            link: RwLock::default(),
            breaker: Mutex::default(),
            pending: Mutex::default(),
            to_tell: Notify::new(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            stores: Arc::new(Semaphore::new(MAX_STORES)),
            nonce: AtomicU64::default(),
            latest: Mutex::default(),
            state: Mutex::new(EngineState::Starting),
        })
    }

    pub(crate) fn state(&self) -> EngineState {
        self.state.lock().clone()
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.state() == EngineState::InUse
    }

    /// How much has become void and was not told to the engine yet.
    pub(crate) fn pending(&self) -> usize {
        let pending = self.pending.lock();
        pending.queue.len() + usize::from(pending.is_telling)
    }

    /// Keeps a link to the engine. It does not return.
    pub(crate) async fn run(&self) {
        let mut retry = SHORTEST_RETRY;
        for number in 1.. {
            let opened = timeout(4 * SILENT, Link::open(&self.config, &self.keys, number)).await;
            let opened = opened.unwrap_or_else(|_| Err((Fault::Silent, "no answer within 2 s".to_owned())));
            let result = match opened {
                Ok(link) => self.use_link(Arc::new(link), &mut retry).await,
                Err(error) => error,
            };
            self.unlink(&result);
            let pause = match result.0 {
                Fault::Denied | Fault::Settings => RETRY_OF_SETTINGS,
                _ => retry,
            };
            sleep(pause).await;
            retry = (2 * retry).min(LONGEST_RETRY);
        }
    }

    fn unlink(&self, error: &(Fault, String)) {
        *self.link.write() = None;
        self.watcher.faulted(error.0);
        self.enter(EngineState::Unlinked(error.0), Err(error.clone()));
    }

    fn enter(&self, state: EngineState, report: Result<(), (Fault, String)>) {
        let before = std::mem::replace(&mut *self.state.lock(), state.clone());
        if before != state {
            self.watcher.changed(report);
        }
    }

    /// Uses a link until it fails. Returns why.
    async fn use_link(&self, link: Arc<Link>, retry: &mut Duration) -> (Fault, String) {
        let explain = |fault: Fault| (fault, fault.describe().to_owned());
        if let Err(fault) = self.begin(&link).await {
            return explain(fault);
        }
        *self.breaker.lock() = Breaker::default();
        if let Err(fault) = self.tell(&link).await {
            return explain(fault);
        }
        *self.link.write() = Some(Arc::clone(&link));
        self.enter(EngineState::InUse, Ok(()));
        *retry = SHORTEST_RETRY;
        loop {
            let pause = if self.breaker.lock().is_open() { PING_WHILE_SLOW } else { PING_IN_USE };
            tokio::select! {
                biased;
                fault = link.failed() => return explain(fault),
                () = self.to_tell.notified() => if let Err(fault) = self.tell(&link).await {
                    return explain(fault);
                },
                () = sleep(pause) => if let Err(fault) = self.ping(&link).await {
                    return explain(fault);
                },
            }
        }
    }

    /// Whether the engine does what is needed, and whether it has lost data.
    async fn begin(&self, link: &Link) -> Result<(), Fault> {
        let place = Place { record: [0; 16], sets: [[0; 16]; 3] };
        let latest = *self.latest.lock();
        let looked_up = timeout(SILENT, self.ask(link, &place, true)).await.unwrap_or(Err(Fault::Silent))?;
        let Some(Ticket { order, .. }) = looked_up.ticket else {
            // It is full: it gives what it has.
            return Ok(());
        };
        // Another incarnation may be an earlier one, from a backup.
        let went_back =
            latest.is_some_and(|latest| latest.incarnation == order.incarnation && latest.number >= order.number);
        if went_back {
            self.watcher.faulted(Fault::WentBack);
            self.send_void(link, Voided::Everything).await?;
        }
        // A scratch record shows whether the rights suffice.
        let ticket = Ticket { order, time: Duration::ZERO, drawn: self.clock.now(), connection: link.number };
        let scratch = self.keys.store(&place, &ticket, b"test", Duration::from_millis(1));
        match read_done(&link.writes.send(&scratch).await?) {
            Ok(_) | Err(Fault::Full) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Tells the engine what has become void.
    async fn tell(&self, link: &Link) -> Result<(), Fault> {
        loop {
            let Some(voided) = self.pending.lock().begin() else { return Ok(()) };
            let told = self.send_void(link, voided).await;
            let mut pending = self.pending.lock();
            pending.end();
            told.inspect_err(|_| pending.add(voided))?;
        }
    }

    async fn send_void(&self, link: &Link, voided: Voided) -> Result<(), Fault> {
        let incarnation = self.new_incarnation()?;
        match read_done(&link.writes.send(&self.keys.void(voided, incarnation)).await?) {
            Ok(_) => Ok(()),
            // Everything becomes void, which needs no memory.
            Err(Fault::Full | Fault::Error) => match link.writes.send(&self.keys.void_without_memory()).await? {
                redis::Value::Int(_) => Ok(()),
                redis::Value::ServerError(error) => Err(Fault::of_server(&error)),
                _ => Err(Fault::Reply),
            },
            Err(fault) => Err(fault),
        }
    }

    async fn ping(&self, link: &Link) -> Result<(), Fault> {
        let begun = self.clock.timer_now();
        // A master that has become a replica still answers look-ups.
        let role = link.look_ups.send(&redis::cmd("ROLE")).await?;
        commands::read_role(&role)?;
        let is_in_time = self.clock.timer_now() - begun <= self.config.budget;
        if self.breaker.lock().pinged(is_in_time) {
            self.enter(EngineState::InUse, Ok(()));
        }
        Ok(())
    }

    fn new_incarnation(&self) -> Result<Incarnation, Fault> {
        let key = self.random.key("incarnation").map_err(|_| Fault::Settings)?;
        let mut incarnation = Incarnation::default();
        incarnation.copy_from_slice(&key[..16]);
        Ok(incarnation)
    }

    /// The link, if look-ups may be sent.
    fn usable(&self) -> Option<Arc<Link>> {
        let link = self.link.read().clone().filter(|link| !link.is_failed())?;
        (!self.breaker.lock().is_open() && self.pending.lock().is_empty()).then_some(link)
    }

    async fn ask(&self, link: &Link, place: &Place, wants_record: bool) -> Result<LookedUp, Fault> {
        let look_up = LookUp {
            place,
            wants_record,
            incarnation: self.new_incarnation()?,
            nonce: self.nonce.fetch_add(1, Ordering::Relaxed),
            max_record: self.config.max_record(),
        };
        let drawn = self.clock.now();
        let replies = link.look_ups.send_all(&self.keys.look_up(&look_up)).await?;
        let looked_up = look_up.read(replies, drawn, link.number)?;
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
        let Some(link) = self.usable() else { return (LookUpResult::Skipped, None) };
        let Ok(_permit) = self.in_flight.try_acquire() else { return (LookUpResult::Skipped, None) };
        match timeout(self.config.budget, self.ask(&link, place, wants_record)).await {
            Ok(Ok(looked_up)) => {
                self.breaker.lock().answered();
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
                if self.breaker.lock().missed() {
                    self.enter(
                        EngineState::Slow,
                        Err((Fault::Silent, "three look-ups in a row took too long".to_owned())),
                    );
                    // So that the task begins to ping often.
                    self.to_tell.notify_one();
                }
                (LookUpResult::Late, None)
            }
        }
    }
}

/// How many look-ups are timed.
const CHECKED_LOOK_UPS: usize = 21;

/// Connects to the engine, and runs each command once. Returns what an operator wants to know of it.
///
/// # Errors
/// Why the engine cannot be used.
pub(crate) async fn check(config: &FleetConfig, clock: Clock, random: Random) -> Result<String, (Fault, String)> {
    struct Nobody;
    impl Watcher for Nobody {
        fn looked_up(&self, _: LookUpResult, _: Duration) {}
        fn stored(&self, _: StoreResult) {}
        fn faulted(&self, _: Fault) {}
        fn changed(&self, _: Result<(), (Fault, String)>) {}
    }
    let fleet = Fleet::new(config.clone(), clock.clone(), random, Arc::new(Nobody));
    let explain = |fault: Fault| (fault, "a command has failed, see deploy/fleet.md for the rights".to_owned());
    let link = Link::open(config, &fleet.keys, 1).await?;
    fleet.begin(&link).await.map_err(explain)?;
    // A set that no record is in.
    fleet.send_void(&link, Voided::Set([0; 16])).await.map_err(explain)?;
    fleet.ping(&link).await.map_err(explain)?;
    let place = Place { record: [0; 16], sets: [[0; 16]; 3] };
    let mut times = Vec::new();
    for _ in 0..CHECKED_LOOK_UPS {
        let begun = clock.timer_now();
        fleet.ask(&link, &place, true).await.map_err(explain)?;
        times.push(clock.timer_now() - begun);
    }
    times.sort_unstable();
    let (median, longest) = (times[CHECKED_LOOK_UPS / 2], times[CHECKED_LOOK_UPS - 1]);
    Ok(format!(
        "a look-up takes {:.2} ms (the longest of {CHECKED_LOOK_UPS}: {:.2} ms), fleet.budget is {} ms",
        median.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        config.budget.as_millis()
    ))
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
        let link = self.usable().filter(|link| link.number == ticket.connection);
        let (Some(link), Ok(permit)) = (link, Arc::clone(&self.stores).try_acquire_owned()) else {
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
