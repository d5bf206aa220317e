//! Coalescing: concurrent identical requests share one flight, and normally one call.
//!
//! Knows nothing of what is fetched or how. The first request for a key gets the [`Leader`], whose call runs in
//! a task of its own: waiters that leave change nothing, and a leader that is dropped without an end (a panic,
//! say) releases the waiters at once. Waiters get the result from the flight itself, never by reading the cache
//! again, which may have refused the entry. Past the bounds on flights and waiters everyone makes a call alone, and so
//! does a caller that holds half of either ([`Shares`]).
//!
//! A flight has up to [`MAX_CALLS`] calls, of different callers: while all its calls are slow, the gateway may let
//! a waiter make another ([`Waiter::lead_another`]). The first result that serves everybody ends the flight; any
//! other result ends only its own call while there are more.

mod shares;
mod slowness;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use crate::request::caller::Caller;
use crate::sync::{Mutex, MutexGuard, RwLock};
use shares::{Share, Shares};
pub(crate) use slowness::Slowness;

/// How many calls one flight may have, over its whole life.
const MAX_CALLS: usize = 3;

/// What is in flight.
pub(crate) struct Flights<K, T> {
    shared: Arc<FlightsInner<K, T>>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightLimits {
    /// Flights that can be joined.
    pub flights: usize,
    /// Waiters for a flight that another request began, on all flights together.
    pub waiting: usize,
}

struct FlightsInner<K, T> {
    bounds: RwLock<FlightLimits>,
    in_flight: Mutex<InFlight<K, T>>,
    waiting: Arc<Mutex<Shares>>,
}

/// The flights that can be joined.
struct InFlight<K, T> {
    flights: HashMap<K, Joinable<T>>,
    /// By the callers that began them.
    shares: Shares,
}

/// A flight that can be joined. It is not deserted, though nobody may wait for it at present.
struct Joinable<T> {
    flight: Arc<Flight<T>>,
    /// Who began it.
    caller: Caller,
    _waited_for: watch::Receiver<FlightState<T>>,
}

/// The calls for one key, and what waiters are told of them.
struct Flight<T> {
    state: watch::Sender<FlightState<T>>,
    /// When the latest call under way was sent, once all of them are slow.
    slow: watch::Sender<Option<Instant>>,
    calls: Mutex<FlightCalls>,
    is_sent: AtomicBool,
}

/// What waiters know of a flight.
#[derive(Clone)]
enum FlightState<T> {
    Pending,
    /// The last call has a result for others than its own caller; its whole result is still to come.
    Announced(T),
    Ended(T),
    /// The last leader was dropped without a result.
    Lost,
}

#[derive(Default)]
struct FlightCalls {
    /// Whether there can be no more of them: nobody else can join.
    is_closed: bool,
    /// Who has made calls so far.
    callers: Vec<Caller>,
    under_way: Vec<FlightCall>,
}

struct FlightCall {
    caller: Caller,
    /// When it was sent, once it is slow.
    slow: Option<Instant>,
}

impl FlightCalls {
    fn begin(&mut self, caller: Caller) {
        self.callers.push(caller);
        self.under_way.push(FlightCall { caller, slow: None });
    }

    /// Whether a caller may make another call, once those under way are slow.
    fn may_begin(&self, caller: Caller) -> bool {
        self.callers.len() < MAX_CALLS && !self.callers.contains(&caller)
    }

    /// When the latest call was sent, if all are slow and there may be another.
    fn all_slow(&self) -> Option<Instant> {
        let latest = self.under_way.iter().map(|call| call.slow).max()?;
        latest.filter(|_| !self.is_closed && self.under_way.iter().all(|call| call.slow.is_some()))
    }
}

impl<T> Flight<T> {
    fn new(caller: Caller, is_closed: bool) -> Arc<Self> {
        let mut calls = FlightCalls { is_closed, ..FlightCalls::default() };
        calls.begin(caller);
        let (state, slow) = (watch::Sender::new(FlightState::Pending), watch::Sender::new(None));
        Arc::new(Self { state, slow, calls: Mutex::new(calls), is_sent: AtomicBool::new(false) })
    }

    fn calls(&self) -> MutexGuard<'_, FlightCalls> {
        self.calls.lock()
    }

