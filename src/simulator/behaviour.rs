//! What the simulator has been told to do, beyond answering.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;

use super::errors::{self, ErrorReply};
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::Authorization;

/// The orders in force.
#[derive(Default)]
pub(super) struct Behaviour {
    pub(super) delay: Duration,
    pub(super) fail_with: Option<StatusCode>,
    /// The credentials whose bearers alone are failed.
    fail_token: HashMap<String, StatusCode>,
    /// The longest token that is looked at, and what is said to longer ones.
    pub(super) longest_token: Option<(usize, StatusCode)>,
    /// How many more requests pass before the throttle sets in.
    pub(super) requests_left: Option<u32>,
    pub(super) reset_connection: bool,
    pub(super) truncate: bool,
    /// Extra headers of every answer.
    pub(super) headers: HeaderMap,
    /// What product lists say instead.
    pub(super) body: Option<Bytes>,
    /// The version of the catalogue.
    pub(super) version: u32,
    /// Whether it names the project that it is shown to.
    pub(super) names_projects: bool,
    /// Whether lists have an `ETag`.
    pub(super) tags_lists: bool,
    /// Each `hold` has a barrier of its own, open once its sender is gone: holding again at once
    /// can't trap those whom the release before was meant for.
    barriers: HashMap<Barrier, watch::Sender<()>>,
}

/// Whom a barrier holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Barrier {
    Everyone,
    /// Those who present this token, or sign with the key of this id.
    Token(String),
    /// Those who ask for this path and query.
    Target(String),
}

/// A failure that does not depend on what was asked.
#[derive(Debug, PartialEq)]
pub(super) enum Forced {
    Reset,
    Refuse(ErrorReply),
}

impl Behaviour {
    pub(super) fn hold(&mut self, held: Barrier) {
        self.barriers.entry(held).or_insert_with(|| watch::Sender::new(()));
    }

    pub(super) fn release(&mut self, held: &Barrier) {
        self.barriers.remove(held);
    }

    /// The barriers that a request has to wait at.
    pub(super) fn barriers(&self, target: &str, headers: &HeaderMap) -> Vec<watch::Receiver<()>> {
        if self.barriers.is_empty() {
            return Vec::new();
        }
        let own = credential(headers).map(|credential| Barrier::Token(credential.to_owned()));
        let whose = [Some(Barrier::Everyone), own, Some(Barrier::Target(target.to_owned()))];
        whose.iter().flatten().filter_map(|held| self.barriers.get(held)).map(watch::Sender::subscribe).collect()
    }

    /// Fails those who present this credential, or no longer.
    pub(super) fn fail_token(&mut self, token: &str, status: Option<StatusCode>) {
        match status {
            Some(status) => self.fail_token.insert(token.to_owned(), status),
            None => self.fail_token.remove(token),
        };
    }

    /// How the next request fails, if it is to. Counts it towards the throttle.
    pub(super) fn forced(&mut self, headers: &HeaderMap) -> Option<Forced> {
        if self.reset_connection {
            return Some(Forced::Reset);
        }
        let length = headers.get(X_AUTH_TOKEN).map_or(0, |token| token.len());
        let too_long = self.longest_token.filter(|(longest, _)| length > *longest).map(|(_, status)| status);
        let of_token = || self.fail_token.get(credential(headers)?).copied();
        if let Some(status) = too_long.or(self.fail_with).or_else(of_token) {
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

/// The token of a request, where it is text as all that were issued are; without one, the id of the access key
/// that it says it is signed with.
fn credential(headers: &HeaderMap) -> Option<&str> {
    match headers.get(X_AUTH_TOKEN) {
        Some(token) => token.to_str().ok(),
        None => Authorization::read(headers.get(AUTHORIZATION)?).map(|signature| signature.access),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn presenting(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(X_AUTH_TOKEN, HeaderValue::from_str(token).unwrap())])
    }

    #[test]
    fn the_throttle_counts_from_when_it_was_set() {
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
    fn a_token_that_is_too_long_is_told_before_anything_is_known_of_it() {
        let mut behaviour = Behaviour {
            longest_token: Some((4, StatusCode::URI_TOO_LONG)),
            fail_with: Some(StatusCode::BAD_GATEWAY),
            ..Behaviour::default()
        };
        behaviour.fail_token("longer", Some(StatusCode::BAD_GATEWAY));
        let refused = |status| Some(Forced::Refuse(errors::of_status(status)));
        assert_eq!(behaviour.forced(&presenting("longer")), refused(StatusCode::URI_TOO_LONG));
        for fits in [presenting("four"), HeaderMap::new()] {
            assert_eq!(behaviour.forced(&fits), refused(StatusCode::BAD_GATEWAY));
        }
    }

    #[test]
    fn a_barrier_holds_those_it_is_for() {
        let mut behaviour = Behaviour::default();
        behaviour.hold(Barrier::Token("a".to_owned()));
        behaviour.hold(Barrier::Target("/x?y=1".to_owned()));
        let held = |behaviour: &Behaviour, target, token| behaviour.barriers(target, &presenting(token)).len();
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
    async fn holding_again_does_not_trap_those_released() {
        let mut behaviour = Behaviour::default();
        let barrier = |behaviour: &Behaviour| behaviour.barriers("/", &HeaderMap::new()).pop();
        assert!(barrier(&behaviour).is_none());
        behaviour.hold(Barrier::Everyone);
        let mut released = barrier(&behaviour).unwrap();
        behaviour.release(&Barrier::Everyone);
        behaviour.hold(Barrier::Everyone);
        assert!(released.changed().await.is_err(), "its barrier is gone");
        assert!(!barrier(&behaviour).unwrap().has_changed().unwrap(), "the new one stands");
    }
}
