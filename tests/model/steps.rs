//! The steps of a sequence, and how likely each is.
//!
//! A step says "the third of the calls in flight", never "call 17". So a step keeps its meaning when others are removed
//! to shrink a failing sequence.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::clocks::Jump;
use super::domain::{CALLERS, CallerId, Change, KeyId, Ms, RequestDirectives, SCOPES, SECOND, ScopeId, Version};
use super::limits::{LIMITS, Pacing};
use super::settings::Settings;

pub const STEPS: usize = 50;

/// The number of calls of a flight while upstream is slow, and of the attempts to make another one.
const MAX_CALLS: usize = 3;

/// An index, taken modulo the number of candidates.
pub type Pick = usize;

/// One millisecond passes before each step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests arrive at the same moment, in this order, directly from clients or through another gateway. Their
    /// tokens are written plainly, or in each possible spelling.
    Requests {
        key: KeyId,
        callers: Vec<CallerId>,
        is_direct: bool,
        varies_spelling: bool,
        directives: RequestDirectives,
        if_none_match: Option<Version>,
    },
    /// A caller sends a request with an unsafe method to the path of a key.
    UnsafeRequest {
        key: KeyId,
        caller: CallerId,
    },
    /// Calls in flight complete, all at the same moment and in this order.
    Complete(Vec<(Pick, Outcome)>),
    /// The head of a refusal arrives for a call in flight. Its body arrives with the next step that completes the call.
    /// Other responses arrive as a whole.
    Head(Pick, Outcome),
    /// The call that most requests wait for completes. This is repeated six times, optionally each after a purge.
    Series {
        outcome: Outcome,
        purges: bool,
    },
    Pass(Pass),
    Jump(Jump),
    /// The state of upstream changes.
    Change(Change),
    /// A waiting client disconnects.
    Disconnect(Pick),
    Purge {
        operation: Option<ScopeId>,
        project: Option<ScopeId>,
    },
}

/// How much time passes.
#[derive(Clone, Debug)]
pub enum Pass {
    Span(Ms),
    /// Until something expires, or one millisecond less or more.
    Until(Pick, Edge),
}

#[derive(Clone, Copy, Debug)]
pub enum Edge {
    Before,
    At,
    After,
}

impl Step {
    /// Smaller steps to try in place of this one when a failure is shrunk.
    pub fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Requests { key, callers, is_direct, varies_spelling, directives, if_none_match } => {
                let (key, if_none_match) = (*key, *if_none_match);
                let spelled = |callers, is_direct, varies_spelling, directives| Self::Requests {
                    key,
                    callers,
                    is_direct,
                    varies_spelling,
                    directives,
                    if_none_match,
                };
                let requests =
                    |callers, is_direct, directives| spelled(callers, is_direct, *varies_spelling, directives);
                let mut simpler = Vec::new();
                if *varies_spelling {
                    simpler.push(spelled(callers.clone(), *is_direct, false, *directives));
                }
                if !is_direct {
                    simpler.push(requests(callers.clone(), true, *directives));
                }
                if *directives != RequestDirectives::None {
                    simpler.push(requests(callers.clone(), *is_direct, RequestDirectives::None));
                }
                if callers.len() > 1 {
                    simpler.extend((0..callers.len()).map(|left_out| {
                        let mut callers = callers.clone();
                        callers.remove(left_out);
                        requests(callers, *is_direct, *directives)
                    }));
                }
                simpler
            }
            Self::Complete(ends) => {
                let without = |left_out| {
                    let mut ends = ends.clone();
                    ends.remove(left_out);
                    Self::Complete(ends)
                };
                let plainer = |index: usize, pick, outcome| {
                    let mut ends = ends.clone();
                    ends[index] = (pick, outcome);
                    Self::Complete(ends)
                };
                let mut simpler = Vec::new();
                for (index, (pick, outcome)) in ends.iter().enumerate() {
                    if let Outcome::Regular { as_sent: true } = outcome {
                        simpler.push(plainer(index, *pick, Outcome::Regular { as_sent: false }));
                    }
                    simpler.extend((0..4.min(*pick)).map(|less| plainer(index, less, outcome.clone())));
                    if ends.len() > 1 {
                        simpler.push(without(index));
                    }
                }
                simpler
            }
            Self::Head(pick, outcome) => {
                let less = (0..4.min(*pick)).map(|less| Self::Head(less, outcome.clone()));
                std::iter::once(Self::Complete(vec![(*pick, outcome.clone())])).chain(less).collect()
            }
            Self::UnsafeRequest { key, caller } if *key > 0 => vec![Self::UnsafeRequest { key: 0, caller: *caller }],
            Self::Pass(Pass::Span(span)) => [1, SECOND, span / 2]
                .into_iter()
                .filter(|less| less < span)
                .map(|less| Self::Pass(Pass::Span(less)))
                .collect(),
            Self::Jump(jump) => jump.simpler().map(Self::Jump).into_iter().collect(),
            Self::Purge { operation: Some(_), .. } | Self::Purge { project: Some(_), .. } => {
                vec![Self::Purge { operation: None, project: None }]
            }
            _ => Vec::new(),
        }
    }
}

