//! Coalescing: at most one fetch in flight per key; everyone who asks meanwhile is fed from it.
//!
//! Knows nothing of what is fetched or how. Whoever boards first gets the [`Pilot`], to be flown in
//! a task of its own: passengers who leave change nothing, and a pilot who is dropped without
//! landing (a panic, say) lets its passengers go at once. Passengers are fed by the flight itself,
//! never by reading the cache again, which may have refused the entry. Past the bounds on flights and
//! passengers everyone flies solo.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

/// What is in flight.
pub struct Flights<K, T> {
    shared: Arc<Shared<K, T>>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Flights that can be boarded.
    pub flights: usize,
    /// Passengers who wait for a flight that another began, on all flights together.
    pub waiting: usize,
}

struct Shared<K, T> {
    bounds: RwLock<Bounds>,
    aloft: Mutex<HashMap<K, Flight<T>>>,
    waiting: AtomicUsize,
}

/// One flight, as those aboard see it.
struct Flight<T> {
    landing: watch::Receiver<Option<T>>,
    has_departed: Arc<AtomicBool>,
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self { landing: self.landing.clone(), has_departed: Arc::clone(&self.has_departed) }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    /// None so far, and never more than the bounds allow.
    pub fn new(bounds: Bounds) -> Self {
        let (bounds, aloft) = (RwLock::new(bounds), Mutex::default());
        Self { shared: Arc::new(Shared { bounds, aloft, waiting: AtomicUsize::new(0) }) }
    }

    /// Other bounds for those who come from now on. Who is aboard stays.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.shared.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// Boards the flight for a key. With a pilot, the flight is new and has to be flown.
    pub fn board(&self, key: &K) -> (Passenger<K, T>, Option<Pilot<K, T>>) {
        let bounds = self.shared.bounds();
        let mut aloft = self.shared.aloft();
        if let Some(flight) = aloft.get(key) {
            // Counted up under the lock, so that the bound holds; counted down without.
            if self.shared.waiting.load(Ordering::Relaxed) >= bounds.waiting {
                return self.solo();
            }
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
            let shared = Some(Arc::clone(&self.shared));
            return (Passenger { flight: flight.clone(), shared }, None);
        }
        if aloft.len() >= bounds.flights {
            return self.solo();
        }
        let (flight, pilot) = self.new_flight(Some(key.clone()));
        aloft.insert(key.clone(), flight.clone());
        (Passenger { flight, shared: None }, Some(pilot))
    }

    /// Begins the flight for a key with nobody aboard, unless there is one already or no room.
    pub fn begin(&self, key: &K) -> Option<Pilot<K, T>> {
        let mut aloft = self.shared.aloft();
        if aloft.contains_key(key) || aloft.len() >= self.shared.bounds().flights {
            return None;
        }
        let (flight, pilot) = self.new_flight(Some(key.clone()));
        aloft.insert(key.clone(), flight);
        Some(pilot)
    }

    /// A new flight that nobody else can board.
    pub fn solo(&self) -> (Passenger<K, T>, Option<Pilot<K, T>>) {
        let (flight, pilot) = self.new_flight(None);
        (Passenger { flight, shared: None }, Some(pilot))
    }

    fn new_flight(&self, key: Option<K>) -> (Flight<T>, Pilot<K, T>) {
        let (landing, landed) = watch::channel(None);
        let flight = Flight { landing: landed, has_departed: Arc::default() };
        let has_departed = Arc::clone(&flight.has_departed);
        (flight, Pilot { key, landing, has_departed, shared: Arc::clone(&self.shared) })
    }

    /// Lets nobody board the present flights any more; who is aboard arrives.
    pub fn close_all(&self) {
        self.shared.aloft().clear();
    }

    /// How many wait for a flight that another request began.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }
}

