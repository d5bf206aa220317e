//! When a request is sent, and when no call may be made.

use std::collections::HashMap;

use super::*;
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(300);
const INTERVAL: Duration = Duration::from_secs(270);

/// The facts of a key that upstream has accepted for a client, with the call of this number.
fn accepted(number: u64) -> KeyFacts {
    KeyFacts { accepted_call: Some(number), needs_no_trial: true }
}

const UNTRIED: KeyFacts = KeyFacts { accepted_call: None, needs_no_trial: true };

/// A schedule with the key "k", and what memory has.
struct Fixture {
    schedule: Schedule<&'static str, u32>,
    start: Instant,
    now: Instant,
    ttl: Duration,
    grant_ttl: Duration,
    entries: HashMap<u32, Instant>,
    proved: Option<Instant>,
    purged: Option<Instant>,
    /// Whether responses to calls of keep warm are stored.
    is_storing: bool,
    held: HashMap<u32, Instant>,
    /// That of the latest call.
    timing: Option<Timing>,
}

impl Fixture {
    fn new(requests: u32) -> Self {
        let start = Clock::System.now();
        let mut schedule = Schedule::new();
        schedule.set((0..requests).map(|request| ("k", request, INTERVAL)).collect(), start, || 0.5);
        Self {
            schedule,
            start,
            now: start,
            ttl: TTL,
            grant_ttl: TTL,
            entries: HashMap::new(),
            proved: None,
            purged: None,
            is_storing: true,
            held: HashMap::new(),
            timing: None,
        }
    }

    fn next(&mut self, facts: KeyFacts) -> Next<u32> {
        self.schedule.update(&"k", facts);
        let states: Vec<_> = (0..100).map(|request| self.state(request)).collect();
        let (state, held) =
            (|request: &u32| states[*request as usize], |request: &u32| self.held.get(request).copied());
        match self.schedule.next(&"k", state, held, self.now) {
            Next::Call((request, timing)) => {
                self.timing = Some(timing);
                Next::Call(request)
            }
            Next::Wait(at) => Next::Wait(at),
            Next::WaitForChange => Next::WaitForChange,
        }
    }

    fn state(&self, request: u32) -> StoredState {
        let validity = |begin, length| Validity { begin, length };
        StoredState {
            entry: self.entries.get(&request).map(|begin| validity(*begin, self.ttl)),
            grant: self.proved.map(|begin| validity(begin, self.grant_ttl)),
            purged: self.purged,
            is_backing_off: false,
        }
    }

    fn ended(&mut self, request: u32, result: CallResult) {
        self.schedule.ended(&"k", &request, result, self.now);
    }

    /// The call has been answered well at once.
    fn proved(&mut self, request: u32) {
        self.proved = Some(self.now);
        self.is_storing.then(|| self.entries.insert(request, self.now));
        let not_stored = (!self.is_storing).then_some(Unstorable::CacheDirectives);
        self.ended(request, CallResult::Proved { sent: self.now, not_stored });
    }

    /// A client's call has been answered well at once.
    fn refreshed(&mut self, request: u32) {
        self.proved = Some(self.now);
        self.entries.insert(request, self.now);
    }

    /// Lets time pass. Each call is answered well at once. Returns when which request was sent, in seconds.
    fn calls(&mut self, duration: Duration) -> Vec<(u64, u32)> {
        let (mut calls, end) = (Vec::new(), self.now + duration);
        loop {
            match self.next(accepted(1)) {
                Next::Call(request) => {
                    calls.push(((self.now - self.start).as_secs(), request));
                    self.proved(request);
                }
                Next::Wait(at) if at < end => self.now = at,
                _ => {
                    self.now = end;
                    return calls;
                }
            }
        }
    }
}

#[test]
fn each_request_is_sent_again_after_nine_tenths_of_its_lifetime() {
    let mut fixture = Fixture::new(2);
    assert_eq!(fixture.calls(600 * SECOND), [(0, 0), (0, 1), (270, 0), (270, 1), (540, 0), (540, 1)]);
}

#[test]
fn a_grant_is_proved_by_the_request_whose_response_ends_first() {
    let mut fixture = Fixture::new(3);
    fixture.ttl = 60 * MINUTE;
    let first = [(0, 0), (0, 1), (0, 2)];
    assert_eq!(
        fixture.calls(1_400 * SECOND),
        [&first[..], &[(270, 0), (540, 1), (810, 2), (1080, 0), (1350, 1)]].concat()
    );
}

