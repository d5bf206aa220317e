//! The injected behaviour of the simulator: delays, failures, barriers and changed responses.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;

use super::errors::{self, ErrorReply};
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::Authorization;

#[derive(Default)]
pub(super) struct Behaviour {
    pub(super) delay: Duration,
    pub(super) fail_with: Option<StatusCode>,
    /// How many of 100 requests fail by `fail_with` or `reset_connections`. `None`: all.
    pub(super) failing_percent: Option<u8>,
    /// The rest of `failing_percent` that no failure has used up yet.
    owed_percent: u8,
    /// In seconds, of the failures by `fail_with`.
    pub(super) retry_after: Option<u32>,
    /// The credentials whose requests fail.
    fail_token: HashMap<String, StatusCode>,
    /// The length of the longest accepted token, and the status for longer ones.
    pub(super) token_length_limit: Option<(usize, StatusCode)>,
    /// The number of requests that are still accepted before the throttle starts.
    pub(super) requests_left: Option<u32>,
    pub(super) reset_connections: bool,
    pub(super) truncate: bool,
    /// Additional headers of every response.
    pub(super) headers: HeaderMap,
    /// Replaces the body of lists.
    pub(super) body: Option<Bytes>,
    /// Whether lists contain the caller's project id.
    pub(super) include_project: bool,
    pub(super) send_etags: bool,
    /// Each `hold` creates a new barrier, which opens when its sender is dropped. So a `hold` immediately after a
    /// `release` does not hold the requests that were just released.
    barriers: HashMap<Barrier, watch::Sender<()>>,
}

/// Which requests a barrier holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Barrier {
    Everyone,
    /// Requests with this token, or signed with the key of this id.
    Token(String),
    /// Requests for this path and query.
    Target(String),
}

/// A failure that does not depend on the request's path.
#[derive(Debug, PartialEq)]
pub(super) enum Forced {
    Reset,
    Refuse(ErrorReply),
}

impl Behaviour {
    pub(super) fn hold(&mut self, barrier: Barrier) {
        self.barriers.entry(barrier).or_insert_with(|| watch::Sender::new(()));
    }

    pub(super) fn release(&mut self, barrier: &Barrier) {
        self.barriers.remove(barrier);
    }

    /// The barriers that hold a request.
    pub(super) fn barriers(&self, target: &str, headers: &HeaderMap) -> Vec<watch::Receiver<()>> {
        if self.barriers.is_empty() {
            return Vec::new();
        }
        let own = credential(headers).map(|credential| Barrier::Token(credential.to_owned()));
        let matching = [Some(Barrier::Everyone), own, Some(Barrier::Target(target.to_owned()))];
        matching
            .iter()
            .flatten()
            .filter_map(|barrier| self.barriers.get(barrier))
            .map(watch::Sender::subscribe)
            .collect()
    }

    pub(super) fn fail_token(&mut self, token: &str, status: Option<StatusCode>) {
        match status {
            Some(status) => self.fail_token.insert(token.to_owned(), status),
            None => self.fail_token.remove(token),
        };
    }

    /// Whether the next request belongs to the part that fails.
    fn is_failure_due(&mut self) -> bool {
        let Some(percent) = self.failing_percent else { return true };
        let owed = self.owed_percent.saturating_add(percent.min(100));
        self.owed_percent = owed % 100;
        owed >= 100
    }

    /// The failure of the next request, if any. Counts the request towards the throttle.
    pub(super) fn forced(&mut self, headers: &HeaderMap) -> Option<Forced> {
        let is_due = self.is_failure_due();
        if self.reset_connections && is_due {
            return Some(Forced::Reset);
        }
        let length = headers.get(X_AUTH_TOKEN).map_or(0, |token| token.len());
        let too_long = self.token_length_limit.filter(|(longest, _)| length > *longest).map(|(_, status)| status);
        let of_token = || self.fail_token.get(credential(headers)?).copied();
        if let Some(status) = too_long.or(self.fail_with.filter(|_| is_due)).or_else(of_token) {
            return Some(Forced::Refuse(errors::of_status(status)));
        }
        let left = self.requests_left.as_mut()?;
        match left.checked_sub(1) {
            Some(rest) => {
                *left = rest;
                None
            }
            None => Some(Forced::Refuse(errors::THROTTLED)),
        }
    }
}

