//! Which request gets the result of which call.

mod schedules;

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::HeaderValue;

use super::*;
use crate::clock::Clock;
use crate::request::caller::Callers;

fn caller(number: u8) -> Caller {
    let token = HeaderValue::from_bytes(&[b'a' + number]).unwrap();
    Callers::new([0; 32]).of_token(&token)
}

fn known(number: u8) -> FlightCaller {
    FlightCaller { caller: caller(number), is_known: true }
}

/// The result that a waiter gets.
async fn result<T: Clone>(waiter: &mut Waiter<&'static str, T>) -> Option<T> {
    waiter.result().await.map(|outcome| outcome.result)
}

/// The output of a future that is ready now.
fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

fn flights<T: Clone>() -> Flights<&'static str, T> {
    Flights::new(FlightLimits { flights: 2, waiting: 2 })
}

#[tokio::test]
async fn when_the_limits_are_reached_every_request_makes_its_own_call() {
    let flights = flights();
    let (mut first, leader) = flights.join(&"key", known(0));
    let waiting: Vec<_> = (0..2).map(|_| flights.join(&"key", known(0))).collect();
    assert!(waiting.iter().all(|(_, leader)| leader.is_none()));
    let (mut one_too_many, solo) = flights.join(&"key", known(0));
    solo.unwrap().end("solo", true);
    assert_eq!(result(&mut one_too_many).await, Some("solo"));
    let (_second, _leader) = flights.join(&"another", known(0));
    let (mut third, solo) = flights.join(&"a third", known(0));
    let (mut fourth, another_solo) = flights.join(&"a third", known(0));
    solo.unwrap().end("third", true);
    another_solo.unwrap().end("fourth", true);
    assert_eq!((result(&mut third).await, result(&mut fourth).await), (Some("third"), Some("fourth")));
    leader.unwrap().end("shared", true);
    assert_eq!(result(&mut first).await, Some("shared"));
    for (mut waiter, _) in waiting {
        assert_eq!(result(&mut waiter).await, Some("shared"));
    }
    assert_eq!(flights.waiting(), 0);
}

#[tokio::test]
async fn a_caller_with_half_of_the_flights_or_waiters_makes_its_own_calls_and_others_still_join() {
    let flights = Flights::<usize, ()>::new(FlightLimits { flights: 6, waiting: 6 });
    let looping: Vec<_> = (0..6).map(|key| flights.join(&key, known(0))).collect();
    let others: Vec<_> = (10..16).map(|key| flights.join(&key, known(1))).collect();
    let waiting: Vec<_> = (0..6).map(|_| flights.join(&0, known(0))).collect();
    assert_eq!((waiting.iter().filter(|(_, leader)| leader.is_none()).count(), flights.waiting()), (3, 3));
    let joining: Vec<_> = [0, 1, 2, 10, 11, 12].map(|key| flights.join(&key, known(2))).into();
    assert_eq!((joining.iter().filter(|(_, leader)| leader.is_none()).count(), flights.waiting()), (3, 6));
    // Each of the two has led three flights that others can join.
    for led in [&looping, &others] {
        let is_joinable = |(_, leader): &&(_, Option<Leader<usize, ()>>)| leader.as_ref().unwrap().key().is_some();
        assert_eq!(led.iter().filter(is_joinable).count(), 3);
    }
    // The end of a flight makes room for another one.
    drop((waiting, joining, looping));
    assert!(flights.join(&20, known(0)).1.unwrap().key().is_some());
    assert_eq!(flights.waiting(), 0);
}

#[test]
fn new_limits_apply_to_later_requests() {
    let flights = flights::<()>();
    let (_first, _leader) = flights.join(&"key", known(0));
    let (_second, none) = flights.join(&"key", known(0));
    flights.set_limits(FlightLimits { flights: 1, waiting: 1 });
    assert!(none.is_none() && flights.waiting() == 1);
    assert!(flights.join(&"key", known(0)).1.is_some(), "no room for another waiter");
    assert!(flights.begin(&"another", known(0)).is_none(), "no room for another flight");
    flights.set_limits(FlightLimits { flights: 2, waiting: 2 });
    assert!(flights.join(&"key", known(0)).1.is_none() && flights.begin(&"another", known(0)).is_some());
}