impl<K, T> Shared<K, T> {
    fn bounds(&self) -> Bounds {
        *self.bounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn aloft(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        self.aloft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to land a flight.
pub struct Pilot<K: Eq + Hash, T> {
    /// None for a solo flight.
    key: Option<K>,
    landing: watch::Sender<Option<T>>,
    has_departed: Arc<AtomicBool>,
    shared: Arc<Shared<K, T>>,
}

impl<K: Eq + Hash, T> Pilot<K, T> {
    /// Notes that upstream is being asked from now on; before, the flight waits for its turn.
    pub fn depart(&self) {
        self.has_departed.store(true, Ordering::Relaxed);
    }

    /// Whether others can board, or could.
    pub fn takes_others(&self) -> bool {
        self.key.is_some()
    }

    /// Waits until nobody is aboard any more and nobody can board.
    pub async fn deserted(&self) {
        self.landing.closed().await;
    }

    /// Ends boarding, then gives everyone aboard the answer at once.
    pub fn land(self, answer: T) {
        self.end_boarding();
        self.landing.send_replace(Some(answer));
    }

    fn end_boarding(&self) {
        let Some(key) = &self.key else { return };
        let mut aloft = self.shared.aloft();
        // After `close_all` a newer flight may have the key.
        if aloft.get(key).is_some_and(|flight| flight.landing.same_channel(&self.landing.subscribe())) {
            aloft.remove(key);
        }
    }
}

impl<K: Eq + Hash, T> Drop for Pilot<K, T> {
    fn drop(&mut self) {
        self.end_boarding();
    }
}

/// Someone who waits for a flight to land.
pub struct Passenger<K, T> {
    flight: Flight<T>,
    /// Present for those who didn't begin the flight, and so are counted as waiting.
    shared: Option<Arc<Shared<K, T>>>,
}

impl<K, T: Clone> Passenger<K, T> {
    /// Waits for the answer; `None` if the flight was lost.
    pub async fn arrive(&mut self) -> Option<T> {
        self.flight.landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }

    /// Whether upstream is being asked already.
    pub fn has_departed(&self) -> bool {
        self.flight.has_departed.load(Ordering::Relaxed)
    }
}

impl<K, T> Drop for Passenger<K, T> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flights<T: Clone>() -> Flights<&'static str, T> {
        Flights::new(Bounds { flights: 2, waiting: 2 })
    }

    #[tokio::test]
    async fn past_the_bounds_everyone_flies_solo() {
        let flights = flights();
        let (mut first, pilot) = flights.board(&"key");
        let waiting: Vec<_> = (0..2).map(|_| flights.board(&"key")).collect();
        assert!(waiting.iter().all(|(_, pilot)| pilot.is_none()));
        let (mut one_too_many, solo) = flights.board(&"key");
        solo.unwrap().land("solo");
        assert_eq!(one_too_many.arrive().await, Some("solo"));
        let (_second, _pilot) = flights.board(&"another");
        let (mut third, solo) = flights.board(&"a third");
        let (mut fourth, another_solo) = flights.board(&"a third");
        solo.unwrap().land("third");
        another_solo.unwrap().land("fourth");
        assert_eq!((third.arrive().await, fourth.arrive().await), (Some("third"), Some("fourth")));
        pilot.unwrap().land("shared");
        assert_eq!(first.arrive().await, Some("shared"));
        for (mut passenger, _) in waiting {
            assert_eq!(passenger.arrive().await, Some("shared"));
        }
        assert_eq!(flights.waiting(), 0);
    }

    #[test]
    fn other_bounds_hold_for_those_who_come_then() {
        let flights = flights::<()>();
        let (_first, _pilot) = flights.board(&"key");
        let (_second, none) = flights.board(&"key");
        flights.set_bounds(Bounds { flights: 1, waiting: 1 });
        assert!(none.is_none() && flights.waiting() == 1);
        assert!(flights.board(&"key").1.is_some(), "one too many waits");
        assert!(flights.begin(&"another").is_none(), "one too many flies");
        flights.set_bounds(Bounds { flights: 2, waiting: 2 });
        assert!(flights.board(&"key").1.is_none() && flights.begin(&"another").is_some());
    }

    #[tokio::test]
    async fn the_first_aboard_flies_and_everyone_arrives() {
        let flights = flights();
        let (mut first, pilot) = flights.board(&"key");
        let (mut second, none) = flights.board(&"key");
        assert!(none.is_none());
        assert_eq!(flights.waiting(), 1);
        pilot.unwrap().land(42);
        assert_eq!((first.arrive().await, second.arrive().await), (Some(42), Some(42)));
        drop((first, second));
        assert_eq!(flights.waiting(), 0);
        assert!(flights.board(&"key").1.is_some(), "a landed flight takes nobody aboard");
    }

    #[tokio::test]
    async fn passengers_who_leave_change_nothing() {
        let flights = flights();
        let (first, pilot) = flights.board(&"key");
        let (mut second, _) = flights.board(&"key");
        drop(first);
        let (third, none) = flights.board(&"key");
        assert!(none.is_none());
        drop(third);
        assert_eq!(flights.waiting(), 1);
        pilot.unwrap().land(1);
        assert_eq!(second.arrive().await, Some(1));
    }

    #[tokio::test]
    async fn a_lost_flight_lets_its_passengers_go() {
        let flights = flights::<u8>();
        let (mut first, pilot) = flights.board(&"key");
        let (mut second, _) = flights.board(&"key");
        drop(pilot);
        assert_eq!((first.arrive().await, second.arrive().await), (None, None));
        assert!(flights.board(&"key").1.is_some());
    }

    #[tokio::test]
    async fn a_closed_flight_lands_without_touching_the_next() {
        let flights = flights();
        let (mut old, old_pilot) = flights.board(&"key");
        flights.close_all();
        let (mut new, new_pilot) = flights.board(&"key");
        old_pilot.unwrap().land("old");
        let (mut late, none) = flights.board(&"key");
        assert!(none.is_none(), "the new flight still takes passengers");
        new_pilot.unwrap().land("new");
        assert_eq!(old.arrive().await, Some("old"));
        assert_eq!((new.arrive().await, late.arrive().await), (Some("new"), Some("new")));
    }

    #[tokio::test]
    async fn a_flight_with_nobody_aboard_can_be_boarded_and_is_begun_once() {
        let flights = flights();
        let pilot = flights.begin(&"key").unwrap();
        assert!(flights.begin(&"key").is_none());
        let (mut late, none) = flights.board(&"key");
        assert!(none.is_none() && !late.has_departed());
        pilot.depart();
        assert!(late.has_departed());
        let _second = flights.begin(&"second");
        assert!(flights.begin(&"third").is_none(), "there is no room");
        pilot.land(1);
        assert_eq!(late.arrive().await, Some(1));
        assert!(flights.begin(&"key").is_some());
    }
}