/// How a call ends.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The regular response, by the state of upstream when the call completes, or when it was sent. Upstream decides at
    /// some moment in between.
    Regular {
        as_sent: bool,
    },
    /// The regular response with `no-store`.
    NoStore,
    /// The regular response, which varies on the credential.
    Vary,
    /// The regular response, larger than the limit.
    TooLarge,
    /// The regular response. A refusal has a body too long to be remembered.
    LongRefusal,
    /// An error body with status 200.
    ErrorWith200,
    /// An error that does not depend on the state of upstream.
    Status(u16),
    /// A 429 that names a limit, an index into `LIMITS`.
    Throttled(usize),
    /// An error with `Retry-After`, which may be malformed.
    RetryAfter(u16, Option<Ms>),
    /// A 304 that does not name the list of the request.
    NotModified,
    /// The service's own 401. It is about the request, not about the credential.
    RefusedByService,
    /// A 403 of something between the gateway and upstream.
    Intermediary,
    ConnectionRefused,
    /// The name is not resolved.
    Unreachable,
    /// A failure inside the gateway.
    Local,
    TimedOut,
}

/// The steps, starting with an empty cache.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Index into `Settings::all`.
    pub settings: usize,
    /// Whether callers see different products from the start.
    pub views_differ: bool,
    /// Whether calls stay in flight beyond the timeout of the gateway's HTTP client.
    pub ignores_deadline: bool,
    /// Whether limits of upstream hold calls back.
    pub pacing: Pacing,
    pub steps: Vec<Step>,
}

/// `is_paced`: limits of upstream hold calls back.
pub fn sequence(is_paced: bool) -> impl Strategy<Value = Sequence> {
    let seldom = prop_oneof![3 => Just(false), 1 => Just(true)];
    let before = prop_oneof![4 => Just(Vec::new()), 2 => many_waiters(), 2 => slow_leader(), 1 => slow_callers(), 3 => expired_entry(), 2 => after_invalidation(), 2 => refusal_in_parts(), 1 => clock_jump()];
    let ordinary = (Just(Pacing::None), with_prefix(before));
    let before = prop_oneof![2 => Just(Vec::new()), 5 => throttled(), 1 => changed_limit()];
    let paced = (pacing(), with_prefix(before));
    let steps = if is_paced { paced.boxed() } else { ordinary.boxed() };
    (0..Settings::all().len(), any::<bool>(), seldom, steps).prop_map(
        |(settings, views_differ, ignores_deadline, (pacing, steps))| Sequence {
            settings,
            views_differ,
            ignores_deadline,
            pacing,
            steps,
        },
    )
}

/// A prefix, and then any steps.
fn with_prefix(before: impl Strategy<Value = Vec<Step>>) -> impl Strategy<Value = Vec<Step>> {
    (before, vec(step(), STEPS)).prop_map(|(before, mut steps)| {
        steps.splice(..before.len(), before);
        steps
    })
}

fn pacing() -> impl Strategy<Value = Pacing> {
    prop_oneof![1 => Just(Pacing::Learnt), 1 => select(LIMITS.to_vec()).prop_map(Pacing::Configured)]
}

fn all_request(key: KeyId) -> Step {
    Step::Requests {
        key,
        callers: (0..CALLERS).collect(),
        is_direct: true,
        varies_spelling: false,
        directives: RequestDirectives::None,
        if_none_match: None,
    }
}

fn all_prove() -> Step {
    Step::Complete(vec![(0, Outcome::Regular { as_sent: true }); CALLERS])
}

