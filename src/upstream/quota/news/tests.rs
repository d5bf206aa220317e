//! The ledgers of several gateways in one process, which are told each other's news.

use http::{HeaderMap, HeaderValue, StatusCode};

use super::super::{Hold, Ledger, Lesson, LimitKind};
use super::*;
use crate::catalogue::{ConfiguredQuota, Service};
use crate::clock::Clock;
use crate::request::caller::Callers;

const SECOND: Duration = Duration::from_secs(1);
const SERVICE: Service = Service::Workspace;

fn draw(number: u32) -> Draw {
    let caller = Callers::new([1; 32]).of_token(&HeaderValue::from(number));
    let api = Some("products".into());
    Draw { caller: Some(caller), api, share: Share::Known, is_proved: true, has_client: true }
}

/// The ledger of a gateway. A fleet has as many as a test needs.
struct Gateway(Ledger);

impl Gateway {
    fn new(process: ProcessId) -> Self {
        Self(Ledger::new(Some(process)))
    }

    fn configured(self, policy: QuotaPolicy, calls: u32) -> Self {
        let quota = Some(Quota { calls, window: 10 * SECOND });
        self.0.configure(&[ConfiguredQuota { service: SERVICE, policy, operation: None, quota }]);
        self
    }

    fn hold(&self, draw: &Draw, now: Instant) -> Option<Hold> {
        let hold = |kind| self.0.limits(SERVICE).lock().hold_call(draw, kind, 0, now);
        [LimitKind::Own, LimitKind::Shared].into_iter().filter_map(hold).max_by_key(|hold| hold.until)
    }

    /// A call is sent and answered now. A refusal names a limit of so many calls in ten seconds.
    fn call(&self, draw: &Draw, refusal: Option<(&str, u32)>, now: Instant) -> Lesson {
        self.0.limits(SERVICE).lock().take(draw, now);
        self.answer(draw, refusal, &HeaderMap::new(), now)
    }