#[tokio::test]
async fn the_first_request_leads_and_all_get_its_result() {
    let flights = flights();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut second, none) = flights.join(&"key", known(0));
    assert!(none.is_none());
    assert_eq!(flights.waiting(), 1);
    leader.unwrap().end(42, true);
    assert_eq!((result(&mut first).await, result(&mut second).await), (Some(42), Some(42)));
    drop((first, second));
    assert_eq!(flights.waiting(), 0);
    assert!(flights.join(&"key", known(0)).1.is_some(), "a flight that has ended cannot be joined");
}

#[tokio::test]
async fn waiters_that_disconnect_change_nothing() {
    let flights = flights();
    let (first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(0));
    drop(first);
    let (third, none) = flights.join(&"key", known(0));
    assert!(none.is_none());
    drop(third);
    assert_eq!(flights.waiting(), 1);
    leader.unwrap().end(1, true);
    assert_eq!(result(&mut second).await, Some(1));
}

#[tokio::test]
async fn a_dropped_leader_releases_its_waiters() {
    let flights = flights::<u8>();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(0));
    drop(leader);
    assert_eq!((result(&mut first).await, result(&mut second).await), (None, None));
    assert!(flights.join(&"key", known(0)).1.is_some());
}

#[tokio::test]
async fn the_end_of_a_closed_flight_does_not_change_the_next_flight() {
    let flights = flights();
    let (mut old, old_leader) = flights.join(&"key", known(0));
    flights.close_all();
    let (mut new, new_leader) = flights.join(&"key", known(0));
    old_leader.unwrap().end("old", true);
    let (mut late, none) = flights.join(&"key", known(0));
    assert!(none.is_none(), "the new flight can be joined");
    new_leader.unwrap().end("new", true);
    assert_eq!(result(&mut old).await, Some("old"));
    assert_eq!((result(&mut new).await, result(&mut late).await), (Some("new"), Some("new")));
}

#[tokio::test]
async fn a_flight_without_waiters_can_be_joined_and_begins_only_once() {
    let flights = flights();
    let leader = flights.begin(&"key", known(0)).unwrap();
    assert!(flights.begin(&"key", known(0)).is_none());
    let (mut late, none) = flights.join(&"key", known(0));
    assert!(none.is_none() && !late.is_sent());
    leader.mark_sent();
    assert!(late.is_sent());
    let _second = flights.begin(&"second", known(0));
    assert!(flights.begin(&"third", known(0)).is_none(), "there is no room");
    leader.end(1, true);
    assert_eq!(result(&mut late).await, Some(1));
    assert!(flights.begin(&"key", known(0)).is_some());
}

#[tokio::test]
async fn a_call_is_abandoned_when_no_request_waits_for_it_any_more() {
    let flights = flights::<u8>();
    let (waiter, leader) = flights.join(&"key", known(0));
    let leader = leader.unwrap();
    assert!(!leader.is_joined());
    let (joined, _) = flights.join(&"key", known(1));
    assert!(leader.is_joined());
    drop(waiter);
    assert!(now(leader.abandoned()).is_none());
    drop(joined);
    assert!(now(leader.abandoned()).is_some());
    // The next request begins a flight, which the end of the abandoned call does not change.
    let (mut next, next_leader) = flights.join(&"key", known(0));
    drop(leader);
    next_leader.unwrap().end(1, true);
    assert_eq!(result(&mut next).await, Some(1));
    // A refresh is wanted for itself, until a purge.
    let refresh = flights.begin(&"key", known(0)).unwrap();
    assert!(now(refresh.abandoned()).is_none());
    drop(flights.join(&"key", known(1)));
    assert!(refresh.is_joined() && now(refresh.abandoned()).is_none());
    flights.close_all();
    assert!(now(refresh.abandoned()).is_some());
}