    /// Changes the calls, and tells the waiters whether all are slow.
    fn update<R>(&self, change: impl FnOnce(&mut FlightCalls) -> R) -> R {
        let mut calls = self.calls();
        let result = change(&mut calls);
        let slow = calls.all_slow();
        // Under the lock, so that the latest change is the one that is told.
        self.slow.send_if_modified(|told| std::mem::replace(told, slow) != slow);
        result
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    /// None so far, and never more than the bounds allow.
    pub(crate) fn new(bounds: FlightLimits) -> Self {
        let in_flight = InFlight { flights: HashMap::new(), shares: Shares::default() };
        let (bounds, in_flight) = (RwLock::new(bounds), Mutex::new(in_flight));
        Self { shared: Arc::new(FlightsInner { bounds, in_flight, waiting: Arc::default() }) }
    }

    /// Other bounds for those who come from now on. Who waits already stays.
    pub(crate) fn set_bounds(&self, bounds: FlightLimits) {
        *self.shared.bounds.write() = bounds;
    }

    /// Joins the flight for a key. With a leader, the flight is new and its call has to be made.
    pub(crate) fn join(&self, key: &K, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        let mut in_flight = self.shared.in_flight();
        if let Some(joinable) = in_flight.flights.get(key) {
            return self.wait(key, joinable, caller);
        }
        let Some(flight) = in_flight.begin(key, caller, self.shared.bounds()) else { return self.solo(caller) };
        drop(in_flight);
        self.lead(flight, Some(key.clone()), caller)
    }

    /// Joins the flight for a key if there is one. Otherwise the new flight is one that nobody else can join.
    pub(crate) fn wait_or_solo(&self, key: &K, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        match self.shared.in_flight().flights.get(key) {
            Some(joinable) => self.wait(key, joinable, caller),
            None => self.solo(caller),
        }
    }

    fn wait(&self, key: &K, joinable: &Joinable<T>, caller: Caller) -> (Waiter<K, T>, Option<Leader<K, T>>) {
        let place = Share::take(&self.shared.waiting, caller, self.shared.bounds().waiting);
        let Some(place) = place else { return self.solo(caller) };
        (Waiter::new(&self.shared, &joinable.flight, Some(key.clone()), Some(place)), None)
    }

    /// Begins the flight for a key with no waiter, unless there is one already or no room.
    pub(crate) fn begin(&self, key: &K, caller: Caller) -> Option<Leader<K, T>> {
        let mut in_flight = self.shared.in_flight();
        if in_flight.flights.contains_key(key) {
            return None;
        }
        let flight = in_flight.begin(key, caller, self.shared.bounds())?;
        drop(in_flight);
        self.lead(flight, Some(key.clone()), caller).1
    }

    /// A new flight that nobody else can join.
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

    /// Lets nobody join the present flights any more; their waiters get their results.
    pub(crate) fn close_all(&self) {
        let mut in_flight = self.shared.in_flight();
        in_flight.shares = Shares::default();
        for (_, Joinable { flight, .. }) in in_flight.flights.drain() {
            flight.update(|calls| calls.is_closed = true);
        }
    }

    /// How many wait for a flight that another request began.
    pub(crate) fn waiting(&self) -> usize {
        shares::all(&self.shared.waiting)
    }
}

impl<K: Eq + Hash + Clone, T> InFlight<K, T> {
    /// A new flight, if there is room for it.
    fn begin(&mut self, key: &K, caller: Caller, bounds: FlightLimits) -> Option<Arc<Flight<T>>> {
        self.shares.take(caller, bounds.flights).then(|| {
            let flight = Flight::new(caller, false);
            let joinable = Joinable { _waited_for: flight.state.subscribe(), flight: Arc::clone(&flight), caller };
            self.flights.insert(key.clone(), joinable);
            flight
        })
    }
}

impl<K, T> FlightsInner<K, T> {
    fn bounds(&self) -> FlightLimits {
        *self.bounds.read()
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight<K, T>> {
        self.in_flight.lock()
    }
}

/// The duty to end a call.
pub(crate) struct Leader<K: Eq + Hash, T> {
    /// None for a flight that nobody else can join.
    key: Option<K>,
    flight: Arc<Flight<T>>,
    caller: Caller,
    /// For the request whose call it is; taken once that has been answered.
    own: Option<oneshot::Sender<T>>,
    /// Once the call is off those under way: whether it was the last.
    was_last: Option<bool>,
    shared: Arc<FlightsInner<K, T>>,
}

impl<K: Eq + Hash, T> Leader<K, T> {
    /// Notes that upstream is being asked from now on; before, the call waits for its turn.
    pub(crate) fn begin_call(&self) {
        self.flight.is_sent.store(true, Ordering::Relaxed);
    }

    /// Notes that the call, which was sent then, has taken so long that another may be made.
    pub(crate) fn is_slow(&self, sent: Instant) {
        self.flight.update(|calls| {
            if let Some(call) = calls.under_way.iter_mut().find(|call| call.caller == self.caller) {
                call.slow = Some(sent);
            }
        });
    }

    /// Whether others can join, or could.
    pub(crate) fn takes_others(&self) -> bool {
        self.key.is_some()
    }

    /// Waits until nobody waits any more and nobody can join.
    pub(crate) async fn deserted(&self) {
        self.flight.state.closed().await;
    }

    /// Releases the others before the result is whole, if this is the last call. Requests of its own caller have to
    /// wait on ([`Waiter::whole_result`]).
    pub(crate) fn announce(&mut self, result: T) {
        if self.leave() {
            self.close();
            self.tell(FlightState::Announced(result));
        }
    }

