//! Coalescing: concurrent requests with the same key share one flight, and normally one upstream call.
//!
//! This file does not know what is fetched or how. The first request for a key gets the [`Leader`], and the leader's
//! call runs in a task of its own, so waiters that disconnect change nothing. Only a call that still waits for its turn
//! is given up when none is left ([`Leader::abandoned`]). A leader that is dropped without a result, after a panic for
//! example, releases the waiters immediately.
//!
//! Waiters get the result from the flight. They must not read it from the cache, which may have rejected the entry.
//! When the limits on flights or waiters are reached, each request makes its own call. So does each request of a caller
//! that has half of the flights or of the waiters, and of unknown callers that together have half of the flights
//! ([`Shares`]).
//!
//! A flight has up to [`calls::MAX_CALLS`] calls, each of a different caller. While all its calls are slow, the
//! gateway may let a waiter make another one ([`Waiter::lead_another`]). The first result that serves all callers
//! ends the flight. Any other result ends only its own call, as long as another call is in flight.

mod calls;
mod leader;
mod shares;
mod slowness;
#[cfg(test)]
mod tests;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::sync::{AtomicBool, Mutex, MutexGuard, RwLock};
use calls::FlightCalls;
pub(crate) use leader::Leader;
pub(crate) use shares::FlightCaller;
use shares::{FlightPlace, Shares};
pub(crate) use slowness::Slowness;

pub(crate) struct Flights<K, T> {
    shared: Arc<FlightsInner<K, T>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightLimits {
    /// The maximum number of flights that can be joined.
    pub flights: usize,
    /// The maximum number of requests that wait for another request's flight, over all flights.
    pub waiting: usize,
}

struct FlightsInner<K, T> {
    limits: RwLock<FlightLimits>,
    in_flight: Mutex<InFlight<K, T>>,
    waiting: Arc<Mutex<Shares>>,
}

/// The flights that can be joined.
struct InFlight<K, T> {
    flights: HashMap<K, Joinable<T>>,
    /// The number of flights that each caller has begun.
    shares: Shares,
}

/// A flight that can be joined.
struct Joinable<T> {
    flight: Arc<Flight<T>>,
    /// The caller that began it.
    caller: FlightCaller,
    /// Makes [`Leader::abandoned`] wait for a call that is wanted although no request waits for it.
    _wanted: Option<watch::Receiver<FlightState<T>>>,
}

/// The calls for one key, and the state that is published to the waiters.
struct Flight<T> {
    state: watch::Sender<FlightState<T>>,
    /// If all calls in flight are slow: the time at which the latest one was sent.
    slow: watch::Sender<Option<Instant>>,
    calls: Mutex<FlightCalls>,
    is_sent: AtomicBool,
    /// Whether a request has joined it.
    is_joined: watch::Sender<bool>,
}

#[derive(Clone)]
enum FlightState<T> {
    Pending,
    /// The last call has a result for the callers that wait for it. The final result is not there yet.
    Announced(T),
    Ended(T),
    /// The last leader was dropped without a result.
    Lost,
}

impl<T> Flight<T> {
    fn new(caller: Caller, is_closed: bool) -> Arc<Self> {
        let mut calls = FlightCalls { is_closed, ..FlightCalls::default() };
        calls.begin(caller);
        let (state, slow) = (watch::Sender::new(FlightState::Pending), watch::Sender::new(None));
        let (calls, is_sent, is_joined) = (Mutex::new(calls), AtomicBool::new(false), watch::Sender::new(false));
        Arc::new(Self { state, slow, calls, is_sent, is_joined })
    }

    fn calls(&self) -> MutexGuard<'_, FlightCalls> {
        self.calls.lock()
    }

