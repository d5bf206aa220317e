//! The limits of a service: what they hold back, and how they are learnt.

use http::HeaderValue;
use proptest::prelude::*;

use super::limiter::Limiter;
use super::told::ToldLimit;
use super::*;
use crate::clock::Clock;
use crate::request::caller::Callers;

const SECOND: Duration = Duration::from_secs(1);
const SERVICE: Service = Service::Workspace;

fn caller(number: u32) -> Caller {
    Callers::new([1; 32]).of_token(&HeaderValue::from(number))
}

fn draw(number: u32) -> Draw {
    let api = Some("products".into());
    Draw { caller: Some(caller(number)), api, share: Share::Known, is_proved: true, has_client: true }
}

fn unknown(number: u32) -> Draw {
    Draw { share: Share::Unknown, is_proved: false, ..draw(number) }
}

fn quota(calls: u32, window: Duration) -> Quota {
    Quota { calls, window }
}

fn told(policy: QuotaPolicy, quota: Quota) -> ToldLimit {
    ToldLimit { has_refused: true, policy: Some(policy), quota: Some(quota), remaining: None, reset: None }
}

/// The limits of one service at a time that a test moves.
struct Bench {
    limits: ServiceLimits,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { limits: ServiceLimits::default(), now: Clock::System.now() }
    }

    fn hold(&mut self, draw: &Draw) -> Option<Hold> {
        let kinds = [LimitKind::Own, LimitKind::Shared];
        let holds = kinds.map(|kind| {
            self.limits.note_held(draw, kind, self.now);
            self.limits.hold(draw, kind, 0, self.now)
        });
        holds.into_iter().flatten().max_by_key(|hold| hold.until)
    }

    /// Sends a call if it may be sent. Returns whether it is.
    fn send(&mut self, draw: &Draw) -> bool {
        let is_free = self.hold(draw).is_none();
        if is_free {
            self.limits.take(draw, self.now);
        }
        is_free
    }

    /// Sends as many calls as may be sent now.
    fn send_all(&mut self, draw: &Draw) -> u32 {
        (0..1_000_000).take_while(|_| self.send(draw)).count().try_into().unwrap()
    }

    /// A call is sent now and refused.
    fn refuse(&mut self, draw: &Draw, told: &ToldLimit) -> Vec<LimitChange> {
        self.limits.take(draw, self.now);
        self.limits.learn(draw, self.now, std::slice::from_ref(told), Some(None), self.now)
    }
}

#[test]
fn a_user_limit_holds_back_its_caller_alone_and_counts_what_was_sent_before_it_was_learnt() {
    let mut bench = Bench::new();
    let limit = told(QuotaPolicy::User, quota(3, 60 * SECOND));
    for _ in 0..3 {
        assert!(bench.send(&draw(1)));
        bench.now += SECOND;
    }
    assert_eq!(bench.refuse(&draw(1), &limit), [LimitChange::Learnt(QuotaPolicy::User, quota(3, 60 * SECOND))]);
    assert_eq!(bench.hold(&draw(1)).map(|hold| hold.policy), Some(QuotaPolicy::User));
    assert!(bench.send(&draw(2)), "another caller");
    // The first of the three expires 60 s after it was sent, and a little later.
    bench.now += 57 * SECOND;
    assert!(!bench.send(&draw(1)));
    bench.now += SECOND;
    assert_eq!(bench.send_all(&draw(1)), 1);
}

#[test]
fn at_most_4096_callers_have_limits_and_those_without_a_proof_are_forgotten_first() {
    let mut bench = Bench::new();
    let limit = told(QuotaPolicy::User, quota(1, 60 * SECOND));
    let meet = |bench: &mut Bench, draw: &Draw| {
        assert!(bench.send(draw));
        bench.refuse(draw, &limit);
    };
    meet(&mut bench, &draw(0));
    bench.now += SECOND;
    meet(&mut bench, &unknown(1));
    (2..4_096).for_each(|number| meet(&mut bench, &draw(number)));
    assert!(bench.hold(&draw(0)).is_some() && bench.hold(&unknown(1)).is_some());
    meet(&mut bench, &draw(4_096));
    assert!(bench.hold(&draw(0)).is_some() && bench.hold(&unknown(1)).is_none());
    meet(&mut bench, &draw(4_097));
    assert!(bench.hold(&draw(0)).is_none() && bench.hold(&draw(2)).is_some(), "the one that was used the longest ago");
}

