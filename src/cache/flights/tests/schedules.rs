//! What holds for a flight in every order of what its requests and leaders do.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::future::block_on;
use shuttle::thread;
use tokio::sync::Notify;

use super::{known, *};
use crate::clock::ManualClock;
use crate::sync::explore::{explore, may_switch};

/// What the requests of a test have seen. Reading it changes no schedule.
#[derive(Default)]
struct Seen {
    in_flight: AtomicUsize,
    calls: AtomicUsize,
    /// The latest call whose result a request has got.
    answered: AtomicUsize,
}

fn flights() -> Flights<&'static str, usize> {
    Flights::new(FlightLimits { flights: 2, waiting: 2 })
}

/// Makes a request until it gets a result. The first call that it makes itself may fail.
fn request(flights: &Flights<&'static str, usize>, seen: &Seen, number: u8, mut fails: bool) {
    loop {
        let answered = seen.answered.load(SeqCst);
        let (mut waiter, leader) = flights.join(&"key", known(number));
        if let Some(leader) = leader {
            assert_eq!(seen.in_flight.fetch_add(1, SeqCst), 0, "two calls at a time");
            let call = seen.calls.fetch_add(1, SeqCst) + 1;
            may_switch();
            seen.in_flight.fetch_sub(1, SeqCst);
            if mem::take(&mut fails) { drop(leader) } else { leader.end(call, true) }
        }
        if let Some(outcome) = block_on(waiter.result()) {
            assert!(outcome.result > answered, "the result was there before the request");
            seen.answered.fetch_max(outcome.result, SeqCst);
            return;
        }
    }
}

fn assert_nothing_is_left(flights: &Flights<&'static str, usize>) {
    assert!(!flights.is_in_flight(&"key") && flights.waiting() == 0);
    let led = ["key", "another"].map(|key| flights.join(&key, known(0)).1);
    assert!(led.iter().flatten().filter(|leader| leader.key().is_some()).count() == 2, "all places are free");
}

#[test]
fn there_is_one_call_at_a_time_and_every_request_gets_a_result_of_a_call_in_flight() {
    explore(|| {
        let (flights, seen) = (flights(), Seen::default());
        thread::scope(|threads| {
            for number in 0..3 {
                let (flights, seen) = (&flights, &seen);
                threads.spawn(move || request(flights, seen, number, number == 0));
            }
        });
        assert_nothing_is_left(&flights);
    });
}

#[test]
fn a_request_after_a_purge_gets_no_result_of_a_call_from_before() {
    explore(|| {
        let (flights, calls) = (flights(), AtomicUsize::new(0));
        let request = |number: u8| {
            let (mut waiter, leader) = flights.join(&"key", known(number));
            if let Some(leader) = leader {
                let call = calls.fetch_add(1, SeqCst) + 1;
                may_switch();
                leader.end(call, true);
            }
            block_on(waiter.result()).unwrap().result
        };
        thread::scope(|threads| {
            threads.spawn(|| request(0));
            threads.spawn(|| request(1));
            threads.spawn(|| {
                let before = calls.load(SeqCst);
                flights.close_all();
                assert!(request(2) > before);
            });
        });
        assert_nothing_is_left(&flights);
    });
}

#[test]
fn a_call_is_given_up_only_if_nobody_waits_for_it() {
    explore(|| {
        let (flights, turn) = (flights(), Notify::new());
        let (waiter, leader) = flights.join(&"key", known(0));
        let leader = leader.unwrap();
        thread::scope(|threads| {
            threads.spawn(|| drop(waiter));
            threads.spawn(|| {
                block_on(async {
                    tokio::select! {
                        biased;
                        () = leader.abandoned() => {}
                        () = turn.notified() => leader.end(1, true),
                    }
                });
            });
            threads.spawn(|| {
                let (mut waiter, leader) = flights.join(&"key", known(1));
                match leader {
                    Some(leader) => leader.end(2, true),
                    None => turn.notify_one(),
                }
                assert!(block_on(waiter.result()).is_some(), "the call was given up");
            });
        });
        assert_nothing_is_left(&flights);
    });
}

#[test]
fn while_a_call_is_slow_one_other_is_made() {
    let now = Clock::Manual(ManualClock::default()).now();
    explore(move || {
        let flights = flights();
        let (first, leader) = flights.join(&"key", known(0));
        let leader = leader.unwrap();
        leader.mark_slow(now);
        let waiting = thread::scope(|threads| {
            let request = |number| {
                let (mut waiter, _) = flights.join(&"key", known(number));
                if let Some(leader) = waiter.lead_another(caller(number)) {
                    assert!(leader.flight.calls().in_flight.len() <= 2, "three calls at a time");
                    leader.end(number.into(), false);
                }
                waiter
            };
            let requests = [1, 2].map(|number| threads.spawn(move || request(number)));
            requests.map(|request| request.join().unwrap())
        });
        leader.end(3, true);
        for mut waiter in waiting.into_iter().chain([first]) {
            assert!(block_on(waiter.result()).is_some());
        }
        assert_nothing_is_left(&flights);
    });
}
