//! The gate before upstream: it limits the number of concurrent calls and queues the others.
//!
//! [`schedule`] decides which call is next, and does no I/O. This file implements the waiting. A call has a ticket as
//! long as its [`Permit`], or the future that waits for one, exists. A call that stops waiting drops the future. Then
//! its ticket must be removed everywhere.

mod class_queue;
mod deadlines;
mod fair_queue;
mod pace;
mod permit;
mod permitted_body;
mod quota_wait;
mod ready;
mod schedule;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::quota::{Draw, Hold, Ledger, LimitKind, Share, SharedLimits};
use crate::catalogue::{QuotaPolicy, Service};
use crate::clock::Clock;
use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::request::half_close::HalfClose;
use crate::request::peer::Peer;
use crate::sync::{Mutex, MutexGuard};
use deadlines::Deadlines;
use pace::ServicePace;
pub(crate) use permit::Permit;
pub(crate) use quota_wait::HeldCalls;
use quota_wait::QuotaWait;
use ready::sleep_until;
use schedule::Schedule;

/// A timer looks at the clock at least so often, because a clock may jump, and at most so often.
const LONGEST_TIMER: Duration = Duration::from_secs(10);
const SHORTEST_TIMER: Duration = Duration::from_millis(1);

/// How many calls to one service may have a call slot at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateLimits {
    /// In total: the number of call slots.
    pub calls: usize,
    /// Of one caller, including those that wait for calls of other callers.
    pub per_caller: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateUsage {
    /// The calls that have a slot.
    pub under_way: usize,
    /// The calls that wait for a slot.
    pub queued: usize,
}

/// The order in which calls are served. The first class is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum Class {
    /// A product list has proved the caller within the last hour.
    Proved,
    /// Upstream has successfully answered a relayed request of the caller below a project, but no product list has
    /// proved it.
    Relayed,
    /// Neither. The number of such callers is unlimited, because anyone can invent tokens.
    Unknown,
    /// A renewal of a grant that is about to end. No client waits for it.
    Renewal,
    /// A refresh of a stale entry. No client waits for it.
    Refresh,
    /// The client has closed its sending side and may have disconnected. This applies to callers of all kinds.
    HalfClosed,
    /// The gateway itself makes the call, to keep a response warm. No client waits for it.
    KeepWarm,
}

/// The client that makes a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateClient {
    /// `None` without a token and without a signature that the gateway verifies.
    pub caller: Option<Caller>,
    /// `None` if clients are not distinguished by address.
    pub peer: Option<Peer>,
    /// A unique number of the connection within this process.
    pub connection: u64,
}

/// A caller, a peer address or a connection. Each client is up to three parties, and the slots of each are counted. In a
/// queue, the operations of a client are parties, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Caller(Caller),
    Peer(Peer),
    Connection(u64),
    Api(u32),
}

/// A call that needs a slot.
#[derive(Clone, Debug)]
pub(crate) struct GateCall {
    pub(crate) client: GateClient,
    pub(crate) class: Class,
    /// The caller whose limits count the call. [`GateClient::caller`] may be absent for another reason.
    pub(crate) caller: Option<Caller>,
    /// The name of the operation. `None` for a request that is not one's.
    pub(crate) api: Option<Arc<str>>,
    pub(crate) kind: CallKind,
    /// How long it waits for its turn at most.
    pub(crate) max_wait: Duration,
}

impl Class {
    /// Whether a client waits for the calls.
    pub(crate) fn has_client(self) -> bool {
        match self {
            Self::Proved | Self::Relayed | Self::Unknown | Self::HalfClosed => true,
            Self::Renewal | Self::Refresh | Self::KeepWarm => false,
        }
    }
}

impl GateClient {
    /// The party that [`GateLimits::per_caller`] applies to: the caller, or the connection if there is no caller.
    fn identity(&self) -> Party {
        self.caller.map_or(Party::Connection(self.connection), Party::Caller)
    }