#[test]
fn a_limit_of_all_callers_binds_callers_that_are_not_proved_first_and_everybody_when_two_have_met_it() {
    let mut bench = Bench::new();
    let limit = told(QuotaPolicy::Ip, quota(2, SECOND));
    // A caller without a proof teaches the gateway nothing about others.
    assert!(bench.refuse(&unknown(9), &limit).is_empty());
    assert_eq!(bench.hold(&unknown(9)).map(|hold| hold.policy), Some(QuotaPolicy::Ip), "but waits itself");
    assert!(bench.hold(&unknown(8)).is_none());
    assert!(bench.send(&draw(1)) && bench.send(&draw(1)));
    bench.refuse(&draw(1), &limit);
    assert!(bench.hold(&draw(1)).is_some() && bench.hold(&unknown(8)).is_some());
    assert!(bench.hold(&draw(2)).is_none());
    bench.refuse(&draw(2), &limit);
    assert!(bench.hold(&draw(2)).is_some() && bench.hold(&draw(3)).is_some());
}

#[test]
fn unknown_callers_get_a_quarter_of_a_limit_of_all_callers() {
    let mut bench = Bench::new();
    let configured =
        ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::Ip, operation: None, quota: Some(quota(20, SECOND)) };
    bench.limits.configure(vec![configured]);
    assert_eq!(bench.send_all(&unknown(1)), 5);
    assert_eq!(bench.send_all(&draw(2)), 15);
}

#[test]
fn relayed_requests_are_held_back_only_while_they_keep_product_lists_from_half() {
    let mut bench = Bench::new();
    let configured =
        ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::Ip, operation: None, quota: Some(quota(10, SECOND)) };
    bench.limits.configure(vec![configured]);
    let relayed = Draw { api: None, share: Share::Relayed, ..draw(1) };
    (0..30).for_each(|_| assert!(bench.send(&relayed), "no product list waits"));
    assert!(!bench.send(&draw(2)));
    assert!(!bench.send(&relayed), "one waits");
    bench.now += 4 * SECOND;
    assert_eq!(bench.send_all(&draw(2)), 10);
    bench.now += 3 * SECOND;
    bench.hold(&draw(2));
    assert!((0..30).all(|_| bench.send(&relayed)), "none has waited in the last window");
}

#[test]
fn lists_leave_room_for_a_relayed_request_that_waits() {
    let mut bench = Bench::new();
    let configured = ConfiguredQuota {
        service: SERVICE,
        policy: QuotaPolicy::Ip,
        operation: None,
        quota: Some(quota(5, 10 * SECOND)),
    };
    bench.limits.configure(vec![configured]);
    let relayed = Draw { api: None, share: Share::Relayed, ..draw(1) };
    assert_eq!(bench.send_all(&draw(2)), 5);
    assert!(!bench.send(&relayed));
    bench.now += 10 * SECOND + SECOND / 10;
    assert_eq!(bench.send_all(&draw(2)), 3);
    assert!(bench.send(&relayed));
    assert_eq!(bench.send_all(&draw(2)), 1, "no relayed request waits any more");
    // It stops waiting without being sent.
    assert!(!bench.send(&relayed));
    bench.now += 10 * SECOND + SECOND / 10;
    assert_eq!(bench.send_all(&draw(2)), 3);
    bench.now += SECOND;
    assert_eq!(bench.send_all(&draw(2)), 2);
}

#[test]
fn the_wait_behind_other_lists_is_told_as_if_relayed_requests_went_on_waiting() {
    let mut bench = Bench::new();
    let quota = Some(quota(4, 10 * SECOND));
    let configured = ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::Ip, operation: None, quota };
    bench.limits.configure(vec![configured]);
    assert_eq!(bench.send_all(&draw(2)), 4);
    assert!(!bench.send(&Draw { share: Share::Relayed, ..draw(1) }));
    // Two lists are sent in each window.
    let hold = bench.limits.hold(&draw(2), LimitKind::Shared, 5, bench.now).unwrap();
    assert!(hold.left > 29 * SECOND, "{hold:?}");
}

#[test]
fn lists_that_no_client_waits_for_take_nothing_from_relayed_requests() {
    let mut bench = Bench::new();
    let configured =
        ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::Ip, operation: None, quota: Some(quota(4, SECOND)) };
    bench.limits.configure(vec![configured]);
    let relayed = Draw { api: None, share: Share::Relayed, ..draw(1) };
    (0..4).for_each(|_| assert!(bench.send(&draw(2))));
    assert!(!bench.send(&Draw { has_client: false, ..draw(2) }));
    assert!((0..30).all(|_| bench.send(&relayed)));
    assert!(!bench.send(&draw(3)) && !bench.send(&relayed), "now a client waits");
}

