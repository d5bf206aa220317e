//! What the gateways of a fleet tell each other about a key, and when each of them tries it.

use std::time::Duration;

use super::key_state::{SUSPENSION, TURN};
use super::tests::{self, key, poll_once};
use super::*;
use crate::clock::ManualClock;
use crate::signing::Projects;

const SECOND: Duration = Duration::from_secs(1);

/// What a call of a gateway tells the others.
fn told(breaker: &Arc<KeyBreaker>, key: &AccessKey, outcome: SignatureOutcome) -> Option<KeyNews> {
    let permit = breaker.try_enter(key, Service::Workspace).unwrap().unwrap();
    permit.ended(outcome).news.map(|(_, news)| news)
}

/// The gateways of a fleet, numbered from 1, at a time that a test moves.
fn fleet<const N: usize>() -> ([Arc<KeyBreaker>; N], ManualClock) {
    let clock = ManualClock::default();
    let mut numbers = 1..;
    let breakers = [(); N].map(|()| KeyBreaker::new(numbers.next(), Clock::Manual(clock.clone())));
    (breakers, clock)
}

fn tell(breakers: &[Arc<KeyBreaker>], news: &KeyNews) {
    breakers.iter().for_each(|breaker| drop(breaker.told(news, None, breaker.clock.now())));
}

fn in_a_row(breaker: &KeyBreaker) -> u32 {
    breaker.key_states().get(&("AK".to_owned(), None)).map_or(0, KeyState::in_a_row)
}

#[test]
fn refusals_at_all_gateways_suspend_a_key_and_are_counted_once_in_any_order() {
    let ([one, two, three, late], clock) = fleet();
    let wrong = key("wrong");
    let mut all = Vec::new();
    for breaker in [&one, &two, &one] {
        assert!(!three.is_suspended(&wrong, Service::Workspace));
        let news = told(breaker, &wrong, SignatureOutcome::Refused).unwrap();
        tell(&[one.clone(), two.clone(), three.clone()], &news);
        tell(std::slice::from_ref(&three), &news);
        all.push(news);
        assert_eq!([&one, &two, &three].map(|it| in_a_row(it)), [all.len() as u32; 3]);
    }
    all.iter().rev().chain(&all).for_each(|news| tell(std::slice::from_ref(&late), news));
    for breaker in [&one, &two, &three, &late] {
        assert_eq!(in_a_row(breaker), 3);
        assert!(breaker.is_suspended(&wrong, Service::Workspace));
        assert!(!breaker.is_suspended(&key("new"), Service::Workspace));
    }
    // A hint that is told again does not suspend a key for longer.
    clock.advance(SUSPENSION + TURN * 9);
    tell(std::slice::from_ref(&late), &all[0]);
    assert!([&one, &two, &three, &late].iter().all(|it| !it.is_suspended(&wrong, Service::Workspace)));
}

#[test]
fn an_acceptance_at_one_gateway_ends_the_refusals_that_were_known_there() {
    let ([one, two, late], _) = fleet();
    let key = key("s");
    let refused = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&two), &refused);
    let accepted = told(&two, &key, SignatureOutcome::Accepted).unwrap();
    assert!(told(&two, &key, SignatureOutcome::Accepted).is_none(), "nothing has changed");
    // Meanwhile upstream has refused another call.
    let refused_again = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&one), &accepted);
    assert_eq!(in_a_row(&one), 1, "the one that was not known");
    let _permit = one.try_enter(&key, Service::Workspace).unwrap().unwrap();
    assert!(one.is_busy(&key, Service::Workspace), "it is not accepted");
    for news in [&accepted, &refused_again, &refused, &accepted, &refused] {
        tell(std::slice::from_ref(&late), news);
    }
    assert_eq!(in_a_row(&late), 1);
    let accepted = told(&late, &key, SignatureOutcome::Accepted).unwrap();
    for breaker in [&one, &two] {
        [&refused_again, &accepted, &refused_again].iter().for_each(|news| tell(std::slice::from_ref(breaker), news));
        assert_eq!(in_a_row(breaker), 0);
        let permits: Vec<_> = (0..9).map(|_| breaker.try_enter(&key, Service::Workspace).unwrap().unwrap()).collect();
        assert_eq!(permits.len(), 9, "its calls are not limited");
    }
}

#[test]
fn an_acceptance_does_not_end_refusals_that_were_told_after_its_call_was_sent() {
    let ([one, two], _) = fleet();
    let key = key("s");
    let permit = two.try_enter(&key, Service::Workspace).unwrap().unwrap();
    tell(std::slice::from_ref(&two), &told(&one, &key, SignatureOutcome::Refused).unwrap());
    assert!(permit.ended(SignatureOutcome::Accepted).news.is_none());
    assert_eq!(in_a_row(&two), 1);
}

#[test]
fn in_a_fleet_one_call_at_a_time_tries_a_secret_and_a_refusal_of_an_accepted_one_ends_that() {
    let ([one, two], _) = fleet();
    let key = key("s");
    let enter = |breaker: &Arc<KeyBreaker>| breaker.try_enter(&key, Service::Workspace).unwrap();
    let first = enter(&one).unwrap();
    assert!(enter(&one).is_none());
    let (_, accepted) = first.ended(SignatureOutcome::Accepted).news.unwrap();
    assert!(enter(&one).and(enter(&one)).is_some());
    let _first = enter(&two).unwrap();
    let mut waiting = poll_once(tests::enter(&two, &key, Service::Workspace));
    assert!(waiting().is_none());
    tell(std::slice::from_ref(&two), &accepted);
    assert!(waiting().unwrap().is_ok(), "a told acceptance wakes those that wait");
    let refused = told(&one, &key, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&two), &refused);
    assert!(enter(&two).is_none(), "a call is under way");
}