    fn parties(&self) -> impl Iterator<Item = Party> {
        let (caller, peer) = (self.caller.map(Party::Caller), self.peer.map(Party::Peer));
        [caller, peer, Some(Party::Connection(self.connection))].into_iter().flatten()
    }

    /// The parties by which the clients of a class are distinguished. The first is one that a client cannot invent.
    fn path(&self, class: Class) -> Vec<Party> {
        let connection = Party::Connection(self.connection);
        let peer = self.peer.map(Party::Peer);
        let path = match class {
            Class::Proved | Class::Relayed | Class::Renewal | Class::Refresh => {
                [Some(self.identity()), peer, Some(connection)]
            }
            Class::Unknown | Class::HalfClosed | Class::KeepWarm => [peer, Some(connection), Some(self.identity())],
        };
        path.into_iter().flatten().collect()
    }
}

/// Identifies a call. Tickets are numbered in order of arrival.
type Ticket = u64;

/// What a call is for. Limits of upstream hold back lists and relayed requests differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A product list, also one that is relayed because it is too large to be stored.
    List,
    /// Any other relayed request.
    Relay,
}

/// Is told how long a limit of upstream has held back each call for which a client waits.
pub(crate) type OnQuotaWait = Arc<dyn Fn(QuotaPolicy, Duration) + Send + Sync>;

/// The gate that draws from the same limits of upstream.
type OtherGate = OnceLock<Weak<Gate>>;

/// Two gates draw from the same limits of upstream, so a call of one may make room for one of the other.
pub(crate) fn share_quotas([one, other]: &[Arc<Gate>; 2]) {
    for (gate, other) in [(one, other), (other, one)] {
        // They are paired once.
        let _ = gate.other.set(Arc::downgrade(other));
    }
}

/// The gate before all services. The limits apply to each service separately.
pub(crate) struct Gate {
    limits: GateLimits,
    ledger: Arc<Ledger>,
    on_quota_wait: OnQuotaWait,
    clock: Clock,
    other: Arc<OtherGate>,
    /// At most one for each service of the catalogue.
    service_gates: Mutex<HashMap<Service, Arc<ServiceGate>>>,
}

impl Gate {
    pub(crate) fn new(limits: GateLimits, ledger: Arc<Ledger>, on_quota_wait: OnQuotaWait, clock: Clock) -> Self {
        let (other, service_gates) = (Arc::default(), Mutex::default());
        Self { limits, ledger, on_quota_wait, clock, other, service_gates }
    }

    /// Waits for a call slot, and until no limit of upstream holds the call back. The future may be dropped at any time.
    pub(crate) async fn enter(&self, service: Service, call: GateCall) -> Permit {
        let (permit, started) = self.queue(service, &call, QuotaWait::default());
        permit.started(started.await)
    }

    /// As [`Gate::enter`], for a client that may close its sending side, or has done so. A call of such a client waits
    /// in the class [`Class::HalfClosed`]. If it already has a slot, it is moved to that class if there is room, and
    /// else waits for another slot.
    pub(crate) async fn enter_unless_closed(&self, service: Service, call: GateCall, half_close: &HalfClose) -> Permit {
        let mut waited = QuotaWait::default();
        if !half_close.is_closed() {
            let (permit, started) = self.queue(service, &call, waited);
            let started = tokio::select! {
                biased;
                started = started => Some(started),
                () = half_close.closed() => None,
            };
            let permit = match started {
                Some(started) => {
                    let permit = permit.started(started);
                    if half_close.may_keep_slot(permit.half_close_handler()) {
                        return permit;
                    }
                    permit
                }
                None => permit,
            };
            waited = permit.leave();
        }
        let (permit, started) = self.queue(service, &GateCall { class: Class::HalfClosed, ..call }, waited);
        permit.started(started.await)
    }

