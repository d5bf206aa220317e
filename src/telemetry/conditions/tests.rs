//! What is wrong, from facts in a table.

use super::*;
use crate::catalogue::{Quota, QuotaPolicy};
use crate::clock::Clock;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 60 * 60;

/// A gateway whose two services answer.
fn good() -> ConditionFacts {
    // Later than anything below.
    let now = Clock::System.now() + 10 * MINUTE;
    let service = |service: Service| ServiceFacts {
        service,
        origin: format!("https://{}.r.example", service.as_str()),
        health: Some(health(now, 0)),
        error: None,
        local_failure: None,
        accepted: 10,
        refused: 0,
        failed: 0,
        limits: Vec::new(),
        throttled: None,
    };
    ConditionFacts {
        now,
        date: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 * DAY),
        services: Service::ALL.map(service).into(),
        is_bypassing: false,
        is_memory_reached: false,
        fleet: Some(FleetFacts { state: "in-use", is_lost: false, is_in_sync: true, sync_age: Duration::ZERO }),
        certificate_not_after: 0,
        refused_reload: None,
        stalled_log: None,
        last_minute: Recent { requests: 100, ..Recent::default() },
        last_five_minutes: Recent::default(),
        suspended_keys: Vec::new(),
        keep_warm_stopped_keys: 0,
        private_scopes: 0,
    }
}

/// Of a service that has answered, and has failed so many times since.
fn health(now: Instant, failures: u64) -> Health {
    Health {
        is_failing: failures > 0,
        is_unreached: false,
        since: now - MINUTE,
        last_answer: Some(now - 2 * MINUTE),
        last_failure: (failures > 0).then_some("503"),
        failures,
    }
}

fn limit(remaining: u32, free_in: Duration) -> LimitState {
    let quota = Quota { calls: 200, window: 5 * MINUTE };
    let (policy, used) = (QuotaPolicy::User, 200 - remaining);
    LimitState { policy, operation: None, quota, used, remaining, free_in, is_configured: false, binds_all: false }
}

type Change = fn(&mut ConditionFacts);

