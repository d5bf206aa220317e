//! What counts as a change, and which answers are wrong because of it.

use http::{HeaderMap, HeaderValue};

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
    fn new(lists: usize) -> Self {
        let catalogue = Catalogue::for_tests(Vec::new());
        let key = |list: usize| {
            let (operation, path) = catalogue.operation("/v2/p/products").unwrap();
            let query = format!("product_id={list}");
            let key = RequestKey::read(&catalogue, operation, path, Some(&query), &HeaderMap::new(), false).unwrap();
            CacheKey { owner: None, key: Arc::new(key) }
        };
        let (begin, ttl) = (Clock::System.now(), Duration::from_secs(300));
        let counters = vec![Arc::default(); lists];
        let keys = (0..lists).map(key).collect();
        let bench = Self { staleness: Staleness::default(), begin, keys, counters, sent: vec![0; lists], ttl };
        bench.staleness.seconds(begin);
        bench
    }

    /// Adds a list whose key has a query of this length.
    fn add_list(&mut self, length: usize) -> usize {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, path) = catalogue.operation("/v2/p/products").unwrap();
        let query = format!("product_id={}", "x".repeat(length));
        let key = RequestKey::read(&catalogue, operation, path, Some(&query), &HeaderMap::new(), false).unwrap();
        self.keys.push(CacheKey { owner: None, key: Arc::new(key) });
        self.counters.push(Arc::default());
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

#[test]
fn answers_between_equal_looks_were_right() {
    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    let answers = bench.answers(end);
    assert_eq!(answers.answers, f64::from(21 * MINUTE));
    let StaleAnswers { ratio, lower, upper } = answers.stale.unwrap();
    assert!(lower == 0.0 && ratio < 0.005 && upper < 0.05, "{ratio} {upper}");
}

#[test]
fn a_change_makes_about_half_of_the_answers_between_the_looks_wrong() {
    let mut bench = Bench::new(1);
    let end = bench.looks(&format!("{CALM} A2 B2"));
    let [wrong, lower, upper] = bench.wrong(end);
    assert!(wrong > 20.0 && wrong < 42.0, "{wrong}");
    assert!(lower < 5.0 && upper > 55.0, "{lower} {upper}");
}

#[test]
fn looks_at_other_lists_narrow_down_the_time_of_a_change() {
    let mut bench = Bench::new(3);
    // All lists change together each ten minutes. The other lists are looked at around the change.
    let mut version = 1;
    for minute in 0..55 {
        let second = minute * MINUTE;
        let look = |version: u32, caller: &str| format!("{caller}{version}");
        bench.look(0, &look(version, "A"), second);
        bench.answer(0, second..second + MINUTE);
        bench.look(1, &look(version, "B"), second + 38);
        version += u32::from(minute % 10 == 5);
        bench.look(2, &look(version, "C"), second + 42);
    }
    // Without the other lists, five changes would make 150 answers wrong, give or take 75.
    let [wrong, lower, upper] = bench.wrong(55 * MINUTE);
    assert!((wrong - 100.0).abs() < 10.0, "{wrong}");
    assert!(upper - lower < 40.0, "{lower} {upper}");
}

#[test]
fn a_difference_counts_when_a_second_look_confirms_it() {
    for (looks, is_change) in [
        ("A1 B1 A2 B2", true),
        ("A1 B1 A2 A2", true),
        ("A1 B1 A2 B3", true),
        ("A1 B1 A2", false),
        ("A1 B1 C2 C2", false),
        ("A1 B1 C2 C2 C3 C3", true),
    ] {
        let mut bench = Bench::new(1);
        bench.looks(looks);
        let state = bench.staleness.state.lock();
        let key = state.scopes.values().next().unwrap().keys.values().next().unwrap();
        let changes = key.spans(false).iter().filter(|span| matches!(span, history::Span::Changed { .. })).count();
        assert_eq!(changes > 0, is_change, "{looks}");
    }
}

#[test]
fn a_digest_that_returns_retracts_what_was_between() {
    // A limited view, once and several times in a row; a timestamp; and one caller that sees an odd body once.
    for between in ["C9", "C9 C9", "C8 B1 C9", "B9"] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} {between} A1"));
        let [wrong, lower, upper] = bench.wrong(end);
        assert!(wrong < 5.0 && lower == 0.0 && upper < 30.0, "{between}: {wrong} {upper}");
    }
}