#[test]
fn after_a_suspension_gateways_try_one_after_the_other_and_those_without_refusals_first() {
    let ([one, two, three], clock) = fleet();
    let all = [one.clone(), two.clone(), three.clone()];
    let wrong = key("wrong");
    for breaker in [&one, &one, &two] {
        tell(&all, &told(breaker, &wrong, SignatureOutcome::Refused).unwrap());
    }
    let tries = || [&one, &two, &three].map(|it| !it.is_suspended(&wrong, Service::Workspace));
    clock.advance(SUSPENSION + TURN * 3);
    assert_eq!(tries(), [false, false, true], "the place of a gateway without refusals is its number modulo 8");
    clock.advance(TURN * 5);
    assert_eq!(tries(), [true, false, true]);
    clock.advance(TURN);
    assert_eq!(tries(), [true, true, true]);
    // Three gateways with the wrong secret do not lock the key, though each tries it whenever it may.
    let mut refusals = 3;
    for _ in 0..10_000 {
        for breaker in &all {
            if let Ok(Some(permit)) = breaker.try_enter(&wrong, Service::Workspace) {
                let (_, news) = permit.ended(SignatureOutcome::Refused).news.unwrap();
                refusals += 1;
                tell(&all, &news);
            }
        }
        clock.advance(SECOND);
    }
    assert_eq!(refusals, 5);
}

#[test]
fn gateways_that_send_at_once_fail_at_most_once_each_after_two_known_refusals() {
    let (all, clock) = fleet::<3>();
    let wrong = key("wrong");
    // The worst case: nobody is told before everybody has sent.
    for breaker in [&all[0], &all[1]] {
        tell(&all, &told(breaker, &wrong, SignatureOutcome::Refused).unwrap());
    }
    let permits = all.each_ref().map(|it| it.try_enter(&wrong, Service::Workspace).unwrap().unwrap());
    assert!(all.iter().all(|it| it.is_busy(&wrong, Service::Workspace)), "each has one call under way");
    permits.into_iter().for_each(|permit| tell(&all, &permit.ended(SignatureOutcome::Refused).news.unwrap().1));
    clock.advance(SUSPENSION * 1_000);
    assert!(all.iter().all(|it| in_a_row(it) == 5 && it.is_suspended(&wrong, Service::Workspace)));
}

#[test]
fn a_refusal_tells_all_that_are_known_and_not_those_that_have_ended() {
    let ([one, two, three, late], _) = fleet();
    let wrong = key("wrong");
    // Each has been told by the one before alone, as the engine does.
    let first = told(&one, &wrong, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&two), &first);
    let second = told(&two, &wrong, SignatureOutcome::Refused).unwrap();
    tell(std::slice::from_ref(&three), &second);
    let third = told(&three, &wrong, SignatureOutcome::Refused).unwrap();
    for breaker in [&one, &late] {
        tell(std::slice::from_ref(breaker), &third);
        assert!(in_a_row(breaker) == 3 && breaker.is_suspended(&wrong, Service::Workspace));
    }
    assert!(told(&one, &key("right"), SignatureOutcome::Accepted).is_some());
    let again = told(&one, &wrong, SignatureOutcome::Refused).unwrap();
    let newest = KeyBreaker::new(Some(99), one.clock.clone());
    tell(std::slice::from_ref(&newest), &again);
    assert_eq!(in_a_row(&newest), 1);
}

#[test]
fn a_permit_that_waits_for_a_trial_counts_as_of_when_it_is_renewed() {
    let ([one, two, three], _) = fleet();
    let all = [one.clone(), two.clone(), three.clone()];
    let key = key("s");
    let enter = |breaker: &Arc<KeyBreaker>| breaker.try_enter(&key, Service::Workspace).unwrap().unwrap();
    let mut waiting = enter(&three);
    assert!(waiting.is_trial());
    tell(&all, &told(&one, &key, SignatureOutcome::Refused).unwrap());
    assert!(waiting.renew(), "a refusal does not suspend it");
    let (_, accepted) = waiting.ended(SignatureOutcome::Accepted).news.unwrap();
    let mut waiting = enter(&two);
    tell(&all, &accepted);
    assert!(waiting.renew() && !waiting.is_trial());
    for _ in 0..3 {
        tell(&all, &told(&one, &key, SignatureOutcome::Refused).unwrap());
    }
    assert!(!waiting.renew() && waiting.is_trial());
}

#[test]
fn other_gateways_cannot_make_the_state_grow_without_limit() {
    let ([one, two], clock) = fleet();
    let now = clock_now(&clock);
    for number in 0..2 * MAX_TOLD_KEYS {
        let key = AccessKey::new(format!("AK{number}"), b"s", None, Projects::Any);
        let news = told(&one, &key, SignatureOutcome::Refused).unwrap();
        two.told(&news, None, now);
    }
    assert_eq!(two.key_states().len(), MAX_TOLD_KEYS);
    // Each restart of a gateway is another process.
    let ([_, other], key) = (fleet::<2>().0, key("s"));
    for process in 10..1_000 {
        let restarted = KeyBreaker::new(Some(process), Clock::Manual(clock.clone()));
        other.told(&told(&restarted, &key, SignatureOutcome::Refused).unwrap(), None, now);
        other.told(&told(&restarted, &key, SignatureOutcome::Accepted).unwrap(), None, now);
    }
    assert_eq!(in_a_row(&other), 0);
    assert!(told(&other, &key, SignatureOutcome::Refused).is_some());
}

fn clock_now(clock: &ManualClock) -> Instant {
    Clock::Manual(clock.clone()).now()
}
