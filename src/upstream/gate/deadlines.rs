//! When the waiting calls of a group give up, so that the wait of a new call can be told. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls whose deadlines are within this time of each other count as one step.
const STEP: Duration = Duration::from_secs(1);

/// The deadlines of waiting calls.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// The first deadline of each step, and the number of its calls.
    steps: BTreeMap<Instant, u32>,
}

impl Deadlines {
    pub(super) fn add(&mut self, deadline: Instant) {
        self.add_many(deadline, 1);
    }

    fn add_many(&mut self, deadline: Instant, calls: u32) {
        match self.steps.range_mut(..=deadline).next_back() {
            Some((first, sum)) if deadline.saturating_duration_since(*first) < STEP => *sum += calls,
            _ => _ = self.steps.insert(deadline, calls),
        }
    }

    /// Removes a call that was added with this deadline.
    pub(super) fn remove(&mut self, deadline: Instant) {
        if let Some((first, calls)) = self.steps.range_mut(..=deadline).next_back() {
            *calls -= 1;
            if *calls == 0 {
                let first = *first;
                self.steps.remove(&first);
            }
        }
    }

    /// The calls of several groups.
    pub(super) fn of_all<'d>(groups: impl Iterator<Item = &'d Self>) -> Self {
        let mut all = Self::default();
        for (first, calls) in groups.flat_map(|group| &group.steps) {
            all.add_many(*first, *calls);
        }
        all
    }

    /// How many calls are sent before one that comes now. `free_at`: when a call can be sent, if so many are sent before.
    /// A call that reaches its deadline before its turn is not sent.
    pub(super) fn ahead(&self, free_at: impl Fn(u32) -> Instant) -> u32 {
        let mut sent = 0;
        for (deadline, calls) in &self.steps {
            // The first of them that is not sent in time.
            let (mut fewest, mut most) = (0, *calls);
            while fewest < most {
                let middle = fewest + (most - fewest) / 2;
                if free_at(sent + middle) > *deadline { most = middle } else { fewest = middle + 1 }
            }
            sent += fewest;
        }
        sent
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_call_waits_only_for_those_that_are_sent() {
        let (start, second) = (Clock::System.now(), Duration::from_secs(1));
        // Calls with deadlines, in seconds. One call is sent in each second, the first after one second.
        for (deadlines, expected) in [
            (vec![], 0),
            // None of them is sent in time.
            (vec![0; 500], 0),
            (vec![30; 10], 10),
            // From the 31st second on, none of them waits any more.
            (vec![30; 500], 30),
            ([vec![0; 500], vec![30; 10]].concat(), 10),
            ([vec![5; 500], vec![30; 500]].concat(), 30),
            ([vec![5; 500], vec![30; 10]].concat(), 15),
            ([vec![5; 2], vec![30; 10]].concat(), 12),
        ] {
            let mut calls = Deadlines::default();
            deadlines.iter().for_each(|deadline| calls.add(start + *deadline * second));
            assert_eq!(calls.ahead(|ahead| start + (ahead + 1) * second), expected, "{deadlines:?}");
            deadlines.iter().for_each(|deadline| calls.remove(start + *deadline * second));
            assert!(calls.is_empty());
        }
    }

    #[test]
    fn calls_are_removed_from_the_step_that_they_were_added_to() {
        let (start, tenth) = (Clock::System.now(), Duration::from_millis(100));
        let mut calls = Deadlines::default();
        let added = [25, 12, 3, 21, 13, 4, 3, 30].map(|tenths| start + tenths * tenth);
        added.iter().for_each(|deadline| calls.add(*deadline));
        assert!(calls.steps.len() < added.len());
        added.iter().for_each(|deadline| calls.remove(*deadline));
        assert!(calls.is_empty());
    }
}
