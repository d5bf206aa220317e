//! Tests of the quotas in simulated time.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::catalogue::Service::{AppStream, Workspace};
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The smallest step of the time.
const TICK: Duration = Duration::from_nanos(1);

const CALL: QuotaCall<'static> = QuotaCall { service: Workspace, api: "A", user: Some("u"), app: Some("a") };

fn sliding(policy: QuotaPolicy, calls: u32, window: Duration) -> EnforcedQuota {
    EnforcedQuota::new(policy, Quota { calls, window }, QuotaWindow::Sliding)
}

fn quotas(enforced: impl IntoIterator<Item = EnforcedQuota>) -> Quotas {
    let mut quotas = Quotas::default();
    enforced.into_iter().for_each(|quota| quotas.set(quota));
    quotas
}

/// The number of accepted calls of twenty at one moment.
fn accepted(quotas: &mut Quotas, call: &QuotaCall<'_>, at: Instant) -> usize {
    (0..20).filter(|_| quotas.call(call, at).is_accepted()).count()
}

#[test]
fn a_fixed_window_is_aligned_to_its_origin() {
    let begin = Clock::System.now();
    let window = 10 * SECOND;
    // The first window ends 4 s after the begin.
    for origin in [begin + 4 * SECOND, begin - 6 * SECOND, begin + 34 * SECOND, begin - 996 * SECOND] {
        let fixed = QuotaWindow::Fixed { origin };
        let mut quotas = quotas([EnforcedQuota::new(QuotaPolicy::Ip, Quota { calls: 3, window }, fixed)]);
        assert_eq!(accepted(&mut quotas, &CALL, begin), 3);
        let refused_by = quotas.call(&CALL, begin).refused_by.unwrap();
        assert_eq!((refused_by.remaining, refused_by.reset), (0, 4 * SECOND));
        assert_eq!(accepted(&mut quotas, &CALL, begin + 4 * SECOND - TICK), 0);
        assert_eq!(accepted(&mut quotas, &CALL, begin + 4 * SECOND), 3);
        assert_eq!(accepted(&mut quotas, &CALL, begin + 14 * SECOND - TICK), 0);
        assert_eq!(accepted(&mut quotas, &CALL, begin + 14 * SECOND), 3);
        let unused = quotas.call(&CALL, begin + 27 * SECOND);
        assert_eq!((unused.states[0].remaining, unused.states[0].reset), (2, 7 * SECOND));
    }
}

#[test]
fn a_sliding_window_counts_the_calls_before_each_call() {
    let begin = Clock::System.now();
    let mut quotas = quotas([sliding(QuotaPolicy::Ip, 3, 10 * SECOND)]);
    assert!(quotas.call(&CALL, begin).is_accepted());
    assert_eq!(accepted(&mut quotas, &CALL, begin + 4 * SECOND), 2);
    let refused_by = quotas.call(&CALL, begin + 9 * SECOND).refused_by.unwrap();
    assert_eq!((refused_by.remaining, refused_by.reset), (0, SECOND));
    assert_eq!(accepted(&mut quotas, &CALL, begin + 10 * SECOND - TICK), 0);
    assert_eq!(accepted(&mut quotas, &CALL, begin + 10 * SECOND), 1);
    assert_eq!(accepted(&mut quotas, &CALL, begin + 14 * SECOND), 2);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u32),
    Call,
    Elsewhere(u32),
    Limit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_000_u32).prop_map(Step::Wait),
        6 => Just(Step::Call),
        1 => (0..6_u32).prop_map(Step::Elsewhere),
        1 => (1..6_u32).prop_map(Step::Limit),
    ]
}

