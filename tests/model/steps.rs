//! What can happen: the steps of a sequence, and how likely each is.
//!
//! A step says "the third of the calls in the air", never "call 17": whatever else is left out when a
//! failing sequence is made smaller, the rest still means something.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::clocks::Jump;
use super::settings::Settings;
use super::world::{CALLERS, CallerId, Change, KeyId, Ms, RequestDirectives, SCOPES, SECOND, ScopeId, Version};

/// How many steps a sequence has.
pub const STEPS: usize = 50;

/// One of so many: whatever the number, it is taken modulo what there is.
pub type Pick = usize;

/// A millisecond passes before each.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests come in at the same moment, in this order; straight from clients or by another gateway.
    /// Their tokens are written as they are, or in each way that there is.
    Ask {
        key: KeyId,
        callers: Vec<CallerId>,
        is_plain: bool,
        is_odd: bool,
        wish: RequestDirectives,
        has: Option<Version>,
    },
    /// A caller sends a request with an unsafe method to the path of a question.
    Write { key: KeyId, caller: CallerId },
    /// Calls in the air end, all at the same moment and in this order.
    Land(Vec<(Pick, Outcome)>),
    /// The head of a refusal lands for a call in the air. The body lands with the next step that lands the call. An
    /// answer that is no refusal lands whole.
    Head(Pick, Outcome),
    /// The call that most wait for ends, and so on, six times alike, perhaps each after a purge.
    Series { outcome: Outcome, purges: bool },
    /// Time passes.
    Pass(Pass),
    /// A clock jumps.
    Jump(Jump),
    /// The truth changes.
    Change(Change),
    /// A client that waits hangs up.
    HangUp(Pick),
    /// The operator purges.
    Purge { operation: Option<ScopeId>, project: Option<ScopeId> },
}

/// How much time.
#[derive(Clone, Debug)]
pub enum Pass {
    Span(Ms),
    /// Until one of the moments at which something ends, or one millisecond less or more.
    Until(Pick, Edge),
}

#[derive(Clone, Copy, Debug)]
pub enum Edge {
    Before,
    At,
    After,
}

impl Step {
    /// Steps that do less, to be tried in place of this one when a failure is made smaller.
    pub fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Ask { key, callers, is_plain, is_odd, wish, has } => {
                let (key, has) = (*key, *has);
                let spelled = |callers, is_plain, is_odd, wish| Self::Ask { key, callers, is_plain, is_odd, wish, has };
                let ask = |callers, is_plain, wish| spelled(callers, is_plain, *is_odd, wish);
                let mut simpler = Vec::new();
                if *is_odd {
                    simpler.push(spelled(callers.clone(), *is_plain, false, *wish));
                }
                if !is_plain {
                    simpler.push(ask(callers.clone(), true, *wish));
                }
                if *wish != RequestDirectives::Nothing {
                    simpler.push(ask(callers.clone(), *is_plain, RequestDirectives::Nothing));
                }
                if callers.len() > 1 {
                    simpler.extend((0..callers.len()).map(|left_out| {
                        let mut callers = callers.clone();
                        callers.remove(left_out);
                        ask(callers, *is_plain, *wish)
                    }));
                }
                simpler
            }
            Self::Land(ends) => {
                let without = |left_out| {
                    let mut ends = ends.clone();
                    ends.remove(left_out);
                    Self::Land(ends)
                };
                let plainer = |place: usize, pick, outcome| {
                    let mut ends = ends.clone();
                    ends[place] = (pick, outcome);
                    Self::Land(ends)
                };
                let mut simpler = Vec::new();
                for (place, (pick, outcome)) in ends.iter().enumerate() {
                    if let Outcome::Truth { as_sent: true } = outcome {
                        simpler.push(plainer(place, *pick, Outcome::Truth { as_sent: false }));
                    }
                    simpler.extend((0..4.min(*pick)).map(|less| plainer(place, less, outcome.clone())));
                    if ends.len() > 1 {
                        simpler.push(without(place));
                    }
                }
                simpler
            }
            Self::Head(pick, outcome) => {
                let less = (0..4.min(*pick)).map(|less| Self::Head(less, outcome.clone()));
                std::iter::once(Self::Land(vec![(*pick, outcome.clone())])).chain(less).collect()
            }
            Self::Write { key, caller } if *key > 0 => vec![Self::Write { key: 0, caller: *caller }],
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
    /// With the truth, as it is when the call lands or as it was when it was sent: upstream looks at
    /// some moment in between.
    Truth {
        as_sent: bool,
    },
    /// With the truth, and a header that forbids to keep it.
    NoStore,
    /// With the truth, and a header that says that it varies on the credential.
    Vary,
    /// With the truth, at such length that it can't be held.
    TooLarge,
    /// With the truth; if that is a refusal, in more words than are remembered.
    Wordy,
    /// With an error against 200.
    ErrorInDisguise,
    /// With a status that no truth decides.
    Status(u16),
    /// With one that says when to ask again, though perhaps in words that can't be read.
    RetryAfter(u16, Option<Ms>),
    /// With a 304 that tells nothing to the one who asked.
    NotModified,
    /// With the service's own 401, which is about the request and not about the credential.
    RefusedByService,
    /// The connection is refused.
    NotConnected,
    /// The name is not resolved.
    Unreachable,
    /// The gateway itself can't make the call.
    Local,
    TimedOut,
}

