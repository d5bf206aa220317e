//! What the simulator has been told to do, beyond answering.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;

use super::errors::{self, Refusal};

/// The orders in force.
#[derive(Default)]
pub(super) struct Behaviour {
    pub(super) delay: Duration,
    pub(super) fail_with: Option<StatusCode>,
    /// How many more requests pass before the throttle sets in.
    pub(super) requests_left: Option<u32>,
    pub(super) reset_connection: bool,
    pub(super) truncate: bool,
    /// Extra headers of every 200.
    pub(super) headers: HeaderMap,
    /// What product lists say instead.
    pub(super) body: Option<Bytes>,
    /// The version of the catalogue.
    pub(super) version: u32,
    /// Each `hold` has a barrier of its own, open once its sender is gone: holding again at once
    /// can't trap those whom the release before was meant for.
    barrier: Option<watch::Sender<()>>,
}

/// A failure that does not depend on what was asked.
#[derive(Debug, PartialEq)]
pub(super) enum Forced {
    Reset,
    Refuse(Refusal),
}

impl Behaviour {
    pub(super) fn hold(&mut self) {
        self.barrier.get_or_insert_with(|| watch::Sender::new(()));
    }

    pub(super) fn release(&mut self) {
        self.barrier = None;
    }

    /// The barrier to wait at, if one is up.
    pub(super) fn barrier(&self) -> Option<watch::Receiver<()>> {
        self.barrier.as_ref().map(watch::Sender::subscribe)
    }

    /// How the next request fails, if it is to. Counts it towards the throttle.
    pub(super) fn forced(&mut self) -> Option<Forced> {
        if self.reset_connection {
            return Some(Forced::Reset);
        }
        if let Some(status) = self.fail_with {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_throttle_counts_from_when_it_was_set() {
        let mut behaviour = Behaviour { requests_left: Some(2), ..Behaviour::default() };
        assert_eq!(behaviour.forced(), None);
        assert_eq!(behaviour.forced(), None);
        for _ in 0..2 {
            assert_eq!(behaviour.forced(), Some(Forced::Refuse(errors::THROTTLED)));
        }
        behaviour.requests_left = None;
        assert_eq!(behaviour.forced(), None);
    }

    #[tokio::test]
    async fn holding_again_does_not_trap_those_released() {
        let mut behaviour = Behaviour::default();
        assert!(behaviour.barrier().is_none());
        behaviour.hold();
        let mut released = behaviour.barrier().unwrap();
        behaviour.release();
        behaviour.hold();
        assert!(released.changed().await.is_err(), "its barrier is gone");
        assert!(!behaviour.barrier().unwrap().has_changed().unwrap(), "the new one stands");
    }
}
