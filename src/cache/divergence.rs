//! Detects divergence: callers that get different responses to the same request key. Sharing assumes that within a
//! project the response depends on the key alone. Pure: the times are arguments.
//!
//! The assumption is wrong if the responses alternate between two bodies by caller: one, other, one, other. Each of
//! these requests must have been sent after the previous response was received. A single difference is a change of the
//! catalogue.

use std::time::Instant;

use crate::request::caller::Caller;

/// A hash of a body.
pub(crate) type Digest = [u8; 32];

/// A caller's response.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    pub digest: Digest,
    pub caller: Caller,
    /// When the request was sent.
    pub sent: Instant,
    /// When the response was complete.
    pub received: Instant,
}

/// The number of alternating responses that is a divergence.
pub(super) const MIN_ALTERNATIONS: usize = 4;

/// The latest responses to one request key that alternate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observations(Vec<Observation>);

impl Observations {
    /// Adds a response. Returns whether the responses diverge.
    pub(crate) fn add(&mut self, observation: Observation) -> bool {
        let Some(&last) = self.0.last() else {
            self.0.push(observation);
            return false;
        };
        // The order in which upstream handled overlapping requests is unknown, so they are not compared.
        if observation.sent < last.received {
            return false;
        }
        let before_last = self.0.len().checked_sub(2).map(|index| self.0[index].digest);
        if self.0.iter().any(|earlier| earlier.caller == observation.caller && earlier.digest != observation.digest) {
            // The same caller gets a different response than before, so the catalogue has changed.
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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Observation> {
        self.0.iter()
    }

    /// Approximate memory use, in bytes.
    pub(super) fn size(&self) -> usize {
        self.0.capacity() * size_of::<Observation>()
    }
}

impl FromIterator<Observation> for Observations {
    fn from_iter<T: IntoIterator<Item = Observation>>(observations: T) -> Self {
        Self(observations.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    /// Adds responses, each written as a caller and a body: "A1". The request of one in brackets was sent before the
    /// previous response was received.
    fn diverges(responses: &str) -> bool {
        let callers = Callers::new([0; 32]);
        let start = Clock::System.now();
        let mut observations = Observations::default();
        let mut diverged = false;
        for (index, response) in (0_u32..).zip(responses.split(' ')) {
            let overlaps = response.starts_with('[');
            let response = response.trim_matches(['[', ']']).as_bytes();
            let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
            diverged |= observations.add(Observation {
                digest: [response[1]; 32],
                caller: callers.of_token(&HeaderValue::from_bytes(&response[..1]).unwrap()),
                sent: at(10 * index - if overlaps { 9 } else { 0 }),
                received: at(10 * index + 5),
            });
        }
        diverged
    }

    #[test]
    fn responses_that_alternate_by_caller_diverge() {
        assert!(diverges("A1 B2 A1 B2"));
        assert!(diverges("A1 B2 C1 D2"));
        assert!(diverges("A1 A1 B2 B2 A1 C1 B2"));
        assert!(diverges("A9 A1 B2 A1 B2"), "after a change");
        assert!(diverges("A1 B2 [A1] A1 B2"));
    }

    #[test]
    fn responses_of_a_changing_catalogue_do_not_diverge() {
        assert!(!diverges("A1 B2 A2 B2 A2"));
        assert!(!diverges("A1 B2 A3 B4 A5 B6"));
        assert!(!diverges("A1 B2 C3 A1 B2"));
        assert!(!diverges("A1 B2 B1 A2"), "the same caller sees both");
        assert!(!diverges("A1 A2 A1 A2"));
        assert!(!diverges("A1 B2 A1"));
    }

    #[test]
    fn overlapping_responses_are_not_compared() {
        assert!(!diverges("A1 [B2] A1 [B2] A1 [B2]"));
    }
}