#[test]
fn long_lived_responses_cost_one_call_for_each_proof_or_one_for_each_response() {
    for (requests, expected) in [(3, 3_240 / 270), (12, 12), (30, 30)] {
        let mut fixture = Fixture::new(requests);
        fixture.ttl = 60 * MINUTE;
        fixture.calls(10 * 60 * MINUTE);
        // 20 times nine tenths of an hour.
        assert_eq!(fixture.calls(20 * 3_240 * SECOND).len(), 20 * expected, "{requests}");
    }
}

#[test]
fn nothing_is_sent_that_a_client_has_refreshed() {
    let mut fixture = Fixture::new(1);
    fixture.calls(200 * SECOND);
    fixture.entries.insert(0, fixture.now);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.start + INTERVAL), "the grant ends");
    fixture.proved = Some(fixture.now);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + INTERVAL));
    assert_eq!(fixture.calls(400 * SECOND), [(470, 0)]);
}

#[test]
fn a_request_that_is_not_needed_is_looked_at_again_a_second_later() {
    let mut fixture = Fixture::new(1);
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    fixture.ended(0, CallResult::NotSent);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + RECHECK));
}

#[test]
fn one_call_is_made_at_a_time_with_each_key() {
    let mut fixture = Fixture::new(2);
    fixture.schedule.set(vec![("k", 0, TTL), ("k", 1, TTL), ("l", 2, TTL)], fixture.now, || 0.0);
    fixture.schedule.update(&"l", accepted(1));
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    assert_eq!(fixture.next(accepted(1)), Next::WaitForChange);
    let other = fixture.schedule.next(&"l", |_| StoredState::default(), |_| None, fixture.now);
    assert!(matches!(other, Next::Call((2, _))));
    fixture.proved(0);
    assert_eq!(fixture.next(accepted(1)), Next::Call(1));
}

#[test]
fn a_call_that_a_limit_holds_back_does_not_delay_the_others() {
    let mut fixture = Fixture::new(3);
    fixture.held.insert(0, fixture.start + 100 * SECOND);
    fixture.held.insert(1, fixture.start + 50 * SECOND);
    assert_eq!(fixture.next(accepted(1)), Next::Call(2));
    fixture.proved(2);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.start + 50 * SECOND));
    fixture.held.clear();
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
}

#[test]
fn without_an_accepted_client_there_is_one_try_at_a_random_moment_of_five_minutes() {
    for result in [None, Some(CallResult::Refused { calls: 1 }), Some(CallResult::Failed { retry_after: None })] {
        let mut fixture = Fixture::new(2);
        assert_eq!(fixture.next(UNTRIED), Next::Wait(fixture.start + FIRST_TRY / 2));
        fixture.now += FIRST_TRY / 2;
        assert_eq!(fixture.next(UNTRIED), Next::Call(0));
        let expected = match result {
            None => Next::Call(1),
            // Without an answer the key has not been tried.
            Some(CallResult::Failed { .. }) => Next::Wait(fixture.now + 5 * SECOND),
            Some(_) => Next::WaitForChange,
        };
        match result {
            None => fixture.proved(0),
            Some(result) => fixture.ended(0, result),
        }
        assert_eq!(fixture.next(UNTRIED), expected);
    }
    let mut fixture = Fixture::new(1);
    assert_eq!(fixture.next(accepted(1)), Next::Call(0), "a client is first");
}

#[test]
fn a_refusal_stops_until_a_later_call_of_a_client_is_accepted() {
    let mut fixture = Fixture::new(2);
    assert_eq!(fixture.next(accepted(7)), Next::Call(0));
    fixture.ended(0, CallResult::Refused { calls: 9 });
    for (facts, expected) in [
        (accepted(7), Next::WaitForChange),
        (accepted(9), Next::WaitForChange),
        (KeyFacts { needs_no_trial: false, ..accepted(10) }, Next::WaitForChange),
        // What was refused is not sent again at once.
        (accepted(10), Next::Call(1)),
    ] {
        assert_eq!(fixture.next(facts), expected, "{facts:?}");
    }
    fixture.proved(1);
    assert_eq!(fixture.next(accepted(10)), Next::Wait(fixture.now + INTERVAL));
}