/// The following prefixes hardly occur by chance. Here all callers are granted, nothing is stored, all send the same
/// request, and one leader after the other completes with the same outcome.
fn many_waiters() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![Just(Outcome::Status(429)), outcome()];
    (outcome, any::<bool>()).prop_map(|(outcome, purges)| {
        let purge = Step::Purge { operation: None, project: None };
        vec![all_request(0), all_prove(), purge, all_request(0), Step::Series { outcome, purges }]
    })
}

/// All callers are granted and nothing is stored. One leads and others wait. A later call for another key succeeds,
/// before or after the leader's call has become slow. Then the leader's call fails, or there is an additional call.
fn slow_leader() -> impl Strategy<Value = Vec<Step>> {
    let pass = select(vec![1, 4, 12, 41]).prop_map(|seconds| Step::Pass(Pass::Span(seconds * SECOND)));
    let failure = select(vec![500, 502, 503]).prop_map(Outcome::Status);
    (pass.clone(), pass, prop_oneof![1 => failure, 1 => outcome()], vec(outcome(), 0..=2)).prop_map(
        |(before, after, first, more)| {
            let requests = |key, callers| Step::Requests {
                key,
                callers,
                is_direct: true,
                varies_spelling: false,
                directives: RequestDirectives::None,
                if_none_match: None,
            };
            let complete = |pick, outcome| Step::Complete(vec![(pick, outcome)]);
            let purge = Step::Purge { operation: None, project: None };
            let mut steps = vec![
                all_request(0),
                all_prove(),
                purge,
                requests(0, vec![0]),
                requests(0, vec![1, 2, 3]),
                requests(1, vec![4]),
            ];
            steps.extend([before, complete(1, Outcome::Regular { as_sent: true }), after, complete(0, first)]);
            steps.extend(more.into_iter().map(|outcome| complete(0, outcome)));
            steps
        },
    )
}

/// All callers are granted and nothing is stored. One leads and the others wait. Calls for another key succeed again and
/// again. So one caller after the other makes an additional call, as many as may.
fn slow_callers() -> impl Strategy<Value = Vec<Step>> {
    (select(vec![4, 12]), vec(outcome(), 0..=2)).prop_map(|(seconds, more)| {
        let mut steps =
            vec![all_request(0), all_prove(), Step::Purge { operation: None, project: None }, all_request(0)];
        for others in 1..=MAX_CALLS {
            steps.push(Step::Pass(Pass::Span(seconds * SECOND)));
            steps.push(Step::Requests {
                key: 1,
                callers: vec![0],
                is_direct: true,
                varies_spelling: false,
                directives: RequestDirectives::NoCache,
                if_none_match: None,
            });
            steps.push(Step::Complete(vec![(others, Outcome::Regular { as_sent: true })]));
        }
        steps.extend(more.into_iter().map(|outcome| Step::Complete(vec![(0, outcome)])));
        steps
    })
}

/// All callers are granted, and there is an entry. One of them meets a limit, perhaps while others request the same. Then
/// time passes, and there are requests that can be answered from memory or not.
fn throttled() -> impl Strategy<Value = Vec<Step>> {
    let limit = || (0..LIMITS.len()).prop_map(Outcome::Throttled);
    let pass = |most: Ms| (1..most * SECOND).prop_map(|span| Step::Pass(Pass::Span(span)));
    let again = prop_oneof![1 => limit(), 2 => outcome()];
    let directives = || prop_oneof![2 => Just(RequestDirectives::None), 1 => Just(RequestDirectives::NoCache)];
    (callers(), directives(), limit(), (pass(45), pass(3), pass(40)), key(), callers(), again, directives()).prop_map(
        |(first, one, limit, (before, between, after), key, then, again, other)| {
            let requests = |key, callers, directives| Step::Requests {
                key,
                callers,
                is_direct: true,
                varies_spelling: false,
                directives,
                if_none_match: None,
            };
            let complete = |outcome| Step::Complete(vec![(0, outcome)]);
            let mut steps = vec![all_request(0), all_prove(), before];
            steps.extend([requests(0, first, one), complete(limit), between, requests(key, then, other)]);
            steps.extend([complete(again), after, complete(Outcome::Regular { as_sent: true })]);
            steps
        },
    )
}

