//! Watches the one assumption that sharing rests on: within a project, an answer depends on the
//! question alone. Where answers to one question alternate between two bodies by caller (one, other,
//! one, other, each asked for after the one before had come), it does not hold. A single difference
//! is a change of the catalogue. Pure: it is told who saw what, and when.

use std::time::Instant;

use crate::request::caller::Caller;

/// A hash of a body.
pub(crate) type Digest = [u8; 32];

/// An answer to the question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// What was seen.
    pub digest: Digest,
    /// Who saw it.
    pub caller: Caller,
    /// When it was asked for.
    pub sent: Instant,
    /// When it had come.
    pub received: Instant,
}

/// How many answers have to alternate.
const MIN_ALTERNATIONS: usize = 4;

/// The latest answers to one question, as far as they alternate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observations(Vec<Observation>);

impl Observations {
    /// Adds an answer. Says whether they alternate by caller now.
    pub(crate) fn add(&mut self, observation: Observation) -> bool {
        let Some(&last) = self.0.last() else {
            self.0.push(observation);
            return false;
        };
        // Overlapping requests are not compared: which of them upstream answered first is not known.
        if observation.sent < last.received {
            return false;
        }
        let before_last = self.0.len().checked_sub(2).map(|index| self.0[index].digest);
        if self.0.iter().any(|earlier| earlier.caller == observation.caller && earlier.digest != observation.digest) {
            // This caller is shown something else than before, so the catalogue has changed.
            self.0 = vec![observation];
        } else if observation.digest == last.digest {
            self.0.pop();
            self.0.push(Observation { received: observation.received, ..last });
        } else if before_last.is_none_or(|digest| digest == observation.digest) {
            self.0.push(observation);
        } else {
            self.0 = vec![last, observation];
        }
        self.0.len() >= MIN_ALTERNATIONS
    }

    /// Bytes of memory they hold, roughly.
    pub(super) fn size(&self) -> usize {
        self.0.capacity() * size_of::<Observation>()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    /// Plays answers, each written as who saw what: "A1". One in brackets was asked for before the
    /// one before it had come.
    fn diverges(answers: &str) -> bool {
        let callers = Callers::new([0; 32]);
        let begun = Clock::System.now();
        let mut observations = Observations::default();
        let mut diverged = false;
        for (index, answer) in (0_u32..).zip(answers.split(' ')) {
            let overlaps = answer.starts_with('[');
            let answer = answer.trim_matches(['[', ']']).as_bytes();
            let at = |tenths: u32| begun + Duration::from_millis(100) * tenths;
            diverged |= observations.add(Observation {
                digest: [answer[1]; 32],
                caller: callers.of_token(&HeaderValue::from_bytes(&answer[..1]).unwrap()),
                sent: at(10 * index - if overlaps { 9 } else { 0 }),
                received: at(10 * index + 5),
            });
        }
        diverged
    }

    #[test]
    fn alternating_by_caller_trips_it() {
        assert!(diverges("A1 B2 A1 B2"));
        assert!(diverges("A1 B2 C1 D2"));
        assert!(diverges("A1 A1 B2 B2 A1 C1 B2"));
        assert!(diverges("A9 A1 B2 A1 B2"), "after a change");
        assert!(diverges("A1 B2 [A1] A1 B2"));
    }

    #[test]
    fn a_changing_catalogue_does_not() {
        assert!(!diverges("A1 B2 A2 B2 A2"));
        assert!(!diverges("A1 B2 A3 B4 A5 B6"));
        assert!(!diverges("A1 B2 C3 A1 B2"));
        assert!(!diverges("A1 B2 B1 A2"), "the same caller sees both");
        assert!(!diverges("A1 A2 A1 A2"));
        assert!(!diverges("A1 B2 A1"));
    }

    #[test]
    fn overlapping_answers_are_not_compared() {
        assert!(!diverges("A1 [B2] A1 [B2] A1 [B2]"));
    }
}