#[test]
fn an_odd_caller_does_not_hide_or_add_changes() {
    for odd in [["C9", "C9"], ["C8", "C9"], ["C7", "C2"]] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} C0 A1 {} A2 {} B2", odd[0], odd[1]));
        let [wrong, _, upper] = bench.wrong(end);
        assert!(wrong > 20.0 && wrong < 130.0 && upper < 140.0, "{odd:?}: {wrong} {upper}");
        let runs = bench.staleness.state.lock().runs;
        assert_eq!(runs, 2, "{odd:?}");
    }
}

#[test]
fn the_odd_caller_is_the_one_that_sees_something_else_than_several_others() {
    let mut bench = Bench::new(1);
    // The odd caller comes first.
    let end = bench.looks(&format!("C9 {CALM} C9 A1 C9 A1"));
    assert!(bench.wrong(end)[0] < 5.0, "{:?}", bench.wrong(end));
    assert_eq!(bench.staleness.state.lock().runs, 1);
}

#[test]
fn answers_after_the_last_look_may_be_wrong_if_the_list_changes_often() {
    let mut bench = Bench::new(1);
    let mut looks = String::from("A0 B0");
    (1..25).for_each(|version| looks += &format!(" A{version} B{version}"));
    let end = bench.looks(&looks);
    let before = bench.wrong(end);
    // A caller asks for ten minutes, and there is no look.
    bench.answer(0, end..end + 10 * MINUTE);
    let after = bench.wrong(end + 10 * MINUTE);
    assert!(after[0] - before[0] > 300.0, "{before:?} {after:?}");
    assert!(after[2] - after[1] > before[2] - before[1], "{before:?} {after:?}");
}

#[test]
fn only_the_last_hour_counts() {
    let mut bench = Bench::new(1);
    bench.looks(&format!("{CALM} A2 B2 A2"));
    for minute in 30..100 {
        bench.look(0, "A2", minute * MINUTE);
        bench.answer(0, minute * MINUTE..minute * MINUTE + 30);
    }
    let answers = bench.answers(100 * MINUTE);
    assert!((answers.answers - 1800.0).abs() <= 30.0, "{answers:?}");
    assert!(answers.stale.unwrap().ratio < 0.001);
}

#[test]
fn little_evidence_is_unknown() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.answers(0), Answers::default());
    let end = bench.looks("A1 B1 A1");
    assert_eq!(bench.answers(end).stale, None, "three looks");
    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    assert!(bench.answers(end).stale.is_some());
    assert_eq!(bench.answers(end + 2 * HOUR).stale, None, "no answers in the last hour");
}

#[test]
fn looks_of_long_ago_are_no_evidence() {
    let mut bench = Bench::new(1);
    bench.ttl = Duration::from_secs(8 * 3600);
    let end = bench.looks(CALM);
    // A night without looks, but with answers.
    bench.answer(0, end..end + 4 * HOUR);
    let quiet = bench.answers(end + 4 * HOUR);
    assert!(quiet.answers > 1000.0 && quiet.stale.is_none(), "{quiet:?}");
    assert_eq!(quiet.changes_per_hour, None);
    // Some looks in the morning are too few.
    bench.look(0, "A1", end + 4 * HOUR);
    bench.look(0, "B1", end + 4 * HOUR + MINUTE);
    bench.answer(0, end + 4 * HOUR + MINUTE..end + 4 * HOUR + 2 * MINUTE);
    assert_eq!(bench.answers(end + 4 * HOUR + 2 * MINUTE).stale, None);
}

#[test]
fn a_look_that_arrives_after_a_later_one_is_ignored() {
    for late in ["A1", "B2", "C3"] {
        let mut bench = Bench::new(1);
        let end = bench.looks(&format!("{CALM} A2 B2"));
        let before = bench.answers(end);
        let (counters, sent) = (Arc::clone(&bench.counters[0]), bench.sent[0]);
        bench.look(0, late, end - MINUTE - MINUTE / 2);
        (bench.counters[0], bench.sent[0]) = (counters, sent);
        assert_eq!(bench.answers(end + 1).stale, before.stale, "{late}");
        bench.look(0, "A3", end + MINUTE);
        bench.look(0, "B3", end + 2 * MINUTE);
        assert!(bench.answers(end + 2 * MINUTE).stale.is_some(), "{late}");
    }
}

#[test]
fn a_response_that_takes_longer_than_the_time_to_the_next_one_is_no_span() {
    let mut bench = Bench::new(2);
    bench.looks(CALM);
    for (version, second) in (2..40).zip((21 * MINUTE..).step_by(20)) {
        let body = format!("A{version}");
        let digest = *blake3::hash(body.as_bytes()).as_bytes();
        let (sent, received) = (bench.at(second), bench.at(second + 50));
        let observation = Observation { digest, caller: caller(["A", "B"][version % 2]), sent, received };
        for key in &bench.keys {
            bench.staleness.look(key, &observation, Arc::default());
        }
    }
    bench.answers(40 * MINUTE);
}

