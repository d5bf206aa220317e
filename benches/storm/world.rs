//! The callers, the resources, and the journal of upstream's states. Responses are judged by them.
//!
//! Nothing here depends on the gateway.

use std::time::{Duration, Instant};

use http::header::{self, SET_COOKIE};
use http::{HeaderValue, StatusCode};
use workspace_gateway::testing::simulator::Simulator;

use super::client::Exchange;
use super::endpoint::{Standing, Told};
use super::settings::{RETRY_AFTER, SYNC};

pub(crate) const PROJECTS: usize = 3;
/// Callers of each project that see the full catalogue, and those that see less.
const UNRESTRICTED: usize = 8;
const RESTRICTED: usize = 2;

pub(crate) struct Caller {
    pub(crate) token: String,
    /// `None` if the token is invalid.
    pub(crate) project: Option<usize>,
    /// Whether it sees less than others. Then it only requests resources that callers do not share.
    pub(crate) is_restricted: bool,
}

/// A list that callers request.
pub(crate) struct Resource {
    pub(crate) project: usize,
    /// The number of its operation.
    pub(crate) scope: usize,
    /// Equivalent paths and queries of it.
    pub(crate) targets: Vec<String>,
    pub(crate) language: Option<&'static str>,
    /// Whether callers do not share responses.
    pub(crate) is_private: bool,
}

impl Resource {
    /// Whether this caller asks for it. Upstream refuses those of other projects.
    pub(crate) fn is_for(&self, caller: &Caller, project: usize) -> bool {
        self.project == project && (self.is_private || !caller.is_restricted)
    }
}

fn resources(project: usize) -> Vec<Resource> {
    let id = project_id(project);
    let resource = |scope, paths: &[&str], language| {
        let targets = paths.iter().map(|path| path.replace("PROJECT", &id)).collect();
        Resource { project, scope, targets, language, is_private: scope == 2 }
    };
    vec![
        resource(
            0,
            &[
                "/v2/PROJECT/products?os_type=Linux&limit=20",
                "/v2/PROJECT/products?limit=20&os_type=Linux",
                "/v2/PROJECT/products?offset=0&limit=20&os_type=%4cinux",
            ],
            None,
        ),
        resource(0, &["/v2/PROJECT/products?os_type=Windows", "/v2/PROJECT/products?os_type=Windows&limit=100"], None),
        resource(0, &["/v2/PROJECT/products?limit=5&offset=7"], None),
        resource(0, &["/v2/PROJECT/products?limit=5&offset=7"], Some("zh-cn")),
        // Upstream answers this one 400.
        resource(0, &["/v2/PROJECT/products?limit=101"], None),
        resource(1, &["/v2/PROJECT/products/sharer?is_gpu=0&limit=10"], None),
        resource(
            2,
            &["/v1/PROJECT/product?package_type=general", "/v1/PROJECT/product?os_type=&package_type=general"],
            None,
        ),
        resource(2, &["/v1/PROJECT/product?charge_mode=1&os_type=Linux"], None),
    ]
}

pub(crate) fn project_id(project: usize) -> String {
    format!("{:032x}", project + 1)
}

/// The condition of upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Condition {
    Healthy,
    /// Slower than `cache.stale_if_slow`.
    Slow,
    /// Slower than `upstream.answer_timeout`.
    Stuck,
    Failing(StatusCode),
    Throttling,
    /// Only this caller is throttled.
    ThrottlingOne(usize),
    /// Connections are closed without a response.
    Resetting,
    /// Responses are incomplete.
    Truncating,
    /// Connections are refused.
    Dead,
    /// Nothing arrives: the link of a gateway is cut. Only the simulation does that.
    #[allow(dead_code)]
    CutOff,
    /// The gateway has no descriptors or no memory for calls. Only the simulation does that.
    #[allow(dead_code)]
    Exhausted,
}

impl Condition {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Stuck => "stuck",
            Self::Failing(_) => "5xx",
            Self::Throttling => "429",
            Self::ThrottlingOne(_) => "429 for one",
            Self::Resetting => "reset",
            Self::Truncating => "truncated",
            Self::Dead => "dead",
            Self::CutOff => "cut off",
            Self::Exhausted => "exhausted",
        }
    }

    /// Whether calls fail.
    pub(crate) fn fails(self) -> bool {
        !matches!(self, Self::Healthy | Self::Slow)
    }
}

/// The values of something over time. During a change both the old and the new value are possible.
pub(crate) struct Timeline<T>(Vec<Span<T>>);

struct Span<T> {
    what: T,
    from: Instant,
    until: Option<Instant>,
}

impl<T: Copy> Timeline<T> {
    fn new(what: T, from: Instant) -> Self {
        Self(vec![Span { what, from, until: None }])
    }

    /// Call this before a change.
    pub(crate) fn begin(&mut self, what: T, now: Instant) {
        self.0.push(Span { what, from: now, until: None });
    }