#[test]
fn a_key_that_needs_a_trial_is_not_used_and_counts_as_stopped() {
    let mut fixture = Fixture::new(1);
    fixture.now += FIRST_TRY;
    assert!(!fixture.schedule.update(&"k", UNTRIED));
    assert_eq!(fixture.schedule.stopped_keys(), 0, "it has not been tried");
    let refused = KeyFacts { accepted_call: None, needs_no_trial: false };
    assert!(fixture.schedule.update(&"k", refused), "it is stopped now");
    assert!(!fixture.schedule.update(&"k", refused), "it was stopped before");
    assert_eq!(fixture.next(refused), Next::WaitForChange);
    assert_eq!(fixture.next(KeyFacts { accepted_call: Some(1), ..refused }), Next::WaitForChange);
    fixture.schedule.set(vec![("k", 1, TTL)], fixture.now, || 0.0);
    assert_eq!(fixture.schedule.stopped_keys(), 1, "also after a reload");
    assert_eq!(fixture.next(accepted(2)), Next::Call(1));
    assert_eq!(fixture.schedule.stopped_keys(), 0);
    assert!(!fixture.schedule.update(&"k", refused), "this may be the refusal of the call in progress");
    fixture.ended(1, CallResult::Refused { calls: 3 });
    assert!(!fixture.schedule.update(&"k", refused));
    assert_eq!(fixture.schedule.stopped_keys(), 1);
    // Another secret is another key, and upstream counts the refusals of both together.
    fixture.schedule.set(vec![("l", 1, TTL)], fixture.now, || 0.0);
    assert!(fixture.schedule.update(&"l", refused));
    assert_eq!(fixture.schedule.stopped_keys(), 1);
}

#[test]
fn a_clients_refusal_during_a_call_is_reported_once_when_the_call_has_ended() {
    let refused = KeyFacts { accepted_call: Some(1), needs_no_trial: false };
    for result in [CallResult::NotSent, CallResult::Answered, CallResult::Failed { retry_after: None }] {
        let mut fixture = Fixture::new(1);
        assert_eq!(fixture.next(accepted(1)), Next::Call(0));
        assert!(!fixture.schedule.update(&"k", refused), "the call is in progress");
        fixture.schedule.set(vec![("k", 0, TTL)], fixture.now, || 0.0);
        fixture.ended(0, result);
        assert!(fixture.schedule.update(&"k", refused), "{result:?}");
        assert!(!fixture.schedule.update(&"k", refused), "{result:?}: it was reported");
        assert!(!fixture.schedule.update(&"k", accepted(2)));
        assert!(fixture.schedule.update(&"k", refused), "{result:?}: it is stopped again");
    }
}

#[test]
fn after_failures_the_key_waits_from_five_seconds_to_a_minute() {
    let mut fixture = Fixture::new(20);
    for (number, seconds) in [5, 10, 20, 40, 60, 60, 60].into_iter().enumerate() {
        let Next::Call(request) = fixture.next(accepted(1)) else { panic!("failure {number}") };
        fixture.ended(request, CallResult::Failed { retry_after: None });
        assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + seconds * SECOND), "{number}");
        fixture.now += seconds * SECOND;
    }
    let Next::Call(request) = fixture.next(accepted(1)) else { panic!("the last") };
    fixture.ended(request, CallResult::Failed { retry_after: Some(90 * SECOND) });
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + 90 * SECOND));
}

#[test]
fn a_request_that_always_fails_does_not_stop_the_others() {
    let mut fixture = Fixture::new(2);
    let (mut failures, mut others) = (0, 0);
    let end = fixture.start + 60 * MINUTE;
    while fixture.now < end {
        match fixture.next(accepted(1)) {
            Next::Call(0) => {
                failures += 1;
                fixture.ended(0, CallResult::Failed { retry_after: None });
            }
            Next::Call(request) => {
                others += 1;
                fixture.proved(request);
            }
            Next::Wait(at) => fixture.now = at,
            Next::WaitForChange => panic!("it stops"),
        }
    }
    assert!((60..=65).contains(&failures), "{failures}");
    assert!((13..=14).contains(&others), "{others}");
}

#[test]
fn what_cannot_be_kept_fresh_costs_no_more_than_the_settings_say() {
    for (is_storing, ttl, expected) in
        [(false, TTL, INTERVAL), (true, 29 * SECOND, INTERVAL), (true, 30 * SECOND, MIN_INTERVAL)]
    {
        let mut fixture = Fixture::new(1);
        (fixture.is_storing, fixture.ttl) = (is_storing, ttl);
        assert_eq!(fixture.next(accepted(1)), Next::Call(0));
        fixture.proved(0);
        assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + expected), "{is_storing} {ttl:?}");
    }
    let mut fixture = Fixture::new(1);
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    fixture.ended(0, CallResult::Answered);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + INTERVAL));
}

