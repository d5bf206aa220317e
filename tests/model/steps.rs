//! What can happen: the steps of a sequence, the settings it runs with, and how likely each is.
//!
//! A step says "the third of the calls in the air", never "call 17": whatever else is left out when a
//! failing sequence is made smaller, the rest still means something.

use crate::support::WAITING;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::world::{CALLERS, CallerId, Change, KeyId, Ms, SCOPES, ScopeId};

/// How many steps a sequence has.
pub const STEPS: usize = 50;

pub const SECOND: Ms = 1000;

/// The settings that the rules read, short and different, so that each limit is met apart from others.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub grant_ttl: Ms,
    pub serves_in_outage: bool,
    pub max_flights: usize,
    pub max_waiters: usize,
}

impl Settings {
    pub const STALE_IF_ERROR: Ms = 300 * SECOND;
    pub const OUTAGE_GRACE: Ms = 200 * SECOND;
    pub const DENIAL_TTL: Ms = 2 * SECOND;
    pub const ANSWER_TIMEOUT: Ms = 35 * SECOND;
    /// Not a setting: how long it is remembered that an answer can't be kept.
    pub const MARK_TTL: Ms = 60 * SECOND;

    /// How long an answer in a scope is fresh.
    pub fn ttl(scope: ScopeId) -> Ms {
        if SCOPES[scope].is_shared { 60 * SECOND } else { 30 * SECOND }
    }

    /// Grants that end while a call is in the air, before and after the answers they give access to; with
    /// and without grace; with bounds that are met or not.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (max_flights, max_waiters) in [(4096, 65536), (4096, 65536), (2, 65536), (4096, 2)] {
            for grant_ttl in [20 * SECOND, 45 * SECOND, 90 * SECOND] {
                for serves_in_outage in [true, true, false] {
                    all.push(Self { grant_ttl, serves_in_outage, max_flights, max_waiters });
                }
            }
        }
        all
    }

    /// As the gateway's configuration file has them.
    pub fn to_toml(self) -> String {
        let seconds = |ms: Ms| format!("\"{}s\"", ms / SECOND);
        format!(
            "[cache]\nttl = {}\nstale_if_error = {}\n{WAITING}\
             [grants]\ngrant_ttl = {}\ndenial_ttl = {}\noutage_grace = {}\non_outage = \"{}\"\n\
             [[operation]]\nname = \"ListProduct\"\nttl = {}\nsharing = \"caller\"\n\
             [upstream]\nanswer_timeout = {}\n\
             [limits]\nmax_flights = {}\nmax_waiters = {}\n",
            seconds(Self::ttl(0)),
            seconds(Self::STALE_IF_ERROR),
            seconds(self.grant_ttl),
            seconds(Self::DENIAL_TTL),
            seconds(Self::OUTAGE_GRACE),
            if self.serves_in_outage { "serve" } else { "refuse" },
            seconds(Self::ttl(2)),
            seconds(Self::ANSWER_TIMEOUT),
            self.max_flights,
            self.max_waiters,
        )
    }
}

/// One of so many: whatever the number, it is taken modulo what there is.
pub type Pick = usize;

/// A millisecond passes before each.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests come in at the same moment, in this order; straight from clients or by another gateway.
    Ask { key: KeyId, callers: Vec<CallerId>, is_plain: bool },
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
            Self::Ask { key, callers, is_plain } if callers.len() > 1 => (0..callers.len())
                .map(|left_out| {
                    let mut callers = callers.clone();
                    callers.remove(left_out);
                    Self::Ask { key: *key, callers, is_plain: *is_plain }
                })
                .collect(),
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
    let crowd = prop_oneof![3 => Just(None), 1 => crowd().prop_map(Some)];
    let steps = (crowd, vec(step(), STEPS)).prop_map(|(crowd, mut steps)| {
        steps.splice(..crowd.as_ref().map_or(0, Vec::len), crowd.unwrap_or_default());
        steps
    });
    (0..Settings::all().len(), any::<bool>(), seldom, steps)
        .prop_map(|(settings, views_differ, lingers, steps)| Sequence { settings, views_differ, lingers, steps })
}

/// What hardly comes about by chance: everyone is known, nothing is there, all ask, and one leader after the
/// other has something to show for it, or not.
fn crowd() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![Just(Outcome::Status(429)), outcome()];
    (outcome, any::<bool>()).prop_map(|(outcome, purges)| {
        let ask = || Step::Ask { key: 0, callers: (0..CALLERS).collect(), is_plain: true };
        let prove = Step::Land(vec![(0, Outcome::Truth { as_sent: true }); CALLERS]);
        let purge = Step::Purge { operation: None, project: None };
        vec![ask(), prove, purge, ask(), Step::Series { outcome, purges }]
    })
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..64_usize;
    let ask = (key(), callers(), prop_oneof![3 => Just(true), 1 => Just(false)]);
    prop_oneof![
        38 => ask.prop_map(|(key, callers, is_plain)| Step::Ask { key, callers, is_plain }),
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

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        28 => Just(Outcome::Truth { as_sent: false }),
        28 => Just(Outcome::Truth { as_sent: true }),
        3 => Just(Outcome::NoStore),
        1 => Just(Outcome::Wordy),
        3 => Just(Outcome::ErrorInDisguise),
        8 => select(vec![500, 502, 503, 504]).prop_map(Outcome::Status),
        3 => Just(Outcome::Status(429)),
        4 => select(vec![400, 404, 405]).prop_map(Outcome::Status),
        3 => select(vec![204, 302, 409, 413, 414, 431, 494, 508]).prop_map(Outcome::Status),
        4 => Just(Outcome::Unreachable),
        3 => Just(Outcome::TimedOut),
        2 => Just(Outcome::TooLarge),
    ]
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