    /// Call this after a change: the old value is no longer possible.
    pub(crate) fn settle(&mut self, now: Instant) {
        let before = self.0.len() - 2;
        self.0[before].until = Some(now);
    }

    /// All values that were possible at any moment of a span of time.
    pub(crate) fn within(&self, from: Instant, to: Instant) -> impl Iterator<Item = T> {
        let meets = move |span: &&Span<T>| span.from <= to && span.until.is_none_or(|until| until >= from);
        // Latest first: most queries are about them.
        self.0
            .iter()
            .rev()
            .take_while(move |span| span.until.is_none_or(|until| until >= from))
            .filter(meets)
            .map(|span| span.what)
    }

    pub(crate) fn latest(&self) -> T {
        self.0[self.0.len() - 1].what
    }

    /// The number of values up to a moment.
    pub(crate) fn count_by(&self, moment: Instant) -> usize {
        self.0.partition_point(|span| span.from <= moment)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = T> {
        self.0.iter().map(|span| span.what)
    }
}

pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) callers: Vec<Caller>,
    pub(crate) resources: Vec<Resource>,
}

impl World {
    pub(crate) fn new(simulator: Simulator) -> Self {
        let mut callers = Vec::new();
        for project in 0..PROJECTS {
            for number in 0..UNRESTRICTED + RESTRICTED {
                // One token in ten has the usual length. The others are short, to save CPU.
                let length = if number == 0 { 4_800 } else { 200 };
                let token = simulator.token_of_length(&project_id(project), length);
                let is_restricted = number >= UNRESTRICTED;
                if is_restricted {
                    simulator.restrict_view(&token);
                }
                callers.push(Caller { token, project: Some(project), is_restricted });
            }
        }
        callers.push(Caller { token: "invalid".to_owned(), project: None, is_restricted: false });
        simulator.include_project_in_lists(true);
        let world = Self { simulator, callers, resources: (0..PROJECTS).flat_map(resources).collect() };
        world.give_headers(false);
        world
    }

    /// Sets upstream's response headers: a cookie, which must not be shared, and perhaps `Retry-After`.
    pub(crate) fn give_headers(&self, retry_after: bool) {
        self.simulator.remove_headers();
        self.simulator.add_header(SET_COOKIE, HeaderValue::from_static("session=one-client's"));
        if retry_after {
            self.simulator.add_header(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        }
    }
}

/// The states of upstream over time.
pub(crate) struct Journal {
    pub(crate) condition: Timeline<Condition>,
    /// The same for upstream as single gateways reach it.
    pub(crate) links: Vec<Timeline<Condition>>,
    /// The versions of the catalogue, each by the moment at which it began.
    pub(crate) versions: Timeline<Instant>,
    /// For each caller, whether its token is valid in its project.
    pub(crate) token_states: Vec<Timeline<bool>>,
    pub(crate) purges: Vec<Purge>,
    /// Whether a gateway is down.
    pub(crate) down: Vec<Timeline<bool>>,
}

/// A purge at one gateway.
pub(crate) struct Purge {
    pub(crate) gateway: usize,
    /// `None`: everything.
    pub(crate) project: Option<usize>,
    pub(crate) begun: Instant,
    /// `None` while it is under way.
    pub(crate) ended: Option<Instant>,
    pub(crate) told: Told,
    /// Whether the gateway ended before the engine certainly had the purge for good.
    pub(crate) is_lost: bool,
}

impl Purge {
    /// Whether the gateway certainly had none of these entries any more when the request began.
    pub(crate) fn is_certain(&self, exchange: &Exchange) -> bool {
        let is_before = |moment: Option<Instant>, span: Duration| moment.is_some_and(|at| at + span < exchange.begun);
        if self.is_lost {
            return false;
        }
        self.gateway == exchange.gateway && is_before(self.ended, Duration::ZERO)
            || exchange.standing == Standing::InSync && is_before(self.told.get().copied(), SYNC)
    }
}

impl Journal {
    pub(crate) fn new(world: &World, gateways: usize, now: Instant) -> Self {
        Self {
            condition: Timeline::new(Condition::Healthy, now),
            links: (0..gateways).map(|_| Timeline::new(Condition::Healthy, now)).collect(),
            versions: Timeline::new(now, now),
            token_states: world.callers.iter().map(|caller| Timeline::new(caller.project.is_some(), now)).collect(),
            purges: Vec::new(),
            down: (0..gateways).map(|_| Timeline::new(false, now)).collect(),
        }
    }

    /// Whether upstream was in such a condition for a gateway at any moment of a span of time.
    pub(crate) fn was(&self, gateway: usize, from: Instant, to: Instant, like: impl Fn(Condition) -> bool) -> bool {
        self.condition.within(from, to).chain(self.links[gateway].within(from, to)).any(like)
    }
}