    /// Adds a call to the queue. It gets a message when it has a slot. `waited`: how long it has waited for limits before.
    fn queue(&self, service: Service, call: &GateCall, waited: QuotaWait) -> (Permit, oneshot::Receiver<Instant>) {
        let service_gate = self.service_gate(service);
        let draw = Self::draw(call);
        let (start, started) = oneshot::channel();
        let (mut state, now) = (service_gate.state(), self.clock.now());
        let ticket = state.schedule.add(call.client, call.class, draw.clone(), call.max_wait, &service_gate.pace(now));
        state.schedule.add_wait(ticket, waited);
        state.waiting.insert(ticket, start);
        service_gate.start_calls(state, now);
        (Permit::new(service_gate, ticket, draw), started)
    }

    /// Whether another call of a client would have to wait because of calls that the client already has.
    pub(crate) fn has_to_wait(&self, service: Service, call: &GateCall) -> bool {
        // It is not in the queue.
        let (service_gate, draw) = (self.service_gate(service), Draw { has_client: false, ..Self::draw(call) });
        let state = service_gate.state();
        let pace = service_gate.pace(self.clock.now());
        state.schedule.has_to_wait(call.client, call.class, &draw, &pace)
    }

    /// Limits of upstream have changed: starts the calls that may be sent now.
    pub(crate) fn limits_changed(&self) {
        let service_gates: Vec<_> = self.service_gates().values().cloned().collect();
        service_gates.iter().for_each(ServiceGate::limits_changed);
    }

    /// A call at the other gate has given quota back, or has used what was left for it.
    fn quota_changed(&self, service: Service) {
        let service_gate = self.service_gates().get(&service).cloned();
        service_gate.iter().for_each(ServiceGate::limits_changed);
    }

    /// Which limit of upstream would hold a call back if it came now, and until when at the earliest.
    pub(crate) fn hold(&self, service: Service, call: &GateCall) -> Option<Hold> {
        let (service_gate, draw, now) = (self.service_gate(service), Self::draw(call), self.clock.now());
        let [own, others] = service_gate.state().schedule.before(call.client, call.class);
        let of_kind = |kind, waiting: &Deadlines| {
            let hold = |ahead| self.ledger.hold(service, &draw, kind, ahead, now);
            hold(waiting.ahead(|ahead| hold(ahead).map_or(now, |hold| hold.until)))
        };
        let holds = [of_kind(LimitKind::Own, &own), of_kind(LimitKind::Shared, &others)];
        holds.into_iter().flatten().max_by_key(|hold| hold.until)
    }

    /// What decides which limits a call draws from.
    pub(crate) fn draw(call: &GateCall) -> Draw {
        let share = match (call.kind, call.class) {
            (_, Class::Unknown | Class::HalfClosed) => Share::Unknown,
            (CallKind::Relay, _) => Share::Relayed,
            (CallKind::List, Class::Proved | Class::Relayed | Class::Renewal | Class::Refresh | Class::KeepWarm) => {
                Share::Known
            }
        };
        let is_proved = matches!(call.class, Class::Proved | Class::Renewal | Class::Refresh);
        Draw { caller: call.caller, api: call.api.clone(), share, is_proved, has_client: call.class.has_client() }
    }

    pub(crate) fn usage(&self, service: Service, class: Class) -> GateUsage {
        self.service_gate(service).state().schedule.usage(class)
    }

    /// The calls that limits of upstream hold back.
    pub(crate) fn held_calls(&self) -> Vec<(Service, HeldCalls)> {
        let service_gates: Vec<_> = self.service_gates().values().cloned().collect();
        let held = |gate: &Arc<ServiceGate>| gate.state().schedule.held_calls();
        service_gates.iter().flat_map(|gate| held(gate).into_iter().map(|held| (gate.service, held))).collect()
    }

    /// The services to which there has been a call.
    pub(crate) fn services(&self) -> Vec<Service> {
        self.service_gates().keys().copied().collect()
    }