/// What happens, from an empty cache on.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Which of the settings it runs with.
    pub settings: usize,
    /// Whether callers are shown different products from the start.
    pub views_differ: bool,
    /// Whether calls stay in the air beyond the deadline that the gateway's HTTP client keeps.
    pub lingers: bool,
    pub steps: Vec<Step>,
}

pub fn sequence() -> impl Strategy<Value = Sequence> {
    let seldom = prop_oneof![3 => Just(false), 1 => Just(true)];
    let before = prop_oneof![4 => Just(Vec::new()), 2 => crowd(), 2 => slow(), 3 => aged(), 2 => changed(), 2 => refused(), 1 => jumped()];
    let steps = (before, vec(step(), STEPS)).prop_map(|(before, mut steps)| {
        steps.splice(..before.len(), before);
        steps
    });
    (0..Settings::all().len(), any::<bool>(), seldom, steps)
        .prop_map(|(settings, views_differ, lingers, steps)| Sequence { settings, views_differ, lingers, steps })
}

fn all_ask(key: KeyId) -> Step {
    Step::Ask {
        key,
        callers: (0..CALLERS).collect(),
        is_plain: true,
        is_odd: false,
        wish: RequestDirectives::Nothing,
        has: None,
    }
}

fn all_are_proved() -> Step {
    Step::Land(vec![(0, Outcome::Truth { as_sent: true }); CALLERS])
}

/// What hardly comes about by chance: everyone is known, nothing is there, all ask, and one leader after the
/// other has something to show for it, or not.
fn crowd() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![Just(Outcome::Status(429)), outcome()];
    (outcome, any::<bool>()).prop_map(|(outcome, purges)| {
        let purge = Step::Purge { operation: None, project: None };
        vec![all_ask(0), all_are_proved(), purge, all_ask(0), Step::Series { outcome, purges }]
    })
}

/// Everyone is known and nothing is there. One leads and others wait, while a later question is answered, before or after
/// the leader's call has become slow. Then that fails, or another call is made.
fn slow() -> impl Strategy<Value = Vec<Step>> {
    let pass = select(vec![1, 4, 12, 41]).prop_map(|seconds| Step::Pass(Pass::Span(seconds * SECOND)));
    let failure = select(vec![500, 502, 503]).prop_map(Outcome::Status);
    (pass.clone(), pass, prop_oneof![1 => failure, 1 => outcome()], vec(outcome(), 0..=2)).prop_map(
        |(before, after, first, more)| {
            let ask = |key, callers| Step::Ask {
                key,
                callers,
                is_plain: true,
                is_odd: false,
                wish: RequestDirectives::Nothing,
                has: None,
            };
            let land = |pick, outcome| Step::Land(vec![(pick, outcome)]);
            let purge = Step::Purge { operation: None, project: None };
            let mut steps =
                vec![all_ask(0), all_are_proved(), purge, ask(0, vec![0]), ask(0, vec![1, 2, 3]), ask(1, vec![4])];
            steps.extend([before, land(1, Outcome::Truth { as_sent: true }), after, land(0, first)]);
            steps.extend(more.into_iter().map(|outcome| land(0, outcome)));
            steps
        },
    )
}