#[test]
fn a_private_list_that_always_differs_moves_nothing() {
    let run = |with_timestamps: bool| {
        let mut bench = Bench::new(2);
        let operation = adaptive(&bench);
        let private = |key: &CacheKey, owner| CacheKey { owner: Some(caller(owner)), key: Arc::clone(&key.key) };
        bench.keys = vec![private(&bench.keys[0], "B"), private(&bench.keys[1], "A")];
        for minute in 0..300 {
            bench.look(0, &format!("B{}", minute / 100), minute * MINUTE);
            bench.answer(0, minute * MINUTE..minute * MINUTE + MINUTE);
            if with_timestamps {
                bench.look(1, &format!("A{}", 1000 + minute), minute * MINUTE);
                bench.answer(1, minute * MINUTE..minute * MINUTE + MINUTE);
            }
        }
        let known = bench.answers(300 * MINUTE);
        (known, bench.staleness.ttl(&operation, bench.at(300 * MINUTE)))
    };
    let (known, ttl) = run(false);
    assert!(known.stale.is_some());
    assert_eq!(run(true), (known, ttl));
}

#[test]
fn too_few_steps_make_the_ratio_unknown() {
    let mut bench = Bench::new(1);
    let end = f64::from(bench.looks(&format!("{CALM} A2 B2")));
    let state = bench.staleness.state.lock();
    let (scope, looks) = state.scopes.iter().next().unwrap();
    let collect = || measure::collect(scope, looks, end);
    for (steps, is_known) in [(0, false), (100, false), (1_000_000, true)] {
        let mut estimator = Estimator::with_steps(1, end, steps);
        estimator.add(collect());
        let Measurement { known, hour } = estimator.finish();
        assert_eq!((known.all.stale.is_some(), hour.is_some()), (is_known, is_known), "{steps}");
        assert_eq!(known.projects[0].1.stale.is_some(), is_known, "{steps}");
    }
}

#[test]
fn an_estimate_is_due_each_minute_if_it_is_used_and_shown_only_when_finished() {
    let bench = Bench::new(1);
    let (mut fixed, used) = ((**bench.keys[0].key.operation()).clone(), adaptive(&bench));
    fixed.name = Arc::from("Fixed");
    let due =
        |operation, estimate_use, second| bench.staleness.begin_refresh(operation, estimate_use, bench.at(second));
    assert!(due(&fixed, EstimateUse::Fetch, 0) && due(&used, EstimateUse::Fetch, 0));
    assert!(!due(&fixed, EstimateUse::Display, 59) && !due(&used, EstimateUse::Display, 59), "one has begun");
    assert!(!due(&fixed, EstimateUse::Fetch, 61) && due(&used, EstimateUse::Fetch, 61));
    assert!(due(&fixed, EstimateUse::Display, 62));
    assert!(!due(&fixed, EstimateUse::Fetch, 661) && due(&fixed, EstimateUse::Fetch, 662));

    let mut bench = Bench::new(1);
    let end = bench.looks(CALM);
    let operation = Arc::clone(bench.keys[0].key.operation());
    assert_eq!(bench.staleness.of_operation(&operation, bench.at(end)).all, Answers::default());
    assert!(bench.answers(end).stale.is_some());
    assert_eq!(bench.staleness.of_operation(&operation, bench.at(end + HOUR)).all.stale, None, "an hour old");
}

#[test]
fn the_key_with_the_fewest_answers_makes_room() {
    let mut bench = Bench::new(3 * MAX_KEYS_OF_SCOPE);
    for list in 0..10 {
        bench.look(list, "A1", 0);
        bench.answer(list, 0..20);
    }
    // Many other lists, each asked for once or twice.
    for list in 10..bench.keys.len() {
        let second = u32::try_from(list).unwrap();
        bench.look(list, "A1", second);
        bench.answer(list, second..second + 2);
    }
    let state = bench.staleness.state.lock();
    let keys = &state.scopes.values().next().unwrap().keys;
    assert_eq!((keys.len(), state.keys, state.runs), (MAX_KEYS_OF_SCOPE, MAX_KEYS_OF_SCOPE, MAX_KEYS_OF_SCOPE));
    assert!(bench.keys[..10].iter().chain(bench.keys.last()).all(|key| keys.contains_key(key)));
}