#[test]
fn a_limit_that_is_not_met_any_more_ends() {
    let mut bench = Bench::new();
    let limit = told(QuotaPolicy::User, quota(1, 10 * SECOND));
    bench.refuse(&draw(1), &limit);
    bench.now += 20 * SECOND;
    assert!(bench.limits.clean_up(bench.now).is_empty());
    bench.now += SECOND;
    assert!(bench.send(&draw(1)) && bench.send(&draw(1)), "it holds back nothing any more");
    assert_eq!(bench.limits.clean_up(bench.now), [LimitChange::Ended(QuotaPolicy::User, quota(1, 10 * SECOND), None)]);
    // While it holds calls back it stays, but not longer than an hour.
    bench.refuse(&draw(1), &limit);
    for _ in 0..(3600 / 5) {
        bench.send_all(&draw(1));
        assert!(bench.limits.clean_up(bench.now).is_empty());
        bench.now += 5 * SECOND;
    }
    bench.now += SECOND;
    bench.send_all(&draw(1));
    assert_eq!(bench.limits.clean_up(bench.now).len(), 1);
}

#[test]
fn that_a_limit_has_ended_is_reported_even_if_operators_have_looked_meanwhile() {
    let (ledger, start, caller) = (Ledger::default(), Clock::System.now(), draw(1));
    let body = br#"{"error_code":"APIGW.0308","error_msg":"policy user over ratelimit,limit:1,time:10 second"}"#;
    let refuse = |now: Instant| {
        ledger.limits(SERVICE).lock().take(&caller, now);
        let refusal = (StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), &body[..]);
        ledger.learn(SERVICE, (&caller, now), refusal, None, now).changes
    };
    let limit = quota(1, 10 * SECOND);
    assert_eq!(refuse(start), [LimitChange::Learnt(QuotaPolicy::User, limit)]);
    assert_eq!(ledger.states(start)[0].1.len(), 1);
    let later = start + 60 * SECOND;
    assert_eq!(ledger.states(later)[0].1, []);
    assert_eq!(
        refuse(later),
        [LimitChange::Ended(QuotaPolicy::User, limit, None), LimitChange::Learnt(QuotaPolicy::User, limit)]
    );
}

#[test]
fn that_a_limit_has_ended_is_reported_with_its_operation_at_a_response_to_any_call() {
    let (ledger, start, caller) = (Ledger::default(), Clock::System.now(), draw(1));
    let body = br#"{"error_code":"APIGW.0308","error_msg":"policy api over ratelimit,limit:1,time:10 second"}"#;
    let learn = |status: StatusCode, draw: &Draw, now: Instant| {
        ledger.limits(SERVICE).lock().take(draw, now);
        ledger.learn(SERVICE, (draw, now), (status, &HeaderMap::new(), &body[..]), None, now).changes
    };
    let limit = quota(1, 10 * SECOND);
    let learnt = learn(StatusCode::TOO_MANY_REQUESTS, &caller, start);
    assert_eq!(learnt, [LimitChange::Learnt(QuotaPolicy::Api, limit)]);
    let other = Draw { api: Some(Arc::from("other")), ..draw(2) };
    assert_eq!(learn(StatusCode::OK, &other, start + 15 * SECOND), []);
    let ended = LimitChange::Ended(QuotaPolicy::Api, limit, caller.api.clone());
    assert!(caller.api.is_some());
    assert_eq!(learn(StatusCode::OK, &other, start + 80 * SECOND), [ended]);
    assert_eq!(learn(StatusCode::OK, &other, start + 140 * SECOND), []);
}

#[test]
fn no_limit_is_learnt_where_the_settings_say_that_there_is_none() {
    let mut bench = Bench::new();
    let none = ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::User, operation: None, quota: None };
    bench.limits.configure(vec![none]);
    assert!(bench.refuse(&draw(1), &told(QuotaPolicy::User, quota(1, SECOND))).is_empty());
    assert!(bench.send(&draw(1)));
}

#[test]
fn after_a_refusal_that_the_log_does_not_explain_one_call_in_each_window_is_tried() {
    let mut bench = Bench::new();
    let limit = told(QuotaPolicy::User, quota(100, 10 * SECOND));
    for _ in 0..5 {
        bench.refuse(&draw(1), &limit);
        assert!(bench.hold(&draw(1)).is_some_and(|hold| hold.left <= 11 * SECOND));
        bench.now += 10 * SECOND;
        assert!(!bench.send(&draw(1)));
        bench.now += SECOND;
    }
    assert!(bench.send(&draw(1)));
}