    fn service_gate(&self, service: Service) -> Arc<ServiceGate> {
        let new = || {
            let state =
                ServiceGateState { schedule: Schedule::new(self.limits), waiting: HashMap::default(), timer: None };
            Arc::new(ServiceGate {
                service,
                ledger: Arc::clone(&self.ledger),
                limits: self.ledger.limits(service),
                on_quota_wait: Arc::clone(&self.on_quota_wait),
                clock: self.clock.clone(),
                other: Arc::clone(&self.other),
                state: Mutex::new(state),
                changed: Notify::new(),
            })
        };
        Arc::clone(self.service_gates().entry(service).or_insert_with(new))
    }

    fn service_gates(&self) -> MutexGuard<'_, HashMap<Service, Arc<ServiceGate>>> {
        self.service_gates.lock()
    }
}

struct ServiceGate {
    service: Service,
    ledger: Arc<Ledger>,
    limits: SharedLimits,
    on_quota_wait: OnQuotaWait,
    clock: Clock,
    other: Arc<OtherGate>,
    state: Mutex<ServiceGateState>,
    /// Wakes those that wait in [`Gate::ready`].
    changed: Notify,
}

struct ServiceGateState {
    schedule: Schedule,
    /// Notifies waiting calls that they have a slot, and since when.
    waiting: HashMap<Ticket, oneshot::Sender<Instant>>,
    /// Starts the calls that a limit of upstream holds back, at this time.
    timer: Option<(Instant, AbortOnDrop)>,
}

impl ServiceGate {
    fn state(&self) -> MutexGuard<'_, ServiceGateState> {
        self.state.lock()
    }

    /// Locks the limits of the service. The state must be locked before, never after.
    fn pace(&self, now: Instant) -> ServicePace<'_> {
        ServicePace { limits: RefCell::new(self.limits.lock()), now, frees_lists: Cell::default() }
    }

    /// Starts the calls that may be sent now, because limits have changed.
    fn limits_changed(self: &Arc<Self>) {
        let (mut state, now) = (self.state(), self.clock.now());
        state.schedule.admit_all(&self.pace(now));
        self.start_calls(state, now);
    }

    /// Starts all calls that can have a slot, and sets the timer for those that a limit of upstream holds back.
    fn start_calls(self: &Arc<Self>, mut state: MutexGuard<'_, ServiceGateState>, now: Instant) {
        let pace = self.pace(now);
        state.schedule.admit_held(now, &pace);
        while let Some(ticket) = state.schedule.start_next(&pace) {
            if let Some(start) = state.waiting.remove(&ticket) {
                // If the receiver was just dropped, its permit will take the lock and pass the slot on.
                let _ = start.send(now);
            }
        }
        let release = state.schedule.next_release(&pace);
        let frees_lists = pace.frees_lists.get();
        drop(pace);
        if state.timer.as_ref().map(|(at, _)| *at) != release {
            state.timer = release.and_then(|at| Some((at, self.start_at(at)?)));
        }
        // Two gates must not lock each other.
        drop(state);
        self.changed.notify_waiters();
        if frees_lists {
            self.quota_changed_for_other();
        }
    }

    /// Calls at the other gate may be sent earlier.
    fn quota_changed_for_other(&self) {
        if let Some(other) = self.other.get().and_then(Weak::upgrade) {
            other.quota_changed(self.service);
        }
    }

    /// Starts calls again at a time. `None` without a runtime: then no call waits.
    fn start_at(self: &Arc<Self>, at: Instant) -> Option<AbortOnDrop> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (gate, clock) = (Arc::downgrade(self), self.clock.clone());
        let timer = runtime.spawn(async move {
            sleep_until(&clock, at).await;
            if let Some(gate) = gate.upgrade() {
                let mut state = gate.state();
                // Aborting this task is harmless: it waits for nothing any more.
                state.timer = None;
                gate.start_calls(state, clock.now());
            }
        });
        Some(AbortOnDrop(timer.abort_handle()))
    }
}

/// Aborts a task when it is dropped.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