    fn answer(&self, draw: &Draw, refusal: Option<(&str, u32)>, headers: &HeaderMap, now: Instant) -> Lesson {
        let text = |(policy, calls)| {
            let what = format!("policy {policy} over ratelimit,limit:{calls},time:10 second");
            format!(r#"{{"error_code":"APIGW.0308","error_msg":"{what}"}}"#)
        };
        let status = if refusal.is_some() { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::OK };
        let body = refusal.map(text).unwrap_or_default();
        self.0.learn(SERVICE, (draw, now), (status, headers, body.as_bytes()), None, now)
    }

    fn told(&self, news: &[(Instant, LimitNews)], now: Instant) {
        news.iter().for_each(|(at, news)| drop(self.0.told(SERVICE, news, *at, now)));
    }
}

fn at(now: Instant, lesson: Lesson) -> Vec<(Instant, LimitNews)> {
    lesson.news.into_iter().map(|news| (now, news)).collect()
}

#[test]
fn a_refusal_at_one_gateway_holds_back_the_caller_at_all_of_them_for_the_same_time() {
    let (one, other, late, start) = (Gateway::new(1), Gateway::new(2), Gateway::new(3), Clock::System.now());
    let first = at(start, one.call(&draw(1), Some(("user", 5)), start));
    let until = one.hold(&draw(1), start).unwrap().until;
    other.told(&first, start + SECOND / 4);
    assert_eq!(other.hold(&draw(1), start + SECOND).map(|hold| hold.until), Some(until));
    assert!(other.hold(&draw(2), start + SECOND).is_none(), "another caller");
    // A second refusal, two windows later. The hints come late, twice, and in another order.
    let later = start + 22 * SECOND;
    let second = at(later, one.call(&draw(1), Some(("user", 5)), later));
    let until = one.hold(&draw(1), later).unwrap().until;
    late.told(&[&second[..], &first, &first, &second].concat(), later + 2 * SECOND);
    assert_eq!(late.hold(&draw(1), later + 2 * SECOND).map(|hold| hold.until), Some(until));
    assert!(late.hold(&draw(1), until).is_none());
    other.told(&second, later + 60 * SECOND);
    assert!(other.0.states(later + 60 * SECOND).iter().all(|(_, limits)| limits.is_empty()), "it has ended meanwhile");
}

#[test]
fn what_is_told_is_not_told_on_and_a_gateway_learns_nothing_from_itself() {
    let (one, other, start) = (Gateway::new(1), Gateway::new(2), Clock::System.now());
    let news = at(start, one.call(&draw(1), Some(("user", 5)), start));
    assert_eq!(news.len(), 1);
    other.told(&news, start);
    assert!(other.answer(&draw(1), None, &HeaderMap::new(), start).news.is_empty());
    one.told(&news, start);
    let free = start + 11 * SECOND;
    let sent = (0..9)
        .take_while(|_| one.hold(&draw(1), free).is_none() && !one.0.limits(SERVICE).lock().take(&draw(1), free))
        .count();
    assert_eq!(sent, 5, "the whole quota");
}

#[test]
fn a_limit_of_an_operation_binds_everybody_when_two_callers_have_met_it_at_two_gateways() {
    let (one, other, start) = (Gateway::new(1), Gateway::new(2), Clock::System.now());
    let news = at(start, one.call(&draw(1), Some(("api", 5)), start));
    other.told(&[&news[..], &news].concat(), start);
    let unknown = Draw { share: Share::Unknown, is_proved: false, ..draw(9) };
    assert!(other.hold(&draw(1), start).is_some() && other.hold(&unknown, start).is_some());
    assert!(other.hold(&draw(2), start).is_none());
    let elsewhere = Draw { api: Some("other".into()), ..draw(1) };
    assert!(other.hold(&elsewhere, start).is_none());
    let news = at(start, other.call(&draw(2), Some(("api", 5)), start));
    one.told(&news, start);
    assert!(one.hold(&draw(3), start).is_some() && other.hold(&draw(3), start).is_some());
}

#[test]
fn limits_of_an_address_and_those_that_unproved_callers_meet_are_not_told() {
    let (one, other, start) = (Gateway::new(1), Gateway::new(2), Clock::System.now());
    assert!(one.call(&draw(1), Some(("ip", 5)), start).news.is_empty());
    assert!(one.hold(&draw(1), start).is_some());
    for policy in ["user", "api"] {
        let unproved = Draw { is_proved: false, ..draw(2) };
        assert!(one.call(&unproved, Some((policy, 5)), start).news.is_empty());
    }
    let forged = LimitNews { policy: QuotaPolicy::Ip, ..one.call(&draw(3), Some(("user", 5)), start).news.remove(0) };
    other.told(&[(start, forged)], start);
    assert!(other.hold(&draw(3), start).is_none());
    assert!(Gateway(Ledger::new(None)).call(&draw(1), Some(("user", 5)), start).news.is_empty(), "without a fleet");
}

#[test]
fn a_limit_from_fields_is_told_and_that_nothing_is_left() {
    let (one, other, start) = (Gateway::new(1), Gateway::new(2), Clock::System.now());
    let told = |remaining: u32| {
        let text = format!("remain:{remaining},limit:10,time:10 second");
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-apig-ratelimit-user"),
            HeaderValue::try_from(text).unwrap(),
        )]);
        one.0.limits(SERVICE).lock().take(&draw(1), start);
        let news = at(start, one.answer(&draw(1), None, &headers, start));
        other.told(&news, start);
        (news.len(), other.0.states(start)[0].1[0].remaining)
    };
    assert_eq!(told(9), (1, 5), "half of the quota for each");
    assert_eq!(told(8), (0, 5), "nothing new");
    assert_eq!(told(0), (1, 0));
}

#[test]
fn a_configured_limit_is_not_divided_but_refusals_count() {
    let [one, other] = [1, 2].map(|process| Gateway::new(process).configured(QuotaPolicy::User, 4));
    let start = Clock::System.now();
    assert!(one.call(&draw(1), None, start).news.is_empty());
    other.told(&at(start, one.call(&draw(1), Some(("user", 9)), start)), start);
    assert!(other.hold(&draw(1), start).is_some());
    let limits = &other.0.states(start + 15 * SECOND)[0].1;
    assert_eq!((limits.len(), limits[0].is_configured, limits[0].remaining), (1, true, 4));
}