proptest! {
    #[test]
    fn a_call_is_accepted_exactly_if_fewer_than_the_limit_are_in_the_window(
        offset in prop::option::of(0..40_000_u32),
        steps in prop::collection::vec(step(), 1..100),
    ) {
        const WINDOW: u32 = 5_000;
        // Milliseconds after the begin, one for each call that was accepted.
        let (mut now, mut limit, mut taken) = (20_000_u32, 3, Vec::new());
        let begin = Clock::System.now();
        let at = |milliseconds: u32| begin + Duration::from_millis(milliseconds.into());
        let window = offset.map_or(QuotaWindow::Sliding, |offset| QuotaWindow::Fixed { origin: at(offset) });
        let in_window = |taken: &[u32], now: u32| {
            let counts = |call: &&u32| match offset {
                // Both are in the same window. 40 s are a multiple of the window.
                Some(offset) => (**call + 40_000 - offset) / WINDOW == (now + 40_000 - offset) / WINDOW,
                None => now - **call < WINDOW,
            };
            u32::try_from(taken.iter().filter(counts).count()).unwrap()
        };
        let quota = |calls| {
            let quota = Quota { calls, window: Duration::from_millis(WINDOW.into()) };
            EnforcedQuota::new(QuotaPolicy::Ip, quota, window)
        };
        let mut quotas = quotas([quota(limit)]);
        for step in steps {
            let used = in_window(&taken, now);
            match step {
                Step::Wait(milliseconds) => now += milliseconds,
                Step::Limit(calls) => {
                    limit = calls;
                    quotas.set(quota(calls));
                }
                Step::Elsewhere(calls) => {
                    quotas.use_quota(Workspace, QuotaPolicy::Ip, "", calls, at(now));
                    let fit = calls.min(limit.saturating_sub(used));
                    taken.extend((0..fit).map(|_| now));
                }
                Step::Call => {
                    let verdict = quotas.call(&CALL, at(now));
                    prop_assert_eq!(verdict.is_accepted(), used < limit);
                    taken.extend(verdict.is_accepted().then_some(now));
                    let state = verdict.states[0];
                    prop_assert_eq!(state.remaining, limit.saturating_sub(in_window(&taken, now)));
                    // It resets when a call leaves the window, and not before.
                    let reset = u32::try_from(state.reset.as_millis()).unwrap();
                    if state.remaining == 0 {
                        prop_assert!(in_window(&taken, now + reset) < limit);
                        prop_assert!(in_window(&taken, now + reset - 1) >= limit);
                    } else {
                        prop_assert!(in_window(&taken, now + reset - 1) == in_window(&taken, now));
                    }
                }
            }
        }
    }
}

#[test]
fn each_policy_counts_what_it_is_named_after() {
    let other_api = QuotaCall { api: "B", ..CALL };
    let other_user = QuotaCall { user: Some("v"), ..CALL };
    let other_app = QuotaCall { app: Some("b"), ..CALL };
    let unknown = QuotaCall { user: None, app: None, ..CALL };
    let now = Clock::System.now();
    // Two calls of each caller fit, or two in all.
    for (policy, expected) in [
        (QuotaPolicy::Api, [2, 2, 0, 0, 0]),
        (QuotaPolicy::User, [2, 0, 2, 0, 20]),
        (QuotaPolicy::App, [2, 0, 0, 2, 20]),
        (QuotaPolicy::Ip, [2, 0, 0, 0, 0]),
    ] {
        let mut quotas = quotas([sliding(policy, 2, MINUTE)]);
        let found = [CALL, other_api, other_user, other_app, unknown].map(|call| accepted(&mut quotas, &call, now));
        assert_eq!(found, expected, "{policy:?}");
    }
}

#[test]
fn a_quota_is_for_one_service_or_counts_all_together() {
    let now = Clock::System.now();
    let other = QuotaCall { service: AppStream, ..CALL };
    for (service, expected) in [(None, [2, 0]), (Some(Workspace), [2, 20]), (Some(AppStream), [20, 2])] {
        let mut quotas = quotas([EnforcedQuota { service, ..sliding(QuotaPolicy::Ip, 2, MINUTE) }]);
        assert_eq!([CALL, other].map(|call| accepted(&mut quotas, &call, now)), expected, "{service:?}");
    }
}

#[test]
fn the_first_exceeded_policy_is_named_and_a_refused_call_counts_for_none() {
    let now = Clock::System.now();
    let in_force = [
        sliding(QuotaPolicy::Ip, 1, SECOND),
        sliding(QuotaPolicy::App, 2, 2 * SECOND),
        sliding(QuotaPolicy::User, 3, 3 * SECOND),
        sliding(QuotaPolicy::Api, 4, 4 * SECOND),
    ];
    let mut quotas = quotas(in_force);
    let named = |quotas: &mut Quotas, after| quotas.call(&CALL, now + after).refused_by.map(|state| state.policy);
    assert_eq!(named(&mut quotas, Duration::ZERO), None);
    // Alone and together with later ones. Each call here would be counted if refusals counted.
    let steps = [
        (Duration::ZERO, Some(QuotaPolicy::Ip)),
        (SECOND, None),
        (SECOND, Some(QuotaPolicy::App)),
        (2 * SECOND, None),
        (2 * SECOND, Some(QuotaPolicy::User)),
        (3 * SECOND, None),
        (3 * SECOND, Some(QuotaPolicy::Api)),
        (4 * SECOND, None),
    ];
    for (after, expected) in steps {
        assert_eq!(named(&mut quotas, after), expected, "{after:?}");
    }
    let refusals = |policy| quotas.record(None, policy).map(|record| (record.accepted, record.refused));
    for policy in [QuotaPolicy::Api, QuotaPolicy::User, QuotaPolicy::App, QuotaPolicy::Ip] {
        assert_eq!(refusals(policy), Some((5, 1)), "{policy:?}");
    }
}