/// All callers are granted, and nothing is stored. One of them meets a limit and waits for its turn. Another one meets the
/// limit after it has changed, and time passes.
fn changed_limit() -> impl Strategy<Value = Vec<Step>> {
    let limits = || (0..LIMITS.len()).prop_map(Outcome::Throttled);
    (limits(), limits(), 1..40_u64).prop_map(|(before, after, seconds)| {
        let requests = |key, callers| Step::Requests {
            key,
            callers,
            is_direct: true,
            varies_spelling: false,
            directives: RequestDirectives::None,
            if_none_match: None,
        };
        let complete = |outcome| Step::Complete(vec![(0, outcome)]);
        let purge = Step::Purge { operation: None, project: None };
        vec![
            all_request(0),
            all_prove(),
            purge,
            requests(0, vec![0]),
            complete(before),
            requests(0, vec![0]),
            requests(1, vec![1]),
            complete(after),
            Step::Pass(Pass::Span(seconds * SECOND)),
        ]
    })
}

/// An entry has expired, and all callers have been proved by another key since.
fn expired_entry() -> impl Strategy<Value = Vec<Step>> {
    let some = prop_oneof![1 => Just(Vec::new()), 1 => vec((caller(), failure_or_negative()), 1..=4)];
    (select(vec![4, 10, 45]), some).prop_map(|(seconds, some)| {
        let pass = |seconds| Step::Pass(Pass::Span(seconds * SECOND));
        let mut steps = vec![all_request(0), all_prove(), pass(37), all_request(1), all_prove(), pass(seconds)];
        if !some.is_empty() {
            let (callers, outcomes): (Vec<_>, Vec<_>) = some.into_iter().unzip();
            let (directives, if_none_match) = (RequestDirectives::NoCache, None);
            steps.push(Step::Requests {
                key: 0,
                callers,
                is_direct: true,
                varies_spelling: false,
                directives,
                if_none_match,
            });
            steps.extend(outcomes.into_iter().map(|outcome| Step::Complete(vec![(0, outcome)])));
        }
        steps
    })
}

/// There is an entry, all callers are granted, and one of them changes the scope. A call may start before the change.
/// Then the caller requests the list, while upstream works or fails.
fn after_invalidation() -> impl Strategy<Value = Vec<Step>> {
    let seconds = select(vec![1, 30, 50, 100]);
    (seconds, any::<bool>(), caller(), outcome(), outcome()).prop_map(
        |(seconds, is_call_in_flight, caller, one, other)| {
            let requests = |directives| Step::Requests {
                key: 0,
                callers: vec![caller],
                is_direct: true,
                varies_spelling: false,
                directives,
                if_none_match: None,
            };
            let pass = Step::Pass(Pass::Span(seconds * SECOND));
            let mut steps = vec![all_request(0), all_prove(), pass, all_request(1), all_prove()];
            if is_call_in_flight {
                steps.push(requests(RequestDirectives::NoCache));
            }
            let end = |index, outcome| Step::Complete(vec![(index, outcome)]);
            steps.push(Step::UnsafeRequest { key: 1, caller });
            steps.push(end(usize::from(is_call_in_flight), Outcome::Regular { as_sent: false }));
            steps.extend([
                requests(RequestDirectives::None),
                requests(RequestDirectives::None),
                end(0, one),
                end(0, other),
                requests(RequestDirectives::None),
            ]);
            steps
        },
    )
}

/// All callers are granted in two scopes of a service, and one scope has no entry. One caller is refused there while
/// others wait for its call. It sends requests in the other scope before the body of the refusal arrives and after
/// that. An older call of that caller in the other scope may complete in between.
fn refusal_in_parts() -> impl Strategy<Value = Vec<Step>> {
    let rest = prop_oneof![1 => Just(Vec::new()), 3 => vec(step(), 1..=3)];
    (0..3_usize, any::<bool>(), any::<bool>(), refusal(), outcome(), rest).prop_map(
        |(caller, is_revoked, requests_before, head, body, rest)| {
            let requests = |key, callers, directives| Step::Requests {
                key,
                callers,
                is_direct: true,
                varies_spelling: false,
                directives,
                if_none_match: None,
            };
            let purge = Step::Purge { operation: Some(0), project: Some(0) };
            let mut steps = vec![all_request(0), all_prove(), all_request(2), all_prove(), purge];
            if requests_before {
                steps.push(requests(2, vec![caller], RequestDirectives::NoCache));
            }
            steps.push(requests(0, vec![caller, (caller + 1) % 3, caller], RequestDirectives::None));
            if is_revoked {
                steps.push(Step::Change(Change::Revoke(caller)));
            }
            steps.push(Step::Head(usize::from(requests_before), head));
            if requests_before {
                steps.push(Step::Complete(vec![(0, Outcome::Regular { as_sent: true })]));
            }
            steps.push(requests(2, vec![caller], RequestDirectives::None));
            steps.extend(rest);
            steps.push(Step::Complete(vec![(0, body)]));
            steps.push(requests(2, vec![caller], RequestDirectives::None));
            steps
        },
    )
}