    /// Changes the calls, and publishes whether all of them are slow.
    fn update<R>(&self, change: impl FnOnce(&mut FlightCalls) -> R) -> R {
        let mut calls = self.calls();
        let result = change(&mut calls);
        let slow = calls.all_slow();
        // Under the lock, so that the published value is that of the latest change.
        self.slow.send_if_modified(|published| std::mem::replace(published, slow) != slow);
        result
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    pub(crate) fn new(limits: FlightLimits) -> Self {
        let in_flight = InFlight { flights: HashMap::default(), shares: Shares::default() };
        let (limits, in_flight) = (RwLock::new(limits), Mutex::new(in_flight));
        Self { shared: Arc::new(FlightsInner { limits, in_flight, waiting: Arc::default() }) }
    }

    /// Changes the limits for later requests. Present flights and waiters stay.
    pub(crate) fn set_limits(&self, limits: FlightLimits) {
        *self.shared.limits.write() = limits;
    }

    /// Joins the flight for a key, or begins one. If it returns a leader, the flight is new and the call must be made.
    pub(crate) fn join(&self, key: &K, caller: FlightCaller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        let mut in_flight = self.shared.in_flight();
        if let Some(joinable) = in_flight.flights.get(key) {
            return self.wait(key, joinable, caller.caller);
        }
        let flight = in_flight.begin(key, caller, false, self.shared.limits());
        drop(in_flight);
        match flight {
            Some(flight) => self.lead(flight, Some(key.clone()), caller.caller),
            None => self.solo(caller.caller),
        }
    }

    /// Whether there is a flight for a key that requests can join.
    pub(crate) fn is_in_flight(&self, key: &K) -> bool {
        self.shared.in_flight().flights.contains_key(key)
    }

    /// Joins the flight for a key if there is one. Otherwise it begins a flight that no other request can join.
    pub(crate) fn wait_or_solo(&self, key: &K, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        match self.shared.in_flight().flights.get(key) {
            Some(joinable) => self.wait(key, joinable, caller),
            None => self.solo(caller),
        }
    }

    fn wait(&self, key: &K, joinable: &Joinable<T>, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        let share = FlightPlace::take(&self.shared.waiting, caller, self.shared.limits().waiting);
        let Some(share) = share else { return self.solo(caller) };
        joinable.flight.is_joined.send_if_modified(|is_joined| !std::mem::replace(is_joined, true));
        (Waiter::new(&self.shared, &joinable.flight, Some(key.clone()), Some(share)), None)
    }

    /// Begins a flight whose call is wanted also without a waiter. `None` if there is already a flight for the key, or the
    /// limit is reached.
    pub(crate) fn begin(&self, key: &K, caller: FlightCaller) -> Option<Leader<K, T>> {
        self.begin_with_waiter(key, caller).map(|(_, leader)| leader)
    }

    pub(crate) fn begin_with_waiter(&self, key: &K, caller: FlightCaller) -> Option<(Waiter<K, T>, Leader<K, T>)> {
        let mut in_flight = self.shared.in_flight();
        if in_flight.flights.contains_key(key) {
            return None;
        }
        let flight = in_flight.begin(key, caller, true, self.shared.limits())?;
        drop(in_flight);
        let (waiter, leader) = self.lead(flight, Some(key.clone()), caller.caller);
        Some((waiter, leader?))
    }

    /// Begins a flight that no other request can join.
    pub(crate) fn solo(&self, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        self.lead(Flight::new(caller, true), None, caller)
    }

    fn lead(&self, flight: Arc<Flight<T>>, key: Option<K>, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        let mut waiter = Waiter::new(&self.shared, &flight, key.clone(), None);
        let (sender, receiver) = oneshot::channel();
        waiter.own = Some(receiver);
        let shared = Arc::clone(&self.shared);
        (waiter, Some(Leader { key, flight, caller, own: Some(sender), was_last: None, shared }))
    }

    /// Ends the flight for a key without a result, and releases its waiters. Its calls go on.
    pub(crate) fn release(&self, key: &K) {
        let mut in_flight = self.shared.in_flight();
        if let Some(Joinable { flight, caller, .. }) = in_flight.flights.remove(key) {
            in_flight.shares.give_back(caller);
            drop(in_flight);
            flight.update(|calls| calls.is_closed = true);
            flight.state.send_replace(FlightState::Lost);
        }
    }

    /// Closes the present flights: no request can join them. Their waiters still get their results.
    pub(crate) fn close_all(&self) {
        let mut in_flight = self.shared.in_flight();
        in_flight.shares = Shares::default();
        for (_, Joinable { flight, .. }) in in_flight.flights.drain() {
            flight.update(|calls| calls.is_closed = true);
        }
    }

    /// The number of requests that wait for another request's flight.
    pub(crate) fn waiting(&self) -> usize {
        shares::total(&self.shared.waiting)
    }
}

impl<K: Eq + Hash + Clone, T> InFlight<K, T> {
    /// A new flight, unless the limit is reached.
    fn begin(
        &mut self,
        key: &K,
        caller: FlightCaller,
        is_wanted: bool,
        limits: FlightLimits,
    ) -> Option<Arc<Flight<T>>> {
        self.shares.take(caller, limits.flights).then(|| {
            let flight = Flight::new(caller.caller, false);
            let wanted = is_wanted.then(|| flight.state.subscribe());
            let joinable = Joinable { flight: Arc::clone(&flight), caller, _wanted: wanted };
            self.flights.insert(key.clone(), joinable);
            flight
        })
    }
}

impl<K: Eq + Hash, T> InFlight<K, T> {
    /// Removes a flight, unless a newer one has the key after [`Flights::close_all`].
    fn remove(&mut self, key: &K, flight: &Arc<Flight<T>>) {
        if self.flights.get(key).is_some_and(|joinable| Arc::ptr_eq(&joinable.flight, flight)) {
            let ended = self.flights.remove(key);
            ended.inspect(|ended| self.shares.give_back(ended.caller));
        }
    }
}

impl<K, T> FlightsInner<K, T> {
    fn limits(&self) -> FlightLimits {
        *self.limits.read()
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight<K, T>> {
        self.in_flight.lock()
    }
}

/// A request that waits for the result of a flight.
pub(crate) struct Waiter<K, T> {
    key: Option<K>,
    flight: Arc<Flight<T>>,
    state: watch::Receiver<FlightState<T>>,
    /// The result of the request's own call, if that is in flight.
    own: Option<oneshot::Receiver<T>>,
    /// `None` if the request has begun a call.
    share: Option<FlightPlace>,
    shared: Arc<FlightsInner<K, T>>,
}

pub(crate) struct FlightOutcome<T> {
    pub result: T,
    /// Whether it is the result of the request's own call.
    pub is_own: bool,
}

impl<K, T> Waiter<K, T> {
    fn new(
        shared: &Arc<FlightsInner<K, T>>,
        flight: &Arc<Flight<T>>,
        key: Option<K>,
        share: Option<FlightPlace>,
    ) -> Self {
        let (flight, state) = (Arc::clone(flight), flight.state.subscribe());
        Self { key, flight, state, own: None, share, shared: Arc::clone(shared) }
    }