/// And neither does this: something is there that has expired, while everyone has been proved by another
/// question since.
fn aged() -> impl Strategy<Value = Vec<Step>> {
    let some = prop_oneof![1 => Just(Vec::new()), 1 => vec((caller(), trouble()), 1..=4)];
    (select(vec![4, 10, 45]), some).prop_map(|(seconds, some)| {
        let pass = |seconds| Step::Pass(Pass::Span(seconds * SECOND));
        let mut steps = vec![all_ask(0), all_are_proved(), pass(37), all_ask(1), all_are_proved(), pass(seconds)];
        if !some.is_empty() {
            let (callers, outcomes): (Vec<_>, Vec<_>) = some.into_iter().unzip();
            let (wish, has) = (RequestDirectives::NoCache, None);
            steps.push(Step::Ask { key: 0, callers, is_plain: true, is_odd: false, wish, has });
            steps.extend(outcomes.into_iter().map(|outcome| Step::Land(vec![(0, outcome)])));
        }
        steps
    })
}

/// Or this: something is there, everyone has been proved, and one of them changes it; before or after that a call
/// begins, and then it is asked for, while upstream is well or not.
fn changed() -> impl Strategy<Value = Vec<Step>> {
    let seconds = select(vec![1, 30, 50, 100]);
    (seconds, any::<bool>(), caller(), outcome(), outcome()).prop_map(
        |(seconds, is_asked_before, caller, one, other)| {
            let ask =
                |wish| Step::Ask { key: 0, callers: vec![caller], is_plain: true, is_odd: false, wish, has: None };
            let pass = Step::Pass(Pass::Span(seconds * SECOND));
            let mut steps = vec![all_ask(0), all_are_proved(), pass, all_ask(1), all_are_proved()];
            if is_asked_before {
                steps.push(ask(RequestDirectives::NoCache));
            }
            let end = |place, outcome| Step::Land(vec![(place, outcome)]);
            steps.push(Step::Write { key: 1, caller });
            steps.push(end(usize::from(is_asked_before), Outcome::Truth { as_sent: false }));
            steps.extend([
                ask(RequestDirectives::Nothing),
                ask(RequestDirectives::Nothing),
                end(0, one),
                end(0, other),
                ask(RequestDirectives::Nothing),
            ]);
            steps
        },
    )
}

/// Or this: everyone is proved in two scopes of a service, and nothing is there in one of them. One caller is refused
/// there while others wait for its call. It asks in the other scope before the body of the refusal lands and after that.
/// Perhaps an older call of it in that scope lands in between.
fn refused() -> impl Strategy<Value = Vec<Step>> {
    let rest = prop_oneof![1 => Just(Vec::new()), 3 => vec(step(), 1..=3)];
    (0..3_usize, any::<bool>(), any::<bool>(), refusal(), outcome(), rest).prop_map(
        |(caller, is_revoked, asks_before, head, body, rest)| {
            let ask = |key, callers, wish| Step::Ask { key, callers, is_plain: true, is_odd: false, wish, has: None };
            let purge = Step::Purge { operation: Some(0), project: Some(0) };
            let mut steps = vec![all_ask(0), all_are_proved(), all_ask(2), all_are_proved(), purge];
            if asks_before {
                steps.push(ask(2, vec![caller], RequestDirectives::NoCache));
            }
            steps.push(ask(0, vec![caller, (caller + 1) % 3, caller], RequestDirectives::Nothing));
            if is_revoked {
                steps.push(Step::Change(Change::Revoke(caller)));
            }
            steps.push(Step::Head(usize::from(asks_before), head));
            if asks_before {
                steps.push(Step::Land(vec![(0, Outcome::Truth { as_sent: true })]));
            }
            steps.push(ask(2, vec![caller], RequestDirectives::Nothing));
            steps.extend(rest);
            steps.push(Step::Land(vec![(0, body)]));
            steps.push(ask(2, vec![caller], RequestDirectives::Nothing));
            steps
        },
    )
}

/// Or this: something is there, everyone has been proved and one caller has been refused, and before they ask again a clock
/// jumps, perhaps while a call is in the air.
fn jumped() -> impl Strategy<Value = Vec<Step>> {
    (caller(), any::<bool>(), outcome(), jump(), outcome()).prop_map(|(caller, is_called, before, jump, after)| {
        let ask = |wish| Step::Ask { key: 0, callers: vec![caller], is_plain: true, is_odd: false, wish, has: None };
        let land = |outcome| Step::Land(vec![(0, outcome)]);
        let mut steps = vec![all_ask(0), all_are_proved(), ask(RequestDirectives::NoCache), land(before)];
        if is_called {
            steps.push(ask(RequestDirectives::NoCache));
        }
        steps.extend([Step::Jump(jump), all_ask(0), land(after), all_ask(0)]);
        steps
    })
}

