//! When the catalogue changes, and its version at each moment. It is pure: the time is an argument, and a schedule is a
//! function of its seed, its mean interval and the time. So tests, benches in simulated time and `demo` can all use it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use blake3::{Hasher, OutputReader};

/// The number of lists of one rate whose schedules are remembered. Beyond it, they are computed again.
const MAX_SCHEDULES: usize = 10_000;

/// A Poisson process: changes are independent of each other, and their mean interval is given.
pub struct Changes {
    mean: Duration,
    numbers: OutputReader,
    /// The changes so far, since the begin. 16 bytes each.
    moments: Vec<Duration>,
}

impl Changes {
    /// One seed gives each unit, which is any name, its own changes.
    ///
    /// # Panics
    /// If the mean interval is zero.
    pub fn new(seed: u64, unit: &str, mean: Duration) -> Self {
        assert!(!mean.is_zero(), "the mean interval of changes is zero");
        let numbers = Hasher::new().update(&seed.to_le_bytes()).update(unit.as_bytes()).finalize_xof();
        Self { mean, numbers, moments: Vec::new() }
    }

    /// The number of changes from the begin until this time after it, inclusive.
    pub fn version_at(&mut self, elapsed: Duration) -> u32 {
        let count = self.count(elapsed);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The first change later than this time after the begin.
    pub fn next(&mut self, elapsed: Duration) -> Duration {
        let count = self.count(elapsed);
        self.moments[count]
    }

    fn count(&mut self, elapsed: Duration) -> usize {
        while self.moments.last().is_none_or(|last| *last <= elapsed) {
            let next = self.moments.last().copied().unwrap_or_default().saturating_add(self.interval());
            self.moments.push(next);
        }
        self.moments.partition_point(|moment| *moment <= elapsed)
    }

    /// A random interval, by the inverse of the exponential distribution.
    fn interval(&mut self) -> Duration {
        let mut bytes = [0; 8];
        self.numbers.fill(&mut bytes);
        // In (0, 1], with the 53 bits of precision that a float has.
        let share = ((u64::from_le_bytes(bytes) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        Duration::try_from_secs_f64(-share.ln() * self.mean.as_secs_f64()).unwrap_or(Duration::MAX)
    }
}

/// The lists that change together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeUnit {
    /// All lists.
    Catalogue,
    /// All lists of the operation with this name.
    Operation(String),
    /// Each list of the operation with this name: lists of other queries or projects change at other moments.
    List(String),
}

impl ChangeUnit {
    /// The name of the unit that a list belongs to.
    fn name<'a>(&'a self, operation: &str, list: &'a str) -> Option<&'a str> {
        match self {
            Self::Catalogue => Some(""),
            Self::Operation(name) => (name == operation).then_some(name),
            Self::List(name) => (name == operation).then_some(list),
        }
    }
}

/// The changes of a catalogue from its begin on, past and future.
///
/// A list is named by its operation and by a text that differs for each list, such as its path and query.
#[derive(Default)]
pub struct History {
    /// When all lists changed because a test said so, in order.
    manual: Vec<Instant>,
    rates: Vec<Rate>,
}

/// What is to change at which rate, and from when until when.
struct Rate {
    unit: ChangeUnit,
    mean: Duration,
    seed: u64,
    from: Instant,
    until: Option<Instant>,
    /// By the name of the unit.
    changes: HashMap<String, Changes>,
}

impl Rate {
    /// The changes of a list, if this rate is about it.
    fn changes(&mut self, operation: &str, list: &str) -> Option<&mut Changes> {
        let name = self.unit.name(operation, list)?;
        if self.changes.len() >= MAX_SCHEDULES && !self.changes.contains_key(name) {
            self.changes.clear();
        }
        let new = || Changes::new(self.seed, name, self.mean);
        Some(self.changes.entry(name.to_owned()).or_insert_with(new))
    }
}

impl History {
    /// All lists change at this moment.
    pub fn change(&mut self, at: Instant) {
        let index = self.manual.partition_point(|other| *other <= at);
        self.manual.insert(index, at);
    }

    /// From this moment on, the unit changes at random moments with this mean interval. `None`: no longer. An earlier
    /// rate of the unit ends.
    ///
    /// # Panics
    /// If the mean interval is zero.
    pub fn change_every(&mut self, unit: &ChangeUnit, mean: Option<Duration>, seed: u64, from: Instant) {
        for rate in self.rates.iter_mut().filter(|rate| rate.unit == *unit && rate.until.is_none()) {
            rate.until = Some(from);
        }
        if let Some(mean) = mean {
            assert!(!mean.is_zero(), "the mean interval of changes is zero");
            self.rates.push(Rate { unit: unit.clone(), mean, seed, from, until: None, changes: HashMap::new() });
        }
    }

    /// The number of changes of a list until this moment, inclusive. It is 0 before the first one.
    pub fn version_at(&mut self, operation: &str, list: &str, at: Instant) -> u32 {
        let manual = self.manual.partition_point(|change| *change <= at);
        let by_rate = self.rates.iter_mut().filter_map(|rate| {
            let elapsed = rate.until.map_or(at, |until| until.min(at)).checked_duration_since(rate.from)?;
            Some(rate.changes(operation, list)?.version_at(elapsed))
        });
        by_rate.fold(u32::try_from(manual).unwrap_or(u32::MAX), u32::saturating_add)
    }

    /// The first change of a list later than this moment. `None` if there is none, as far as is known now.
    pub fn next_change(&mut self, operation: &str, list: &str, after: Instant) -> Option<Instant> {
        let manual = self.manual.get(self.manual.partition_point(|change| *change <= after)).copied();
        let by_rate = self.rates.iter_mut().filter_map(|rate| {
            let (from, until) = (rate.from, rate.until);
            let changes = rate.changes(operation, list)?;
            let next = match after.checked_duration_since(from) {
                Some(elapsed) => changes.next(elapsed),
                None => changes.next(Duration::ZERO),
            };
            from.checked_add(next).filter(|next| until.is_none_or(|until| *next <= until))
        });
        by_rate.chain(manual).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn changes_come_at_their_mean_interval() {
        for (seed, mean, days) in [(1, MINUTE, 1), (2, 10 * MINUTE, 10), (3, DAY / 4, 300), (4, 7 * DAY, 7_000)] {
            let expected = (DAY * days).as_secs_f64() / mean.as_secs_f64();
            let count = f64::from(Changes::new(seed, "", mean).version_at(DAY * days));
            // Four standard deviations.
            assert!((count - expected).abs() < 4.0 * expected.sqrt(), "{mean:?}: {count}, expected {expected}");
        }
    }

    #[test]
    fn intervals_between_changes_are_exponentially_distributed() {
        let mut changes = Changes::new(5, "", MINUTE);
        let (mut at, mut longer) = (Duration::ZERO, [0_u32; 4]);
        for _ in 0..10_000 {
            let next = changes.next(at);
            for (multiple, count) in (0..).zip(&mut longer) {
                *count += u32::from(next - at > MINUTE * multiple);
            }
            at = next;
        }
        for (multiple, count) in (0..).zip(longer) {
            let share = f64::from(count) / 10_000.0;
            assert!((share - f64::exp(-f64::from(multiple))).abs() < 0.02, "longer than {multiple}: {share}");
        }
    }

    #[test]
    fn versions_are_a_function_of_seed_unit_mean_and_time() {
        let moments: Vec<_> = (0..500).map(|step| MINUTE * step / 7).collect();
        let versions = |mut changes: Changes| moments.iter().map(|at| changes.version_at(*at)).collect::<Vec<_>>();
        let once = versions(Changes::new(1, "a", MINUTE));
        assert!(once.is_sorted() && once[0] == 0 && once[499] > 30, "{once:?}");
        // In whatever order they are asked.
        let mut backwards = Changes::new(1, "a", MINUTE);
        let again: Vec<_> = moments.iter().rev().map(|at| backwards.version_at(*at)).collect();
        assert_eq!(again.into_iter().rev().collect::<Vec<_>>(), once);
        for other in
            [Changes::new(2, "a", MINUTE), Changes::new(1, "b", MINUTE), Changes::new(1, "a", 2 * MINUTE)].map(versions)
        {
            assert_ne!(other, once);
        }
    }

    #[test]
    fn a_version_counts_the_changes_of_the_lists_units() {
        let begin = Clock::System.now();
        let mut history = History::default();
        let versions = |history: &mut History, after: Duration| {
            [("A", "a?1"), ("A", "a?2"), ("B", "b?1")].map(|(of, list)| history.version_at(of, list, begin + after))
        };
        assert_eq!(versions(&mut history, DAY), [0; 3]);
        history.change(begin + MINUTE);
        assert_eq!(versions(&mut history, MINUTE - Duration::from_nanos(1)), [0; 3]);
        assert_eq!(versions(&mut history, MINUTE), [1; 3]);

        history.change_every(&ChangeUnit::Operation("A".to_owned()), Some(MINUTE), 1, begin);
        let [one, two, other] = versions(&mut history, DAY);
        assert!(one == two && one > 1_000 && other == 1, "{one}, {two}, {other}");
        history.change_every(&ChangeUnit::List("A".to_owned()), Some(MINUTE), 1, begin);
        let [first, second, other] = versions(&mut history, DAY);
        assert!(first > one + 1_000 && second > two + 1_000 && first != second && other == 1);
        history.change_every(&ChangeUnit::Catalogue, Some(MINUTE), 1, begin);
        let all = versions(&mut history, DAY);
        assert!(all[2] > 1_000 && all[0] - first == all[2] - other && all[1] - second == all[2] - other);
    }

    #[test]
    fn the_next_change_is_the_first_moment_of_a_new_version() {
        let begin = Clock::System.now();
        let mut history = History::default();
        assert_eq!(history.next_change("A", "a", begin), None);
        history.change_every(&ChangeUnit::Catalogue, Some(MINUTE), 1, begin);
        history.change_every(&ChangeUnit::List("A".to_owned()), Some(MINUTE), 1, begin + MINUTE);
        history.change(begin + 5 * MINUTE);
        let mut at = begin;
        for version in 1..200 {
            at = history.next_change("A", "a", at).unwrap();
            assert_eq!(history.version_at("A", "a", at), version);
            assert_eq!(history.version_at("A", "a", at - Duration::from_nanos(1)), version - 1);
        }
    }

    #[test]
    fn a_rate_that_ends_keeps_its_past() {
        let begin = Clock::System.now();
        let (mut once, mut ended) = (History::default(), History::default());
        for history in [&mut once, &mut ended] {
            history.change_every(&ChangeUnit::Catalogue, Some(MINUTE), 1, begin);
        }
        ended.change_every(&ChangeUnit::Catalogue, None, 0, begin + 10 * MINUTE);
        for minutes in 0..=10 {
            let at = begin + minutes * MINUTE;
            assert_eq!(ended.version_at("A", "a", at), once.version_at("A", "a", at));
        }
        let last = ended.version_at("A", "a", begin + 10 * MINUTE);
        assert_eq!(ended.version_at("A", "a", begin + DAY), last);
        assert_eq!(ended.next_change("A", "a", begin + 10 * MINUTE), None);
        ended.change_every(&ChangeUnit::Catalogue, Some(MINUTE), 2, begin + DAY);
        assert_eq!(ended.version_at("A", "a", begin + DAY), last);
        assert!(ended.version_at("A", "a", begin + 2 * DAY) > last + 1_000);
    }
}
