//! The answers of a scope that are known to have been right, by minute.

use super::answers::AnswerCounters;

const SLOTS: usize = 64;
/// The length of a slot, in seconds.
const SLOT: f64 = 60.0;

/// Counts and sums of answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) answers: f64,
    /// The sum of the ages of the answers, in seconds.
    pub(super) age: f64,
    /// The sum of the ttls of the responses that the answers were made from, in seconds.
    pub(super) ttl: f64,
}

impl Totals {
    pub(super) fn times(self, factor: f64) -> Self {
        Self { answers: self.answers * factor, age: self.age * factor, ttl: self.ttl * factor }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.age += other.age;
        self.ttl += other.ttl;
    }
}

/// A ring of minutes.
#[derive(Debug)]
pub(super) struct Settled {
    slots: [(i64, Totals); SLOTS],
}

impl Default for Settled {
    fn default() -> Self {
        Self { slots: [(i64::MIN, Totals::default()); SLOTS] }
    }
}

impl Settled {
    /// Adds the answers that were made from a response. `sent` is the time of its request in seconds.
    pub(super) fn add(&mut self, sent: f64, counters: &AnswerCounters) {
        for answers in counters.by_time(sent) {
            let slot = (answers.middle() / SLOT).floor() as i64;
            let (held, totals) = &mut self.slots[usize::try_from(slot.rem_euclid(SLOTS as i64)).unwrap_or(0)];
            if *held > slot {
                continue;
            }
            if *held < slot {
                (*held, *totals) = (slot, Totals::default());
            }
            let count = f64::from(answers.count);
            totals.add(Totals { answers: count, age: count * (answers.middle() - sent), ttl: count * counters.ttl() });
        }
    }

    /// The totals since a time.
    pub(super) fn since(&self, time: f64) -> Totals {
        let mut sum = Totals::default();
        for (slot, totals) in &self.slots {
            if (*slot as f64 + 0.5) * SLOT > time {
                sum.add(*totals);
            }
        }
        sum
    }
}