#[test]
fn a_changed_limit_applies_to_the_next_call_and_keeps_what_was_counted() {
    let now = Clock::System.now();
    let mut quotas = quotas([sliding(QuotaPolicy::Ip, 4, 10 * SECOND)]);
    assert_eq!(accepted(&mut quotas, &CALL, now), 4);
    quotas.set(sliding(QuotaPolicy::Ip, 6, 10 * SECOND));
    assert_eq!(accepted(&mut quotas, &CALL, now + SECOND), 2);
    quotas.set(sliding(QuotaPolicy::Ip, 2, 10 * SECOND));
    let refused_by = quotas.call(&CALL, now + 10 * SECOND).refused_by.unwrap();
    assert_eq!((refused_by.quota.calls, refused_by.reset), (2, SECOND), "the later two still count");
    assert_eq!(accepted(&mut quotas, &CALL, now + 11 * SECOND), 2);
    quotas.set(sliding(QuotaPolicy::Ip, 2, SECOND));
    assert_eq!(accepted(&mut quotas, &CALL, now + 12 * SECOND), 2);
    assert_eq!(quotas.record(None, QuotaPolicy::Ip).unwrap().accepted, 10);
    quotas.clear();
    assert!(quotas.is_empty() && quotas.record(None, QuotaPolicy::Ip).is_none());
    assert_eq!(accepted(&mut quotas, &CALL, now + 12 * SECOND), 20);
}