#[tokio::test]
async fn an_abandoned_call_leaves_the_other_calls_of_its_flight() {
    let flights = flights::<u8>();
    let (first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    let leader = leader.unwrap();
    leader.mark_slow(Clock::System.now());
    let another = second.lead_another(caller(1)).unwrap();
    drop((first, second));
    assert!(now(another.abandoned()).is_some());
    drop(another);
    let (mut late, none) = flights.join(&"key", known(2));
    assert!(none.is_none() && now(result(&mut late)).is_none());
    leader.end(1, true);
    assert_eq!(result(&mut late).await, Some(1));
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn while_all_calls_are_slow_other_callers_make_up_to_two_more() {
    let flights = flights();
    let sent = Clock::System.now();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    let (mut third, _) = flights.join(&"key", known(1));
    let leader = leader.unwrap();
    assert!(
        second.lead_another(caller(1)).is_none() && now(second.slowness().all_slow(caller(1))).is_none(),
        "the call is not slow"
    );
    leader.mark_slow(sent);
    assert_eq!(now(second.slowness().all_slow(caller(1))), Some(sent));
    assert!(second.lead_another(caller(0)).is_none(), "this caller has made the slow call");
    let another = second.lead_another(caller(1)).unwrap();
    assert_eq!(flights.waiting(), 1, "a leader is not counted as waiting");
    assert!(third.lead_another(caller(2)).is_none(), "the second call is not slow");
    another.mark_slow(sent + SECOND);
    assert_eq!(now(third.slowness().all_slow(caller(2))), Some(sent + SECOND));
    assert!(third.lead_another(caller(1)).is_none(), "this caller has made a call");
    let last = third.lead_another(caller(2)).unwrap();
    last.mark_slow(sent + 2 * SECOND);
    assert!(first.lead_another(caller(3)).is_none(), "there have been three calls");
    another.end("served", true);
    assert_eq!(result(&mut first).await, Some("served"));
    assert_eq!(result(&mut third).await, Some("served"));
    let outcome = second.result().await.unwrap();
    assert!(outcome.is_own && outcome.result == "served");
    last.end("failed", false);
    leader.end("failed", false);
    let (mut late, new) = flights.join(&"key", known(0));
    assert!(new.is_some() && now(result(&mut late)).is_none());
}

#[tokio::test]
async fn a_failure_ends_only_its_own_call_while_there_is_another() {
    let flights = flights();
    let sent = Clock::System.now();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    let (mut waiter, _) = flights.join(&"key", known(2));
    let leader = leader.unwrap();
    leader.mark_slow(sent);
    let another = second.lead_another(caller(1)).unwrap();
    another.end("failed", false);
    assert_eq!(result(&mut second).await, Some("failed"));
    assert!(now(result(&mut first)).is_none() && now(result(&mut waiter)).is_none());
    // The first call is again the only one, and it is still slow.
    assert_eq!(now(waiter.slowness().all_slow(caller(2))), Some(sent));
    leader.end("failed too", false);
    assert_eq!((result(&mut first).await, result(&mut waiter).await), (Some("failed too"), Some("failed too")));
}

#[tokio::test]
async fn an_announced_result_releases_the_waiters_and_the_leaders_request_waits_for_the_final_one() {
    let flights = flights();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut waiter, _) = flights.join(&"key", known(1));
    let mut leader = leader.unwrap();
    leader.announce("refused");
    assert_eq!(result(&mut waiter).await, Some("refused"));
    assert_eq!(now(result(&mut first)), Some(Some("refused")));
    assert!(now(first.final_result()).is_none());
    assert!(flights.join(&"key", known(1)).1.is_some(), "the flight cannot be joined");
    leader.end("complete", false);
    assert_eq!(first.final_result().await.map(|outcome| outcome.result), Some("complete"));
    assert_eq!(waiter.final_result().await.map(|outcome| outcome.result), Some("complete"));
}

#[tokio::test]
async fn a_flight_is_lost_only_with_its_last_call() {
    let flights = flights::<u8>();
    let (mut first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    leader.as_ref().unwrap().mark_slow(Clock::System.now());
    let another = second.lead_another(caller(1)).unwrap();
    drop(leader);
    assert_eq!(now(result(&mut first)), None);
    another.end(1, true);
    assert_eq!((result(&mut first).await, result(&mut second).await), (Some(1), Some(1)));
}

#[tokio::test]
async fn after_a_purge_no_other_call_begins_for_an_earlier_flight() {
    let flights = flights::<u8>();
    let (_first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    leader.as_ref().unwrap().mark_slow(Clock::System.now());
    flights.close_all();
    assert!(second.lead_another(caller(1)).is_none());
}

#[tokio::test]
async fn after_a_result_that_serves_all_no_other_call_begins() {
    let flights = flights::<u8>();
    let (_first, leader) = flights.join(&"key", known(0));
    let (mut second, _) = flights.join(&"key", known(1));
    let (third, _) = flights.join(&"key", known(2));
    leader.as_ref().unwrap().mark_slow(Clock::System.now());
    let another = second.lead_another(caller(1)).unwrap();
    let mut slowness = third.slowness();
    assert!(now(slowness.all_slow(caller(2))).is_none(), "the second call is not slow");
    another.end(1, true);
    assert!(now(slowness.all_slow(caller(2))).is_none(), "the flight has ended");
}