/// The cause, its severity and some of its words. `None` if nothing is wrong.
type Expected = Option<(Cause, Severity, &'static str)>;

#[test]
fn each_cause_has_its_severity_and_names_what_is_wrong() {
    use Severity::{Critical, Warning};
    let cases: [(Change, Expected); 41] = [
        (|_| {}, None),
        (|it| it.services[0].health = None, None),
        (
            |it| it.services[0].health = Some(health(it.now, 1)),
            Some((Cause::UpstreamFailing, Warning, "workspace is failing: it answers 503; 1 call has failed")),
        ),
        (
            |it| it.services[1].health = Some(health(it.now, 7)),
            Some((Cause::UpstreamFailing, Critical, "appstream is failing: it answers 503; 7 calls have failed")),
        ),
        (
            |it| {
                it.services[0].health = Some(Health { last_failure: Some("connect"), ..health(it.now, 2) });
                it.services[0].error = Some("cannot connect to h: refused".to_owned());
            },
            Some((Cause::UpstreamFailing, Critical, "is failing: cannot connect to h: refused; 2 calls")),
        ),
        (
            |it| {
                let never = Health { last_answer: None, last_failure: Some("connect"), ..health(it.now, 2) };
                it.services[0].health = Some(never);
                it.services[0].error = Some("cannot connect to h: no such name".to_owned());
            },
            Some((
                Cause::UpstreamNeverAnswered,
                Critical,
                "no call to workspace (https://workspace.r.example) has succeeded since the start: cannot connect to h",
            )),
        ),
        (
            |it| it.services[0].local_failure = Some((it.now - MINUTE / 2, "no file descriptor".to_owned())),
            Some((Cause::LocalFailures, Critical, "fail in the gateway itself: no file descriptor")),
        ),
        (|it| it.services[0].local_failure = Some((it.now - MINUTE, String::new())), None),
        (
            |it| (it.services[0].accepted, it.services[0].refused) = (0, 5),
            Some((Cause::NothingAccepted, Critical, "has refused all 5 calls since the start")),
        ),
        (|it| (it.services[0].accepted, it.services[0].refused) = (0, 4), None),
        (
            |it| (it.services[0].accepted, it.services[0].failed) = (0, 3),
            Some((Cause::UpstreamNeverAnswered, Critical, "has succeeded since the start: 3 calls have failed")),
        ),
        (|it| (it.services[0].accepted, it.services[0].failed) = (0, 2), None),
        (|it| (it.services[0].accepted, it.services[0].failed) = (1, 500), None),
        (|it| (it.services[0].accepted, it.services[0].refused) = (1, 500), None),
        (
            |it| it.services[0].limits = vec![limit(0, MINUTE)],
            Some((Cause::Throttled, Warning, "workspace limits calls: policy user, 200 in 5m is used up")),
        ),
        (|it| it.services[0].limits = vec![limit(1, Duration::ZERO), limit(0, MINUTE / 100)], None),
        (
            |it| it.services[0].throttled = Some(it.now - MINUTE / 2),
            Some((Cause::Throttled, Warning, "workspace throttles calls (429, or 503 with Retry-After)")),
        ),
        (
            // The limit says more.
            |it| {
                (it.services[0].throttled, it.services[0].limits) = (Some(it.now - MINUTE / 2), vec![limit(0, MINUTE)])
            },
            Some((Cause::Throttled, Warning, "policy user")),
        ),
        (|it| it.services[0].throttled = Some(it.now - MINUTE), None),
        (
            |it| it.last_minute.errors = 3,
            Some((Cause::Errors, Warning, "3 of 100 responses in the last minute were errors")),
        ),
        (|it| it.last_minute.errors = 10, Some((Cause::Errors, Critical, "10 of 100"))),
        (|it| it.last_minute = Recent { requests: 2, errors: 2, ..Recent::default() }, None),
        (
            |it| it.last_minute.repeated_denials = 10,
            Some((Cause::DenialsRepeated, Warning, "a client repeats a credential that upstream has refused: 10")),
        ),
        (|it| it.last_minute.repeated_denials = 9, None),
        (|it| it.is_memory_reached = true, Some((Cause::MemoryReached, Critical, "the memory budget is reached"))),
        (|it| it.is_bypassing = true, Some((Cause::Bypassed, Warning, "(mode = bypass)"))),
        (
            |it| it.refused_reload = Some((it.now - MINUTE, "f: cache.ttl: expected a duration".to_owned())),
            Some((Cause::ReloadRefused, Warning, "stays in force: f: cache.ttl: expected a duration")),
        ),
        (
            |it| it.suspended_keys = vec!["A".to_owned(), "B".to_owned()],
            Some((Cause::KeySuspended, Critical, "refuses their signatures: A, B")),
        ),
        (|it| it.keep_warm_stopped_keys = 1, Some((Cause::KeepWarmStopped, Warning, "does not use 1 access key(s)"))),
        (|it| it.private_scopes = 2, Some((Cause::PrivateScopes, Warning, "nothing is shared in 2 scope(s)"))),
        (|it| it.last_five_minutes.evictions = 1, Some((Cause::CacheFull, Warning, "the cache is full: 1 entries"))),
        (|it| it.last_minute.evictions = 1, None),
        (|it| it.stalled_log = Some(0), Some((Cause::LogStalled, Warning, "lines wait to be written"))),
        (|it| it.stalled_log = Some(7), Some((Cause::LogStalled, Warning, "7 lines were dropped so far"))),
        (|it| it.fleet = None, None),
        (
            |it| {
                it.fleet = Some(FleetFacts {
                    state: "it does not answer in time",
                    is_lost: true,
                    is_in_sync: false,
                    sync_age: MINUTE,
                })
            },
            Some((
                Cause::FleetLost,
                Warning,
                "is not in use, and this gateway works alone: it does not answer in time",
            )),
        ),
        (
            |it| it.fleet = Some(FleetFacts { state: "in-use", is_lost: false, is_in_sync: false, sync_age: MINUTE }),
            Some((Cause::FleetOutOfSync, Warning, "does not know what the others")),
        ),
        (|it| it.certificate_not_after = 1_014 * DAY as i64, None),
        (
            |it| it.certificate_not_after = 1_013 * DAY as i64,
            Some((Cause::CertificateEnds, Warning, "ends on 1972-10-10T00:00:00Z")),
        ),
        (
            |it| it.certificate_not_after = 999 * DAY as i64,
            Some((Cause::CertificateEnded, Critical, "ended on 1972-09-26T00:00:00Z: clients refuse it")),
        ),
        (|it| it.certificate_not_after = -1, Some((Cause::CertificateEnds, Warning, "cannot be read"))),
    ];
    let mut seen = Vec::new();
    for (index, (change, expected)) in cases.into_iter().enumerate() {
        let mut facts = good();
        change(&mut facts);
        let found = conditions(&facts);
        match (found.as_slice(), expected) {
            ([], None) => {}
            ([one], Some((cause, severity, words))) => {
                assert_eq!((one.cause, one.severity), (cause, severity), "{index}: {one:?}");
                assert!(one.what.contains(words), "{index}: {one:?}");
                assert!(!one.what.ends_with('.') && !one.advice.ends_with('.'), "{one:?}");
                seen.push(cause);
            }
            _ => panic!("{index}: {found:?}, and not {expected:?}"),
        }
    }
    assert_eq!(Cause::VARIANTS.iter().find(|cause| !seen.contains(cause)), None, "each cause has a case");
}

#[test]
fn the_advice_does_not_contradict_an_error_of_tls() {
    let advice = |failure| {
        let mut facts = good();
        let health = Health { last_answer: None, last_failure: Some(failure), ..health(facts.now, 2) };
        facts.services[0].health = Some(health);
        conditions(&facts)[0].advice
    };
    assert!(advice("connect").starts_with("Check region"));
    assert!(advice("tls").starts_with("Try: workspace-gateway check --probe"));
}

#[test]
fn the_worst_comes_first_with_its_time() {
    let mut facts = good();
    facts.is_bypassing = true;
    facts.services[1].health = Some(health(facts.now, 1));
    facts.services[0].limits = vec![limit(0, MINUTE)];
    facts.services[0].health = Some(health(facts.now, 2));
    facts.is_memory_reached = true;
    let found = conditions(&facts);
    let causes: Vec<_> = found.iter().map(|it| (it.cause, it.service)).collect();
    let expected = [
        (Cause::UpstreamFailing, Some(Service::Workspace)),
        (Cause::MemoryReached, None),
        (Cause::UpstreamFailing, Some(Service::AppStream)),
        (Cause::Bypassed, None),
        (Cause::Throttled, Some(Service::Workspace)),
    ];
    assert_eq!(causes, expected);
    assert_eq!((found[0].since, found[0].until), (Some(facts.now - MINUTE), None));
    assert_eq!((found[4].since, found[4].until), (None, Some(MINUTE)));
}