#[test]
fn the_memory_is_bounded() {
    let mut bench = Bench::new(MAX_KEYS_OF_SCOPE + 10);
    for version in 0..2 * MAX_RUNS {
        for list in 0..bench.keys.len() {
            let second = u32::try_from(version).unwrap() * 10;
            bench.look(list, &format!("A{version}"), second);
            if list < MAX_KEYS_OF_SCOPE - 1 {
                bench.answer(list, second..second + 5);
            }
        }
    }
    let state = bench.staleness.state.lock();
    assert_eq!(state.keys, MAX_KEYS_OF_SCOPE);
    assert_eq!(state.runs, MAX_RUNS * (MAX_KEYS_OF_SCOPE - 1) + 1);
    drop(state);
    // After a while without looks, other keys get their place.
    let other = bench.keys.len() - 2;
    bench.look(other, "A1", 10 * HOUR);
    let state = bench.staleness.state.lock();
    assert_eq!((state.keys, state.runs), (1, 1));
}

#[test]
fn answers_of_which_looks_were_dropped_are_not_judged() {
    let mut bench = Bench::new(1);
    let mut looks = String::from("A0");
    (1..70).for_each(|version| looks += &format!(" B{version} A{version}"));
    // A look a minute with a change every two minutes fills the runs in more than two hours; twice as many do not fit.
    let end = bench.looks(&looks);
    assert!((bench.answers(end).answers - 3600.0).abs() <= 60.0, "{:?}", bench.answers(end));
    let mut looks = String::from("A0");
    (1..200).for_each(|version| looks += &format!(" {}{version}", ['A', 'B'][version % 2]));
    let mut bench = Bench::new(1);
    let mut second = 0;
    for look in looks.split(' ') {
        bench.look(0, look, second);
        bench.answer(0, second..second + 20);
        second += 20;
    }
    let answers = bench.answers(second).answers;
    assert!(answers < 22.0 * 60.0 && answers > 20.0 * 60.0, "{answers}");
}

/// An operation that chooses its ttl from 30 s to 1 h.
fn adaptive(bench: &Bench) -> Operation {
    let mut operation = (**bench.keys[0].key.operation()).clone();
    let (min, max) = (Duration::from_secs(30), Duration::from_secs(3600));
    operation.adaptive_ttl = Some(AdaptiveTtl { max_stale: 0.01, min, max });
    operation
}

#[test]
fn the_ttl_is_the_configured_one_while_the_ratio_is_unknown() {
    let mut bench = Bench::new(1);
    let mut operation = adaptive(&bench);
    bench.looks("A1 B1 A1");
    bench.staleness.refresh(&operation, bench.at(200));
    assert_eq!(bench.staleness.ttl(&operation, bench.at(200)), operation.ttl);
    operation.ttl = Duration::from_secs(2);
    let bench = Bench::new(1);
    assert_eq!(bench.staleness.ttl(&operation, bench.at(200)), Duration::from_secs(30), "within min and max");
    operation.adaptive_ttl = None;
    assert_eq!(bench.staleness.ttl(&operation, bench.at(200)), operation.ttl);
}

#[test]
fn the_ttl_changes_by_at_most_a_factor_of_two_an_hour() {
    for (period, limit) in [(2, 30.0), (u32::MAX, 3600.0)] {
        let mut bench = Bench::new(1);
        let operation = adaptive(&bench);
        let mut ttl = bench.staleness.ttl(&operation, bench.at(0)).as_secs_f64();
        for minute in 0..60 * HOUR / 60 {
            bench.look(0, &format!("{}{}", ["A", "B"][minute as usize % 2], minute / period), minute * MINUTE);
            bench.answer(0, minute * MINUTE..minute * MINUTE + MINUTE);
            if minute % 30 == 29 {
                let now = bench.at((minute + 1) * MINUTE);
                bench.staleness.refresh(&operation, now);
                let next = bench.staleness.ttl(&operation, now).as_secs_f64();
                let factor = next / ttl;
                assert!(factor < 1.42 && factor > 0.70, "{ttl} {next}");
                ttl = next;
            }
        }
        assert_eq!(ttl, limit, "a change each {period} minutes");
    }
}

#[test]
fn a_large_key_is_not_measured_and_takes_no_memory() {
    let mut bench = Bench::new(0);
    let (small, large) = (bench.add_list(200), bench.add_list(2_000));
    for (list, keys) in [(large, 0), (small, 1)] {
        bench.look(list, "A1", 1);
        assert_eq!(bench.staleness.state.lock().keys, keys);
    }
}