/// The token of a request, or else the id of the access key in its `Authorization`.
pub(super) fn credential(headers: &HeaderMap) -> Option<&str> {
    match headers.get(X_AUTH_TOKEN) {
        Some(token) => token.to_str().ok(),
        None => Authorization::read(headers.get(AUTHORIZATION)?).map(|signature| signature.access),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with_token(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(X_AUTH_TOKEN, HeaderValue::from_str(token).unwrap())])
    }

    #[test]
    fn the_throttle_starts_after_the_given_number_of_requests() {
        let mut behaviour = Behaviour { requests_left: Some(2), ..Behaviour::default() };
        assert_eq!(behaviour.forced(&HeaderMap::new()), None);
        assert_eq!(behaviour.forced(&HeaderMap::new()), None);
        for _ in 0..2 {
            assert_eq!(behaviour.forced(&HeaderMap::new()), Some(Forced::Refuse(errors::THROTTLED)));
        }
        behaviour.requests_left = None;
        assert_eq!(behaviour.forced(&HeaderMap::new()), None);
    }

    #[test]
    fn a_part_of_the_requests_fails() {
        for (percent, failures) in [(Some(1), 1), (Some(30), 30), (Some(99), 99), (Some(100), 100), (None, 100)] {
            let fail_with = Some(StatusCode::BAD_GATEWAY);
            let mut behaviour = Behaviour { fail_with, failing_percent: percent, ..Behaviour::default() };
            let failed: Vec<_> = (0..100).filter(|_| behaviour.forced(&HeaderMap::new()).is_some()).collect();
            assert_eq!(failed.len(), failures, "{percent:?}");
            let gaps: Vec<_> = failed.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().max() <= gaps.iter().min().map(|gap| gap + 1).as_ref(), "spread evenly: {failed:?}");
        }
    }

    #[test]
    fn a_token_that_is_too_long_is_refused_before_other_failures() {
        let mut behaviour = Behaviour {
            token_length_limit: Some((4, StatusCode::URI_TOO_LONG)),
            fail_with: Some(StatusCode::BAD_GATEWAY),
            ..Behaviour::default()
        };
        behaviour.fail_token("longer", Some(StatusCode::BAD_GATEWAY));
        let refused = |status| Some(Forced::Refuse(errors::of_status(status)));
        assert_eq!(behaviour.forced(&with_token("longer")), refused(StatusCode::URI_TOO_LONG));
        for fits in [with_token("four"), HeaderMap::new()] {
            assert_eq!(behaviour.forced(&fits), refused(StatusCode::BAD_GATEWAY));
        }
    }

    #[test]
    fn a_barrier_holds_only_matching_requests() {
        let mut behaviour = Behaviour::default();
        behaviour.hold(Barrier::Token("a".to_owned()));
        behaviour.hold(Barrier::Target("/x?y=1".to_owned()));
        let held = |behaviour: &Behaviour, target, token| behaviour.barriers(target, &with_token(token)).len();
        assert_eq!(held(&behaviour, "/x?y=1", "a"), 2);
        assert_eq!(held(&behaviour, "/x?y=1", "b"), 1);
        assert_eq!(held(&behaviour, "/x", "a"), 1);
        assert_eq!(held(&behaviour, "/x", "b"), 0);
        behaviour.hold(Barrier::Everyone);
        assert_eq!(held(&behaviour, "/x", "b"), 1);
        behaviour.release(&Barrier::Token("a".to_owned()));
        assert_eq!(held(&behaviour, "/x?y=1", "a"), 2);
    }

    #[tokio::test]
    async fn holding_again_does_not_hold_released_requests() {
        let mut behaviour = Behaviour::default();
        let barrier = |behaviour: &Behaviour| behaviour.barriers("/", &HeaderMap::new()).pop();
        assert!(barrier(&behaviour).is_none());
        behaviour.hold(Barrier::Everyone);
        let mut released = barrier(&behaviour).unwrap();
        behaviour.release(&Barrier::Everyone);
        behaviour.hold(Barrier::Everyone);
        assert!(released.changed().await.is_err(), "its barrier is open");
        assert!(!barrier(&behaviour).unwrap().has_changed().unwrap(), "the new barrier is closed");
    }
}
