//! An estimator, and lists of one operation, for the tests of each topic.

mod attacks;
mod bounds;
mod changes;
mod estimate;
mod ttl;

use http::{HeaderMap, HeaderValue};

use super::history::MAX_RUNS;
use super::looks::{MANY_RUNS, MAX_KEYS, MAX_KEYS_OF_SCOPE};
use super::*;
use crate::catalogue::{AdaptiveTtl, Catalogue};
use crate::clock::Clock;
use crate::request::caller::{Caller, Callers};
use crate::request::key::RequestKey;

const MINUTE: u32 = 60;
const HOUR: u32 = 3600;

/// An estimator, and lists of one operation.
struct Bench {
    staleness: Staleness,
    begin: Instant,
    keys: Vec<CacheKey>,
    counters: Vec<Arc<AnswerCounters>>,
    sent: Vec<u32>,
    /// Of the responses.
    ttl: Duration,
}

impl Bench {
    /// So many lists of one project, whose operation chooses its ttl from 30 s to 1 h.
    fn new(lists: usize) -> Self {
        let (begin, ttl) = (Clock::System.now(), Duration::from_secs(300));
        let staleness = Staleness::default();
        let mut bench = Self { staleness, begin, keys: Vec::new(), counters: Vec::new(), sent: Vec::new(), ttl };
        bench.staleness.seconds(begin);
        for list in 0..lists {
            bench.add_list("p", &list.to_string());
        }
        bench
    }

    /// Adds a list of a project, and returns its index.
    fn add_list(&mut self, project: &str, product: &str) -> usize {
        self.keys.push(cache_key(&adaptive(), project, product));
        self.counters.push(Arc::new(AnswerCounters::new(self.ttl)));
        self.sent.push(0);
        self.keys.len() - 1
    }

    fn at(&self, second: u32) -> Instant {
        self.begin + Duration::from_secs(u64::from(second))
    }

    /// A look at a list, written as a caller and a body: "A1".
    fn look(&mut self, list: usize, look: &str, second: u32) {
        let counters = Arc::new(AnswerCounters::new(self.ttl));
        (self.counters[list], self.sent[list]) = (Arc::clone(&counters), second);
        let caller = caller(&look[..1]);
        let digest = *blake3::hash(&look.as_bytes()[1..]).as_bytes();
        let observation = Observation { digest, caller, sent: self.at(second), received: self.at(second) };
        self.staleness.look(&self.keys[list], &observation, counters);
    }

    /// Answers from the latest response of a list, one each second.
    fn answer(&self, list: usize, seconds: std::ops::Range<u32>) {
        for second in seconds {
            self.counters[list].add(Duration::from_secs(u64::from(second - self.sent[list])));
        }
    }

    /// Looks at the first list, one a minute, each followed by an answer every second.
    fn looks(&mut self, looks: &str) -> u32 {
        let mut second = 0;
        for look in looks.split(' ') {
            self.look(0, look, second);
            self.answer(0, second..second + MINUTE);
            second += MINUTE;
        }
        second
    }

    fn answers(&self, second: u32) -> Answers {
        let (operation, now) = (self.keys[0].key.operation(), self.at(second));
        self.staleness.refresh(operation, now);
        let answers = self.staleness.of_operation(operation, now).all;
        if let Some(StaleAnswers { ratio, lower, upper }) = answers.stale {
            assert!((0.0..=ratio).contains(&lower) && (ratio..=1.0).contains(&upper), "{lower} {ratio} {upper}");
        }
        answers
    }

    fn refresh(&self, second: u32) {
        self.staleness.refresh(self.keys[0].key.operation(), self.at(second));
    }

    /// The ttl of the scope of a list, in seconds.
    fn ttl(&self, list: usize, second: u32) -> f64 {
        self.staleness.ttl(self.keys[list].key.scope(), self.at(second)).as_secs_f64()
    }

    /// The estimated number of wrong answers, with its interval.
    fn wrong(&self, second: u32) -> [f64; 3] {
        let answers = self.answers(second);
        let StaleAnswers { ratio, lower, upper } = answers.stale.expect("enough evidence");
        [ratio, lower, upper].map(|share| share * answers.answers)
    }
}

fn caller(name: &str) -> Caller {
    Callers::new([0; 32]).of_token(&HeaderValue::from_str(name).unwrap())
}

/// Enough looks at an unchanged list.
const CALM: &str = "A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1 B1 A1";

/// Settings that let an operation choose its ttl from 30 s to 1 h.
fn adaptive() -> Option<AdaptiveTtl> {
    Some(AdaptiveTtl { max_stale: 0.01, min: Duration::from_secs(30), max: Duration::from_secs(3600) })
}

/// The shared key of a list of a project.
fn cache_key(adaptive_ttl: &Option<AdaptiveTtl>, project: &str, product: &str) -> CacheKey {
    let catalogue = Catalogue::for_tests(Vec::new());
    let path = format!("/v2/{project}/products");
    let (operation, path) = catalogue.operation(&path).unwrap();
    let operation = Arc::new(Operation { adaptive_ttl: *adaptive_ttl, ..(**operation).clone() });
    let query = format!("product_id={product}");
    let key = RequestKey::read(&catalogue, &operation, path, Some(&query), &HeaderMap::new(), false).unwrap();
    CacheKey { owner: None, key: Arc::new(key) }
}