#[test]
fn retry_after_counts_up_to_one_window_however_long_it_is() {
    for (retry_after, expected) in [(200, 200.0), (u64::MAX, 300.1)] {
        let mut bench = Bench::new();
        let limit = told(QuotaPolicy::User, quota(5, 300 * SECOND));
        bench.limits.take(&draw(1), bench.now);
        let refused = Some(Some(Duration::from_secs(retry_after)));
        bench.limits.learn(&draw(1), bench.now, std::slice::from_ref(&limit), refused, bench.now);
        assert_eq!(bench.hold(&draw(1)).map(|hold| hold.left.as_secs_f64()), Some(expected));
    }
}

#[test]
fn a_refusal_concerns_only_the_limit_that_it_names() {
    let mut bench = Bench::new();
    let ip = told(QuotaPolicy::Ip, quota(5, 10 * SECOND));
    bench.refuse(&draw(1), &ip);
    bench.refuse(&draw(2), &ip);
    bench.now += 20 * SECOND;
    // The header of a refusal by another limit mentions it.
    let mentioned = ToldLimit { has_refused: false, remaining: Some(3), ..ip };
    bench.limits.take(&draw(1), bench.now);
    let both = [told(QuotaPolicy::User, quota(1, SECOND)), mentioned];
    bench.limits.learn(&draw(1), bench.now, &both, Some(Some(5 * SECOND)), bench.now);
    assert!(bench.hold(&draw(1)).is_some());
    assert_eq!(bench.send_all(&draw(2)), 4, "the refused call counts for the limit that has not refused it");
}

#[test]
fn a_product_list_gets_its_turn_though_relayed_requests_have_overfilled_the_log() {
    let mut bench = Bench::new();
    let configured =
        ConfiguredQuota { service: SERVICE, policy: QuotaPolicy::Ip, operation: None, quota: Some(quota(5, SECOND)) };
    bench.limits.configure(vec![configured]);
    let relayed = Draw { api: None, share: Share::Relayed, ..draw(1) };
    (0..100).for_each(|_| assert!(bench.send(&relayed)));
    // It looks at the limit when it comes, and when it has been told that its turn is.
    let hold = bench.hold(&draw(2)).unwrap();
    assert!(hold.left <= 2 * SECOND, "{hold:?}");
    // Meanwhile other relayed requests come all the time.
    while bench.now < hold.until {
        bench.send(&relayed);
        bench.now += Duration::from_millis(1);
    }
    assert!(bench.send(&draw(2)));
}

proptest! {
    /// No window of upstream, wherever it begins, gets more calls than it accepts, though calls take up to 9 ms to
    /// arrive, and none is held back without need.
    #[test]
    fn no_window_has_more_calls_than_the_quota(
        calls in 1..20u32,
        gaps in prop::collection::vec((0..400u64, 0..10u64), 1..200),
    ) {
        let mut bench = Bench::new();
        let window = SECOND;
        bench.limits.configure(vec![ConfiguredQuota {
            service: SERVICE, policy: QuotaPolicy::User, operation: None, quota: Some(quota(calls, window)),
        }]);
        let (mut arrivals, mut sent) = (Vec::new(), Vec::new());
        for (gap, delay) in gaps {
            bench.now += Duration::from_millis(gap);
            if bench.send(&draw(1)) {
                sent.push(bench.now);
                arrivals.push(bench.now + Duration::from_millis(delay));
            } else {
                let counted = sent.iter().filter(|at| bench.now - **at < window + window / 50 + window / 512).count();
                prop_assert!(counted >= calls as usize, "held back although {counted} of {calls} are used");
            }
        }
        arrivals.sort();
        for window_of in arrivals.windows(calls as usize + 1) {
            prop_assert!(window_of[calls as usize] - window_of[0] >= window);
        }
    }

    /// The time that is forecast is the time at which the call can be sent.
    #[test]
    fn a_call_is_free_when_the_log_says(
        calls in 1..6u32,
        before in 0..20u32,
        ahead in 0..20u32,
    ) {
        let now = Clock::System.now();
        let mut limiter = Limiter::new(quota(calls, SECOND));
        (0..before).for_each(|_| limiter.add(now, Share::Known));
        let at = limiter.free_at(ahead, now);
        // Send the calls ahead as soon as possible.
        let (mut time, mut left) = (now, ahead + 1);
        loop {
            limiter.expire(time);
            while left > 0 && limiter.remaining(time) > 0 {
                limiter.add(time, Share::Known);
                left -= 1;
            }
            if left == 0 {
                break;
            }
            time = limiter.free_at(0, time);
        }
        prop_assert_eq!(at, time);
    }
}