    /// Whether a call of the flight has been sent to upstream. Before that, the calls wait for a call slot.
    pub(crate) fn is_sent(&self) -> bool {
        self.flight.is_sent.load(Ordering::Relaxed)
    }

    pub(crate) fn slowness(&self) -> Slowness<T> {
        Slowness { flight: Arc::clone(&self.flight), slow: self.flight.slow.subscribe() }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Waiter<K, T> {
    /// Waits for a result, announced or final. `None` if the flight was lost.
    pub(crate) async fn result(&mut self) -> Option<FlightOutcome<T>> {
        self.next(|state| !matches!(state, FlightState::Pending)).await
    }

    /// Waits for the final result, even if one has been announced. `None` if the flight was lost.
    pub(crate) async fn final_result(&mut self) -> Option<FlightOutcome<T>> {
        self.next(|state| matches!(state, FlightState::Ended(_) | FlightState::Lost)).await
    }

    async fn next(&mut self, is_ready: impl Fn(&FlightState<T>) -> bool) -> Option<FlightOutcome<T>> {
        let Self { own, state, .. } = self;
        let own = async {
            if let Some(receiver) = own {
                match receiver.await {
                    Ok(result) => return FlightOutcome { result, is_own: true },
                    // The request's own leader was dropped. The flight may have other calls.
                    Err(_) => *own = None,
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            result = own => Some(result),
            state = state.wait_for(is_ready) => match &*state.ok()? {
                FlightState::Announced(result) | FlightState::Ended(result) => {
                    Some(FlightOutcome { result: result.clone(), is_own: false })
                }
                FlightState::Pending | FlightState::Lost => None,
            },
        }
    }

    /// Begins another call of the flight. `None` if a call is not slow, if this caller has already made one, if there
    /// have been [`calls::MAX_CALLS`], or if the flight is closed.
    pub(crate) fn lead_another(&mut self, caller: Caller) -> Option<Leader<K, T>> {
        let begins = self.flight.update(|calls| {
            let may = calls.may_begin(caller) && calls.all_slow().is_some();
            if may {
                calls.begin(caller);
            }
            may
        });
        begins.then(|| {
            let (sender, receiver) = oneshot::channel();
            (self.own, self.share) = (Some(receiver), None);
            let (key, flight, shared) = (self.key.clone(), Arc::clone(&self.flight), Arc::clone(&self.shared));
            Leader { key, flight, caller, own: Some(sender), was_last: None, shared }
        })
    }
}