#[test]
fn others_use_only_what_remains_of_one_counter() {
    let now = Clock::System.now();
    let in_force = [QuotaPolicy::Api, QuotaPolicy::User, QuotaPolicy::Ip].map(|policy| sliding(policy, 10, MINUTE));
    let mut quotas = quotas(in_force);
    quotas.use_quota(Workspace, QuotaPolicy::User, "u", 7, now);
    quotas.use_quota(Workspace, QuotaPolicy::User, "v", 9, now);
    quotas.use_quota(Workspace, QuotaPolicy::Ip, "ignored", 4, now);
    let remaining = |verdict: &QuotaVerdict| verdict.states.iter().map(|state| state.remaining).collect::<Vec<_>>();
    assert_eq!(remaining(&quotas.call(&CALL, now)), [9, 2, 5]);
    quotas.use_quota(Workspace, QuotaPolicy::User, "u", 1_000, now + SECOND);
    let refused = quotas.call(&CALL, now + SECOND);
    assert_eq!(refused.refused_by.map(|state| state.policy), Some(QuotaPolicy::User));
    assert_eq!(remaining(&refused), [9, 0, 5]);

    let record = quotas.record(None, QuotaPolicy::User).unwrap();
    assert_eq!((record.accepted, record.refused, record.elsewhere), (1, 1, 7 + 9 + 2));
    let calls: Vec<_> = record.calls.iter().map(|call| (call.at - now, &*call.name, call.result)).collect();
    let expected = [
        (Duration::ZERO, "u", QuotaResult::Elsewhere(7)),
        (Duration::ZERO, "v", QuotaResult::Elsewhere(9)),
        (Duration::ZERO, "u", QuotaResult::Accepted),
        (SECOND, "u", QuotaResult::Elsewhere(2)),
        (SECOND, "u", QuotaResult::Refused),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn a_time_before_that_of_the_last_call_counts_as_that_of_the_last_call() {
    let now = Clock::System.now();
    let mut quotas = quotas([sliding(QuotaPolicy::Ip, 1, SECOND)]);
    assert!(quotas.call(&CALL, now + MINUTE).is_accepted());
    let refused_by = quotas.call(&CALL, now).refused_by.unwrap();
    assert_eq!(refused_by.reset, SECOND);
    assert!(quotas.call(&CALL, now + MINUTE + SECOND).is_accepted());
    let record = quotas.record(None, QuotaPolicy::Ip).unwrap();
    let times: Vec<_> = record.calls.iter().map(|call| call.at - now).collect();
    assert_eq!(times, [MINUTE, MINUTE, MINUTE + SECOND]);
}

#[test]
fn records_and_idle_counters_are_bounded() {
    const USERS: u32 = 100_500;
    let now = Clock::System.now();
    let mut quotas = quotas([sliding(QuotaPolicy::User, 1, SECOND)]);
    for user in 0..USERS {
        let name = user.to_string();
        let call = QuotaCall { user: Some(&name), ..CALL };
        assert!(quotas.call(&call, now + SECOND * user).is_accepted());
    }
    let record = quotas.record(None, QuotaPolicy::User).unwrap();
    assert_eq!((record.accepted, record.calls.len()), (u64::from(USERS), 100_000));
    assert_eq!(&*record.calls[0].name, "500");
    assert!(quotas.in_force[0].counters.len() <= MAX_IDLE_COUNTERS);
}

#[test]
fn a_refusal_names_the_limit_in_the_words_of_the_api_gateway() {
    for (policy, calls, window, expected) in [
        (QuotaPolicy::User, 200, 5 * MINUTE, "policy user over ratelimit,limit:200,time:5 minute"),
        (QuotaPolicy::Api, 2_000, MINUTE, "policy api over ratelimit,limit:2000,time:1 minute"),
        (QuotaPolicy::Ip, 5, SECOND, "policy ip over ratelimit,limit:5,time:1 second"),
        (QuotaPolicy::App, 1, 90 * SECOND, "policy app over ratelimit,limit:1,time:90 second"),
        (QuotaPolicy::App, 1, 60 * MINUTE, "policy app over ratelimit,limit:1,time:1 hour"),
        (QuotaPolicy::App, 1, 48 * 60 * MINUTE, "policy app over ratelimit,limit:1,time:2 day"),
        (QuotaPolicy::App, 1, SECOND / 10, "policy app over ratelimit,limit:1,time:1 second"),
    ] {
        let mut quotas = quotas([sliding(policy, calls, window)]);
        let now = Clock::System.now();
        quotas.use_quota(Workspace, policy, CALL.counted_as(policy).unwrap(), calls, now);
        let refused = quotas.call(&CALL, now);
        let expected = format!(
            r#"{{"error_code":"APIGW.0308","error_msg":"The throttling threshold has been reached: {expected}","request_id":"id"}}"#
        );
        assert_eq!(refused.body("id"), expected);
        assert!(refused.headers(true).is_empty());
    }
}

#[test]
fn a_refusal_may_say_less() {
    for (text, expected) in [
        (
            RefusalText::Plain,
            r#"{"error_code":"APIGW.0308","error_msg":"The throttling threshold has been reached","request_id":"id"}"#,
        ),
        (RefusalText::Nothing, ""),
    ] {
        let answers = QuotaAnswers { text, ..QuotaAnswers::default() };
        let mut quotas = quotas([EnforcedQuota { answers, ..sliding(QuotaPolicy::Ip, 1, SECOND) }]);
        let now = Clock::System.now();
        assert_eq!(quotas.call(&CALL, now).body("id"), "");
        assert_eq!(quotas.call(&CALL, now).body("id"), expected);
    }
}

#[test]
fn headers_tell_what_remains_of_each_quota() {
    let everything =
        QuotaAnswers { text: RefusalText::Limit, debug: DebugHeaders::IfAsked, rate_limit: true, retry_after: true };
    let always = QuotaAnswers { debug: DebugHeaders::Always, ..QuotaAnswers::default() };
    let mut quotas = quotas([
        EnforcedQuota { answers: everything, ..sliding(QuotaPolicy::User, 2, 5 * MINUTE) },
        EnforcedQuota { answers: everything, ..sliding(QuotaPolicy::Ip, 10, 10 * SECOND) },
        EnforcedQuota { answers: always, ..sliding(QuotaPolicy::Api, 9, MINUTE) },
    ]);
    let now = Clock::System.now();
    let headers = |quotas: &mut Quotas, asked, after| {
        let headers = quotas.call(&CALL, now + after).headers(asked);
        let text = |(name, value): (&_, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut lines: Vec<String> = headers.iter().map(text).collect();
        lines.sort();
        lines
    };
    assert_eq!(
        headers(&mut quotas, true, Duration::ZERO),
        [
            r#"ratelimit-policy: "user";q=2;w=300, "ip";q=10;w=10"#,
            r#"ratelimit: "user";r=1;t=300, "ip";r=9;t=10"#,
            "x-apig-ratelimit-api: remain:8,limit:9,time:1 minute",
            "x-apig-ratelimit-ip: remain:9,limit:10,time:10 second",
            "x-apig-ratelimit-user: remain:1,limit:2,time:5 minute",
        ]
    );
    assert_eq!(headers(&mut quotas, false, 3 * SECOND / 2).len(), 3);
    assert_eq!(
        headers(&mut quotas, false, 3 * SECOND / 2),
        [
            r#"ratelimit-policy: "user";q=2;w=300, "ip";q=10;w=10"#,
            r#"ratelimit: "user";r=0;t=299, "ip";r=8;t=9"#,
            "retry-after: 299",
            "x-apig-ratelimit-api: remain:7,limit:9,time:1 minute",
        ]
    );
    assert_eq!(headers(&mut quotas, false, 5 * MINUTE).len(), 3, "accepted again");
}