    /// Ends the call. A result that serves everybody ends the flight; another one does so if this is the last call,
    /// and goes to its own request alone otherwise.
    pub(crate) fn end(mut self, result: T, serves_all: bool)
    where
        T: Clone,
    {
        let own = self.own.take();
        if serves_all {
            // First, or a waiter that is woken meanwhile may begin a call that nobody needs.
            self.close();
        }
        let is_over = self.leave() || serves_all;
        if is_over {
            // Before anybody is answered, or a request that comes after that could still join.
            self.close();
        }
        if let Some(own) = own {
            // That request may be gone.
            let _ = own.send(result.clone());
        }
        if is_over {
            self.tell(FlightState::Ended(result));
        }
    }

    /// Takes the call off those under way. Says whether it was the last.
    fn leave(&mut self) -> bool {
        *self.was_last.get_or_insert_with(|| {
            self.flight.update(|calls| {
                calls.under_way.retain(|call| call.caller != self.caller);
                calls.under_way.is_empty()
            })
        })
    }

    /// The first end of a flight counts.
    fn tell(&self, state: FlightState<T>) {
        self.flight.state.send_if_modified(|told| {
            let is_over = matches!(told, FlightState::Ended(_) | FlightState::Lost);
            if !is_over {
                *told = state;
            }
            !is_over
        });
    }

    /// Lets nobody join any more.
    fn close(&self) {
        let Some(key) = &self.key else { return };
        self.flight.update(|calls| calls.is_closed = true);
        let mut in_flight = self.shared.in_flight();
        // After `close_all` a newer flight may have the key.
        if in_flight.flights.get(key).is_some_and(|joinable| Arc::ptr_eq(&joinable.flight, &self.flight)) {
            let ended = in_flight.flights.remove(key);
            ended.inspect(|ended| in_flight.shares.give_back(ended.caller));
        }
    }
}

impl<K: Eq + Hash, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        // After an end, this changes nothing.
        if self.leave() {
            self.close();
            self.tell(FlightState::Lost);
        }
    }
}

/// A request that waits for the result of a flight.
pub(crate) struct Waiter<K, T> {
    key: Option<K>,
    flight: Arc<Flight<T>>,
    state: watch::Receiver<FlightState<T>>,
    /// For a request whose own call is under way.
    own: Option<oneshot::Receiver<T>>,
    /// For those who have not begun a call.
    counted: Option<Share>,
    shared: Arc<FlightsInner<K, T>>,
}

/// What a waiter has been given.
pub(crate) struct FlightOutcome<T> {
    /// The result.
    pub result: T,
    /// Whether it is that of the request's own call.
    pub is_own: bool,
}

impl<K, T> Waiter<K, T> {
    fn new(shared: &Arc<FlightsInner<K, T>>, flight: &Arc<Flight<T>>, key: Option<K>, counted: Option<Share>) -> Self {
        let (flight, state) = (Arc::clone(flight), flight.state.subscribe());
        Self { key, flight, state, own: None, counted, shared: Arc::clone(shared) }
    }

    /// Whether a call has been sent, not only begun to wait for its turn.
    pub(crate) fn is_sent(&self) -> bool {
        self.flight.is_sent.load(Ordering::Relaxed)
    }

    /// Tells whether the calls of the flight are slow.
    pub(crate) fn slowness(&self) -> Slowness<T> {
        Slowness { flight: Arc::clone(&self.flight), slow: self.flight.slow.subscribe() }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Waiter<K, T> {
    /// Waits for a result; `None` if the flight was lost.
    pub(crate) async fn result(&mut self) -> Option<FlightOutcome<T>> {
        self.next(|state| !matches!(state, FlightState::Pending)).await
    }

    /// Waits for a result that is whole, where one has been announced.
    pub(crate) async fn whole_result(&mut self) -> Option<FlightOutcome<T>> {
        self.next(|state| matches!(state, FlightState::Ended(_) | FlightState::Lost)).await
    }

    async fn next(&mut self, is_there: impl Fn(&FlightState<T>) -> bool) -> Option<FlightOutcome<T>> {
        let Self { own, state, .. } = self;
        let own = async {
            if let Some(receiver) = own {
                match receiver.await {
                    Ok(result) => return FlightOutcome { result, is_own: true },
                    // Its leader was lost; the flight may have others.
                    Err(_) => *own = None,
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            result = own => Some(result),
            state = state.wait_for(is_there) => match &*state.ok()? {
                FlightState::Announced(result) | FlightState::Ended(result) => Some(FlightOutcome { result: result.clone(), is_own: false }),
                FlightState::Pending | FlightState::Lost => None,
            },
        }
    }

    /// Begins another call of the flight if all calls are slow, and unless this caller has made one already, there
    /// have been as many as there may be, or nobody can join any more.
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
            (self.own, self.counted) = (Some(receiver), None);
            let (key, flight, shared) = (self.key.clone(), Arc::clone(&self.flight), Arc::clone(&self.shared));
            Leader { key, flight, caller, own: Some(sender), was_last: None, shared }
        })
    }
}