/// What upstream may say that has consequences for more than the one who asked.
fn trouble() -> impl Strategy<Value = Outcome> {
    let status = select(vec![400, 404, 429, 429, 500, 503]).prop_map(Outcome::Status);
    prop_oneof![3 => status, 3 => retry_after(), 1 => Just(Outcome::NoStore), 1 => Just(Outcome::NotConnected)]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..64_usize;
    let plain = prop_oneof![3 => Just(true), 1 => Just(false)];
    let odd = prop_oneof![4 => Just(false), 1 => Just(true)];
    let ask = (key(), callers(), plain, odd, wish(), has());
    prop_oneof![
        38 => ask.prop_map(|(key, callers, is_plain, is_odd, wish, has)| {
            Step::Ask { key, callers, is_plain, is_odd, wish, has }
        }),
        34 => (pick.clone(), outcome()).prop_map(|end| Step::Land(vec![end])),
        4 => vec((pick.clone(), outcome()), 2..=4).prop_map(Step::Land),
        3 => (pick.clone(), refusal()).prop_map(|(pick, outcome)| Step::Head(pick, outcome)),
        1 => (outcome(), any::<bool>()).prop_map(|(outcome, purges)| Step::Series { outcome, purges }),
        14 => pass().prop_map(Step::Pass),
        2 => jump().prop_map(Step::Jump),
        8 => change().prop_map(Step::Change),
        5 => (key(), caller()).prop_map(|(key, caller)| Step::Write { key, caller }),
        3 => pick.prop_map(Step::HangUp),
        2 => (scope(), scope(), 0..4_u8).prop_map(|(one, other, which)| Step::Purge {
            operation: (which & 1 == 1).then_some(one),
            project: (which & 2 == 2).then_some(other),
        }),
    ]
}

/// A few, or everyone, or one many times.
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

/// Mostly none. The ages are met before and after each of the limits.
fn wish() -> impl Strategy<Value = RequestDirectives> {
    prop_oneof![
        40 => Just(RequestDirectives::Nothing),
        4 => Just(RequestDirectives::NoCache),
        2 => select(vec![3, 35, 50, 100]).prop_map(|seconds| RequestDirectives::MaxAge(seconds * SECOND)),
        1 => select(vec![3, 20]).prop_map(|seconds| RequestDirectives::MinFresh(seconds * SECOND)),
        2 => Just(RequestDirectives::OnlyIfCached),
        1 => Just(RequestDirectives::NoStore),
    ]
}

fn has() -> impl Strategy<Value = Option<Version>> {
    prop_oneof![6 => Just(None), 1 => (0..2_u8, 0..2_u8).prop_map(|(catalogue, view)| Some(Version { catalogue, view }))]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        28 => Just(Outcome::Truth { as_sent: false }),
        28 => Just(Outcome::Truth { as_sent: true }),
        3 => Just(Outcome::NoStore),
        1 => Just(Outcome::Vary),
        1 => Just(Outcome::Wordy),
        3 => Just(Outcome::ErrorInDisguise),
        8 => select(vec![500, 502, 503, 504]).prop_map(Outcome::Status),
        3 => Just(Outcome::Status(429)),
        4 => retry_after(),
        1 => Just(Outcome::NotModified),
        4 => select(vec![400, 404, 405]).prop_map(Outcome::Status),
        3 => select(vec![204, 302, 413, 414, 431, 494, 508]).prop_map(Outcome::Status),
        3 => Just(Outcome::NotConnected),
        2 => Just(Outcome::Unreachable),
        2 => Just(Outcome::Local),
        1 => Just(Outcome::RefusedByService),
        3 => Just(Outcome::TimedOut),
        2 => Just(Outcome::TooLarge),
    ]
}

/// A refusal, if the truth is one or the service says so.
fn refusal() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Truth { as_sent: false }),
        4 => Just(Outcome::RefusedByService),
        1 => Just(Outcome::Wordy),
        1 => Just(Outcome::NoStore),
        1 => Just(Outcome::TooLarge),
    ]
}

/// A 500 has no say in it.
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

/// The wall clock is set by less than counts, or by more, or is set back.
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