/// Gateways that send as much as they may for ten minutes, and upstream with a limit of so many calls of a user in ten
/// seconds. Returns the refusals in the first half minute and afterwards, and the accepted calls afterwards.
fn contend(gateways: &[Gateway], calls: u32, is_told: bool) -> (usize, usize, usize) {
    let start = Clock::System.now();
    let (mut accepted, mut news): (Vec<Instant>, Vec<(Instant, LimitNews)>) = Default::default();
    let (mut early, mut late, mut good) = (0, 0, 0);
    for step in 0..6_000 {
        let now = start + step * SECOND / 10;
        for gateway in gateways.iter().filter(|_| is_told) {
            // What was told within the last second, again and again.
            let due = news.iter().filter(|(at, _)| (3..10).contains(&((now - *at).as_millis() / 100)));
            gateway.told(&due.cloned().collect::<Vec<_>>(), now);
        }
        for gateway in gateways.iter().cycle().take(3 * gateways.len()) {
            if gateway.hold(&draw(1), now).is_some() {
                continue;
            }
            accepted.retain(|sent| now - *sent < 10 * SECOND);
            let is_refused = accepted.len() >= calls as usize;
            let lesson = gateway.call(&draw(1), is_refused.then_some(("user", calls)), now);
            news.extend(at(now, lesson));
            let is_early = step < 300;
            match is_refused {
                true if is_early => early += 1,
                true => late += 1,
                false => {
                    accepted.push(now);
                    good += usize::from(!is_early);
                }
            }
        }
        news.retain(|(at, _)| now - *at < SECOND);
    }
    (early, late, good)
}

#[test]
fn gateways_that_know_of_each_other_meet_a_limit_once_and_then_share_it() {
    let gateways = || [1, 2, 3].map(Gateway::new);
    let (early, late, good) = contend(&gateways(), 30, true);
    assert!(early <= 3, "one for each: {early}");
    assert_eq!(late, 0);
    assert!(good >= 57 * 30 * 9 / 10, "the quota is used: {good}");
    let (_, unshared, _) = contend(&gateways(), 30, false);
    assert!(unshared > 50, "without hints they meet it again and again: {unshared}");
    // More gateways than calls.
    let (_, late, _) = contend(&gateways(), 2, true);
    assert!(late <= 57 * 3, "each window at most one for each: {late}");
}

#[test]
fn the_part_of_a_gateway_that_is_idle_goes_to_the_others_and_the_limit_ends_when_nobody_meets_it() {
    let (one, other, start) = (Gateway::new(1), Gateway::new(2), Clock::System.now());
    other.told(&at(start, one.call(&draw(1), Some(("user", 10)), start)), start);
    one.told(&at(start, other.call(&draw(1), Some(("user", 10)), start)), start);
    let mut now = start + 11 * SECOND;
    let send_all = |now: Instant| {
        (0..99)
            .take_while(|_| one.hold(&draw(1), now).is_none() && !one.0.limits(SERVICE).lock().take(&draw(1), now))
            .count()
    };
    assert_eq!(send_all(now), 5);
    now += 11 * SECOND;
    assert_eq!(send_all(now), 10, "two windows after the last news");
    // Only news of a limit that has been met create it.
    let mut used = Vec::new();
    for _ in 0..20 {
        now += SECOND;
        used.extend(at(now, one.answer(&draw(1), None, &HeaderMap::new(), now)));
    }
    assert!((1..=2).contains(&used.len()), "at most once in ten seconds: {used:?}");
    let third = Gateway::new(3);
    third.told(&used, now);
    assert!(third.0.states(now).iter().all(|(_, limits)| limits.is_empty()));
}

#[test]
fn news_with_numbers_that_make_no_sense_are_harmless() {
    let (one, start) = (Gateway::new(1), Clock::System.now());
    let good = one.call(&draw(1), Some(("user", 5)), start).news.remove(0);
    let api = || draw(1).api.map(|api| api.to_string());
    for calls in [0, 1, u32::MAX] {
        for window in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for wait in [Duration::ZERO, Duration::MAX] {
                for (is_refusal, policy) in [(true, QuotaPolicy::User), (false, QuotaPolicy::Api)] {
                    let what = What::Met { is_refusal, wait };
                    let quota = Quota { calls, window };
                    let (other, news) =
                        (Gateway::new(2), LimitNews { policy, api: api(), quota, what, ..good.clone() });
                    other.told(&[(start, news)], start);
                    let hold = other.hold(&draw(1), start);
                    assert!(hold.is_none_or(|hold| hold.left <= 301 * SECOND), "{hold:?}");
                    let is_known = other.0.states(start).iter().any(|(_, limits)| !limits.is_empty());
                    assert_eq!(is_known, !window.is_zero(), "no window is no quota");
                }
            }
        }
    }
}
