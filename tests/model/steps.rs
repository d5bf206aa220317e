//! What can happen: the steps of a sequence, and how likely each is.
//!
//! A step says "the third of the calls in the air", never "call 17": whatever else is left out when a
//! failing sequence is made smaller, the rest still means something.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::settings::Settings;
use super::world::{CALLERS, CallerId, Change, KeyId, Ms, SCOPES, SECOND, ScopeId, Version, Wish};

/// How many steps a sequence has.
pub const STEPS: usize = 50;

/// One of so many: whatever the number, it is taken modulo what there is.
pub type Pick = usize;

/// A millisecond passes before each.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests come in at the same moment, in this order; straight from clients or by another gateway.
    Ask { key: KeyId, callers: Vec<CallerId>, is_plain: bool, wish: Wish, has: Option<Version> },
    /// Calls in the air end, all at the same moment and in this order.
    Land(Vec<(Pick, Outcome)>),
    /// The call that most wait for ends, and so on, six times alike, perhaps each after a purge.
    Series { outcome: Outcome, purges: bool },
    /// Time passes.
    Pass(Pass),
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
            Self::Ask { key, callers, is_plain, wish, has } => {
                let ask = |callers, is_plain, wish| Self::Ask { key: *key, callers, is_plain, wish, has: *has };
                let mut simpler = Vec::new();
                if !is_plain {
                    simpler.push(ask(callers.clone(), true, *wish));
                }
                if *wish != Wish::Nothing {
                    simpler.push(ask(callers.clone(), *is_plain, Wish::Nothing));
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
            Self::Pass(Pass::Span(span)) => [1, SECOND, span / 2]
                .into_iter()
                .filter(|less| less < span)
                .map(|less| Self::Pass(Pass::Span(less)))
                .collect(),
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
    Unreachable,
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
    let before = prop_oneof![4 => Just(Vec::new()), 2 => crowd(), 3 => aged()];
    let steps = (before, vec(step(), STEPS)).prop_map(|(before, mut steps)| {
        steps.splice(..before.len(), before);
        steps
    });
    (0..Settings::all().len(), any::<bool>(), seldom, steps)
        .prop_map(|(settings, views_differ, lingers, steps)| Sequence { settings, views_differ, lingers, steps })
}

fn all_ask(key: KeyId) -> Step {
    Step::Ask { key, callers: (0..CALLERS).collect(), is_plain: true, wish: Wish::Nothing, has: None }
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

/// And neither does this: something is there that has expired, while everyone has been proved by another
/// question since.
fn aged() -> impl Strategy<Value = Vec<Step>> {
    let some = prop_oneof![1 => Just(Vec::new()), 1 => vec((caller(), trouble()), 1..=4)];
    (select(vec![4, 10, 45]), some).prop_map(|(seconds, some)| {
        let pass = |seconds| Step::Pass(Pass::Span(seconds * SECOND));
        let mut steps = vec![all_ask(0), all_are_proved(), pass(37), all_ask(1), all_are_proved(), pass(seconds)];
        if !some.is_empty() {
            let (callers, outcomes): (Vec<_>, Vec<_>) = some.into_iter().unzip();
            steps.push(Step::Ask { key: 0, callers, is_plain: true, wish: Wish::NoCache, has: None });
            steps.extend(outcomes.into_iter().map(|outcome| Step::Land(vec![(0, outcome)])));
        }
        steps
    })
}

/// What upstream may say that has consequences for more than the one who asked.
fn trouble() -> impl Strategy<Value = Outcome> {
    let status = select(vec![400, 404, 429, 429, 500, 503]).prop_map(Outcome::Status);
    prop_oneof![3 => status, 3 => retry_after(), 1 => Just(Outcome::NoStore), 1 => Just(Outcome::Unreachable)]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..64_usize;
    let ask = (key(), callers(), prop_oneof![3 => Just(true), 1 => Just(false)], wish(), has());
    prop_oneof![
        38 => ask.prop_map(|(key, callers, is_plain, wish, has)| Step::Ask { key, callers, is_plain, wish, has }),
        34 => (pick.clone(), outcome()).prop_map(|end| Step::Land(vec![end])),
        4 => vec((pick.clone(), outcome()), 2..=4).prop_map(Step::Land),
        1 => (outcome(), any::<bool>()).prop_map(|(outcome, purges)| Step::Series { outcome, purges }),
        14 => pass().prop_map(Step::Pass),
        8 => change().prop_map(Step::Change),
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
fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        40 => Just(Wish::Nothing),
        4 => Just(Wish::NoCache),
        2 => select(vec![3, 35, 50, 100]).prop_map(|seconds| Wish::MaxAge(seconds * SECOND)),
        1 => select(vec![3, 20]).prop_map(|seconds| Wish::MinFresh(seconds * SECOND)),
        2 => Just(Wish::OnlyIfCached),
        1 => Just(Wish::NoStore),
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
        1 => Just(Outcome::Wordy),
        3 => Just(Outcome::ErrorInDisguise),
        8 => select(vec![500, 502, 503, 504]).prop_map(Outcome::Status),
        3 => Just(Outcome::Status(429)),
        4 => retry_after(),
        1 => Just(Outcome::NotModified),
        4 => select(vec![400, 404, 405]).prop_map(Outcome::Status),
        3 => select(vec![204, 302, 413, 414, 431, 494, 508]).prop_map(Outcome::Status),
        4 => Just(Outcome::Unreachable),
        3 => Just(Outcome::TimedOut),
        2 => Just(Outcome::TooLarge),
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
