//! Who asks for what, and what upstream held to be true when: what every answer is judged by.
//!
//! Nothing here knows of the gateway.

use std::time::Instant;

use http::header::{self, SET_COOKIE};
use http::{HeaderValue, StatusCode};
use workspace_gateway::testing::simulator::Simulator;

use super::settings::RETRY_AFTER;

pub(crate) const PROJECTS: usize = 3;
/// Callers of each project who are shown everything, and such as are shown less.
const WIDE: usize = 8;
const NARROW: usize = 2;

/// One who asks.
pub(crate) struct Caller {
    pub(crate) token: String,
    /// None if its token is nobody's.
    pub(crate) project: Option<usize>,
    /// Whether it is shown less than others. Then it asks only where callers share nothing.
    pub(crate) is_narrow: bool,
}

/// Something that is asked.
pub(crate) struct CacheRequest {
    pub(crate) project: usize,
    /// Its operation in the project.
    pub(crate) scope: usize,
    /// Ways to spell it.
    pub(crate) targets: Vec<String>,
    pub(crate) language: Option<&'static str>,
    /// Whether each caller has answers of its own.
    pub(crate) is_private: bool,
}

fn questions(project: usize) -> Vec<CacheRequest> {
    let id = project_id(project);
    let question = |scope, paths: &[&str], language| {
        let targets = paths.iter().map(|path| path.replace("PROJECT", &id)).collect();
        CacheRequest { project, scope, targets, language, is_private: scope == 2 }
    };
    vec![
        question(
            0,
            &[
                "/v2/PROJECT/products?os_type=Linux&limit=20",
                "/v2/PROJECT/products?limit=20&os_type=Linux",
                "/v2/PROJECT/products?offset=0&limit=20&os_type=%4cinux",
            ],
            None,
        ),
        question(0, &["/v2/PROJECT/products?os_type=Windows", "/v2/PROJECT/products?os_type=Windows&limit=100"], None),
        question(0, &["/v2/PROJECT/products?limit=5&offset=7"], None),
        question(0, &["/v2/PROJECT/products?limit=5&offset=7"], Some("zh-cn")),
        // One that upstream won't have.
        question(0, &["/v2/PROJECT/products?limit=101"], None),
        question(1, &["/v2/PROJECT/products/sharer?is_gpu=0&limit=10"], None),
        question(
            2,
            &["/v1/PROJECT/product?package_type=general", "/v1/PROJECT/product?os_type=&package_type=general"],
            None,
        ),
        question(2, &["/v1/PROJECT/product?charge_mode=1&os_type=Linux"], None),
    ]
}

fn project_id(project: usize) -> String {
    format!("{:032x}", project + 1)
}

/// What upstream is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    Healthy,
    /// Slower than anybody's patience.
    Slow,
    /// Slower than the deadline.
    Stuck,
    Failing(StatusCode),
    Throttling,
    /// This caller alone is throttled.
    ThrottlingOne(usize),
    /// Connections are closed instead of an answer.
    Resetting,
    /// Answers break off half way.
    Truncating,
    /// Nobody listens.
    Dead,
}

impl Weather {
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
        }
    }

    /// Whether it fails calls for other reasons than the caller's.
    pub(crate) fn fails(self) -> bool {
        !matches!(self, Self::Healthy | Self::Slow)
    }
}

/// What something has been. Two values are true at once while one is replaced by the other.
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

    /// Another value is about to be true.
    pub(crate) fn begin(&mut self, what: T, now: Instant) {
        self.0.push(Span { what, from: now, until: None });
    }

    /// The value before is not true any more.
    pub(crate) fn settle(&mut self, now: Instant) {
        let before = self.0.len() - 2;
        self.0[before].until = Some(now);
    }

    /// All that was true at some moment of a span of time.
    pub(crate) fn within(&self, from: Instant, to: Instant) -> impl Iterator<Item = T> {
        let meets = move |span: &&Span<T>| span.from <= to && span.until.is_none_or(|until| until >= from);
        // The latest first, which are asked about.
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

    /// How many values there had been by a moment.
    pub(crate) fn count_by(&self, moment: Instant) -> usize {
        self.0.partition_point(|span| span.from <= moment)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = T> {
        self.0.iter().map(|span| span.what)
    }
}

/// Everybody and everything.
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) callers: Vec<Caller>,
    pub(crate) questions: Vec<CacheRequest>,
}

impl World {
    pub(crate) fn new(simulator: Simulator) -> Self {
        let mut callers = Vec::new();
        for project in 0..PROJECTS {
            for number in 0..WIDE + NARROW {
                // As long as usual ones are, now and then; the others leave the machine more time.
                let length = if number == 0 { 4_800 } else { 200 };
                let token = simulator.token_of_length(&project_id(project), length);
                let is_narrow = number >= WIDE;
                if is_narrow {
                    simulator.views_differ(&token);
                }
                callers.push(Caller { token, project: Some(project), is_narrow });
            }
        }
        callers.push(Caller { token: "nobody's".to_owned(), project: None, is_narrow: false });
        simulator.name_projects(true);
        let world = Self { simulator, callers, questions: (0..PROJECTS).flat_map(questions).collect() };
        world.give_headers(false);
        world
    }

    /// Has upstream give each answer a cookie, which is one client's own, and say when to come again, or not.
    pub(crate) fn give_headers(&self, retry_after: bool) {
        self.simulator.remove_headers();
        self.simulator.add_header(SET_COOKIE, HeaderValue::from_static("session=one-client's"));
        if retry_after {
            self.simulator.add_header(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        }
    }
}

/// What was true when.
pub(crate) struct Journal {
    pub(crate) weather: Timeline<Weather>,
    /// The version of the catalogue.
    pub(crate) version: Timeline<u32>,
    /// For each caller, whether its token is good in its project.
    pub(crate) standing: Vec<Timeline<bool>>,
}

impl Journal {
    pub(crate) fn new(world: &World, now: Instant) -> Self {
        Self {
            weather: Timeline::new(Weather::Healthy, now),
            version: Timeline::new(0, now),
            standing: world.callers.iter().map(|caller| Timeline::new(caller.project.is_some(), now)).collect(),
        }
    }

    /// Whether upstream was like that at some moment.
    pub(crate) fn was(&self, from: Instant, to: Instant, like: impl Fn(Weather) -> bool) -> bool {
        self.weather.within(from, to).any(like)
    }
}