/// There is an entry and all callers are granted. One call of one caller completes with any outcome. Before the next
/// requests a clock jumps, perhaps while a call is in flight.
fn clock_jump() -> impl Strategy<Value = Vec<Step>> {
    (caller(), any::<bool>(), outcome(), jump(), outcome()).prop_map(|(caller, is_called, before, jump, after)| {
        let requests = |directives| Step::Requests {
            key: 0,
            callers: vec![caller],
            is_direct: true,
            varies_spelling: false,
            directives,
            if_none_match: None,
        };
        let complete = |outcome| Step::Complete(vec![(0, outcome)]);
        let mut steps = vec![all_request(0), all_prove(), requests(RequestDirectives::NoCache), complete(before)];
        if is_called {
            steps.push(requests(RequestDirectives::NoCache));
        }
        steps.extend([Step::Jump(jump), all_request(0), complete(after), all_request(0)]);
        steps
    })
}

/// Outcomes with consequences for other callers.
fn failure_or_negative() -> impl Strategy<Value = Outcome> {
    let status = select(vec![400, 404, 429, 429, 500, 503]).prop_map(Outcome::Status);
    prop_oneof![3 => status, 3 => retry_after(), 1 => Just(Outcome::NoStore), 1 => Just(Outcome::ConnectionRefused)]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..64_usize;
    let direct = prop_oneof![3 => Just(true), 1 => Just(false)];
    let varies = prop_oneof![4 => Just(false), 1 => Just(true)];
    let requests = (key(), callers(), direct, varies, directives(), if_none_match());
    prop_oneof![
        38 => requests.prop_map(|(key, callers, is_direct, varies_spelling, directives, if_none_match)| {
            Step::Requests { key, callers, is_direct, varies_spelling, directives, if_none_match }
        }),
        34 => (pick.clone(), outcome()).prop_map(|end| Step::Complete(vec![end])),
        4 => vec((pick.clone(), outcome()), 2..=4).prop_map(Step::Complete),
        3 => (pick.clone(), refusal()).prop_map(|(pick, outcome)| Step::Head(pick, outcome)),
        1 => (outcome(), any::<bool>()).prop_map(|(outcome, purges)| Step::Series { outcome, purges }),
        14 => pass().prop_map(Step::Pass),
        2 => jump().prop_map(Step::Jump),
        8 => change().prop_map(Step::Change),
        5 => (key(), caller()).prop_map(|(key, caller)| Step::UnsafeRequest { key, caller }),
        3 => pick.prop_map(Step::Disconnect),
        2 => (scope(), scope(), 0..4_u8).prop_map(|(one, other, which)| Step::Purge {
            operation: (which & 1 == 1).then_some(one),
            project: (which & 2 == 2).then_some(other),
        }),
    ]
}

/// A few callers, all of them, or one many times.
fn callers() -> impl Strategy<Value = Vec<CallerId>> {
    prop_oneof![
        34 => vec(caller(), 1..=3),
        3 => vec(0..CALLERS, 4..=8),
        1 => (caller(), 6..=8_usize).prop_map(|(caller, times)| [caller].repeat(times)),
    ]
}

fn caller() -> impl Strategy<Value = CallerId> {
    prop_oneof![3 => Just(0), 3 => Just(1), 2 => Just(2), 2 => 0..CALLERS]
}

fn key() -> impl Strategy<Value = KeyId> {
    prop_oneof![7 => Just(0), 1 => Just(1), 1 => Just(2), 2 => Just(3)]
}

fn scope() -> impl Strategy<Value = ScopeId> {
    prop_oneof![3 => Just(0), 1 => 0..SCOPES.len()]
}