#[test]
fn what_is_due_is_still_due_when_its_turn_comes_unless_a_client_has_refreshed_it() {
    // The entry and the grant hold, but calls cannot replace this entry.
    let mut fixture = Fixture::new(1);
    fixture.grant_ttl = 60 * MINUTE;
    fixture.refreshed(0);
    fixture.now += INTERVAL;
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    fixture.is_storing = false;
    fixture.proved(0);
    fixture.ttl = 60 * MINUTE;
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + INTERVAL), "not before the interval");
    fixture.now += INTERVAL;
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    assert!(fixture.timing.unwrap().is_due(fixture.state(0), fixture.now), "the call is made");
    // While it waits for its turn, a client's call stores a response.
    fixture.now += SECOND;
    fixture.refreshed(0);
    assert!(!fixture.timing.unwrap().is_due(fixture.state(0), fixture.now));
    fixture.ended(0, CallResult::NotSent);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + 54 * MINUTE), "nor every second from now on");
}

#[test]
fn what_a_purge_removes_during_a_call_is_fetched_once_more_at_once() {
    let mut fixture = Fixture::new(1);
    fixture.calls(INTERVAL);
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    // Each of these calls takes two seconds, and there is a purge meanwhile.
    for delay in [Duration::ZERO, MIN_INTERVAL, MIN_INTERVAL] {
        let sent = fixture.now;
        fixture.purged = Some(sent + SECOND);
        fixture.entries.clear();
        fixture.now += 2 * SECOND;
        fixture.ended(0, CallResult::Proved { sent, not_stored: Some(Unstorable::Purged) });
        fixture.proved = Some(sent);
        if !delay.is_zero() {
            assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + delay));
            fixture.now += delay;
        }
        assert_eq!(fixture.next(accepted(1)), Next::Call(0), "{delay:?}");
    }
    fixture.proved(0);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.now + INTERVAL));
}

#[test]
fn what_ends_early_is_replaced_after_the_interval_or_after_a_purge() {
    let mut fixture = Fixture::new(1);
    fixture.calls(100 * SECOND);
    fixture.entries.clear();
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.start + INTERVAL));
    fixture.proved = None;
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.start + INTERVAL));
    fixture.purged = Some(fixture.now);
    assert_eq!(fixture.calls(SECOND), [(100, 0)]);
    fixture.entries.clear();
    fixture.purged = Some(fixture.now);
    assert_eq!(fixture.next(accepted(1)), Next::Wait(fixture.start + 100 * SECOND + MIN_INTERVAL));
}

#[test]
fn entries_that_are_never_there_cost_one_call_for_each_proof_in_turn() {
    let mut fixture = Fixture::new(0);
    fixture.is_storing = false;
    let requests = (0..3).map(|request| ("k", request, 3 * INTERVAL)).collect();
    fixture.schedule.set(requests, fixture.now, || 0.0);
    let first = [(0, 0), (0, 1), (0, 2)];
    let expected = [&first[..], &[(270, 0), (540, 1), (810, 2), (1080, 0), (1350, 1)]].concat();
    assert_eq!(fixture.calls(1_400 * SECOND), expected);
}

#[test]
fn a_reload_keeps_what_is_known_and_forgets_removed_keys() {
    let mut fixture = Fixture::new(2);
    assert_eq!(fixture.next(accepted(1)), Next::Call(0));
    fixture.ended(0, CallResult::Refused { calls: 5 });
    fixture.schedule.set(vec![("k", 1, TTL), ("k", 2, TTL)], fixture.now, || 0.0);
    assert_eq!(fixture.next(accepted(5)), Next::WaitForChange, "it is stopped");
    assert_eq!(fixture.next(accepted(6)), Next::Call(1));
    fixture.schedule.set(Vec::new(), fixture.now, || 0.0);
    assert_eq!((fixture.next(accepted(6)), fixture.schedule.keys()), (Next::WaitForChange, vec![]));
    fixture.proved(1);
    fixture.schedule.set(vec![("k", 1, TTL)], fixture.now, || 1.0);
    assert_eq!(fixture.next(UNTRIED), Next::Wait(fixture.now + FIRST_TRY), "it is new");
}