/// Mostly none. Ages are below and above each of the limits.
fn directives() -> impl Strategy<Value = RequestDirectives> {
    prop_oneof![
        40 => Just(RequestDirectives::None),
        4 => Just(RequestDirectives::NoCache),
        2 => select(vec![3, 35, 50, 100]).prop_map(|seconds| RequestDirectives::MaxAge(seconds * SECOND)),
        1 => select(vec![3, 20]).prop_map(|seconds| RequestDirectives::MinFresh(seconds * SECOND)),
        2 => Just(RequestDirectives::OnlyIfCached),
        1 => Just(RequestDirectives::NoStore),
    ]
}

fn if_none_match() -> impl Strategy<Value = Option<Version>> {
    prop_oneof![6 => Just(None), 1 => (0..2_u8, 0..2_u8).prop_map(|(catalogue, view)| Some(Version { catalogue, view }))]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        28 => Just(Outcome::Regular { as_sent: false }),
        28 => Just(Outcome::Regular { as_sent: true }),
        3 => Just(Outcome::NoStore),
        1 => Just(Outcome::Vary),
        1 => Just(Outcome::LongRefusal),
        3 => Just(Outcome::ErrorWith200),
        8 => select(vec![500, 502, 503, 504]).prop_map(Outcome::Status),
        3 => (0..LIMITS.len()).prop_map(Outcome::Throttled),
        4 => retry_after(),
        1 => Just(Outcome::NotModified),
        4 => select(vec![400, 404, 405]).prop_map(Outcome::Status),
        3 => select(vec![204, 302, 413, 414, 431, 494, 508]).prop_map(Outcome::Status),
        3 => Just(Outcome::ConnectionRefused),
        2 => Just(Outcome::Unreachable),
        2 => Just(Outcome::Local),
        1 => Just(Outcome::RefusedByService),
        3 => Just(Outcome::TimedOut),
        2 => Just(Outcome::TooLarge),
    ]
}

/// A refusal, if the regular response is one or the service refuses.
fn refusal() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Regular { as_sent: false }),
        4 => Just(Outcome::RefusedByService),
        1 => Just(Outcome::LongRefusal),
        1 => Just(Outcome::NoStore),
        1 => Just(Outcome::TooLarge),
    ]
}

/// On a 500 the gateway ignores `Retry-After`.
fn retry_after() -> impl Strategy<Value = Outcome> {
    let after = select(vec![Some(3 * SECOND), Some(12 * SECOND), Some(90 * SECOND), None]);
    (select(vec![429, 429, 429, 503, 503, 500]), after).prop_map(|(status, after)| Outcome::RetryAfter(status, after))
}

fn pass() -> impl Strategy<Value = Pass> {
    let edge = prop_oneof![Just(Edge::At), Just(Edge::Before), Just(Edge::After)];
    prop_oneof![
        4 => (1..500_u64).prop_map(Pass::Span),
        4 => (500..5 * SECOND).prop_map(Pass::Span),
        4 => (5 * SECOND..40 * SECOND).prop_map(Pass::Span),
        1 => (40 * SECOND..400 * SECOND).prop_map(Pass::Span),
        8 => (0..6_usize, edge).prop_map(|(pick, edge)| Pass::Until(pick, edge)),
    ]
}

/// The wall clock is set forward by less than the drift that is ignored, or by more, or is set back.
fn jump() -> impl Strategy<Value = Jump> {
    let span = || prop_oneof![1 => SECOND..40 * SECOND, 2 => 40 * SECOND..400 * SECOND];
    prop_oneof![
        2 => span().prop_map(Jump::Suspension),
        2 => span().prop_map(Jump::Boot),
        3 => span().prop_map(Jump::WallForward),
        2 => span().prop_map(Jump::WallBack),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => caller().prop_map(Change::Revoke),
        3 => caller().prop_map(Change::Restore),
        1 => (caller(), scope()).prop_map(|(caller, scope)| Change::Forbid(caller, scope)),
        1 => (caller(), scope()).prop_map(|(caller, scope)| Change::Permit(caller, scope)),
        4 => (0..3_u8).prop_map(Change::Catalogue),
        2 => (scope(), any::<bool>()).prop_map(|(scope, differ)| Change::Views(scope, differ)),
    ]
}
