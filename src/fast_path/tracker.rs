//! Tracks which bytes of a connection a request was read from. The responder reports each head that goes to hyper, and
//! the gateway each request that hyper has read. A head must be remembered only for its own request, and bytes must
//! count as a head only where a head begins.

use http::request::Parts;

use super::head;
use crate::request::fingerprint::Fingerprint;
use crate::sync::Mutex;

/// The tracker of one connection.
#[derive(Default)]
pub struct RequestTracker(Mutex<TrackerState>);

#[derive(Clone, Copy, Default)]
enum TrackerState {
    /// Each received head has become a request without a body.
    #[default]
    BetweenRequests,
    /// A complete head has been received, and hyper has not read the request yet. With the fingerprint, if the head
    /// arrived in one piece.
    HeadReceived(Option<Fingerprint>),
    /// A request may have a body, or it is not known which bytes it was read from.
    Unknown,
}

impl RequestTracker {
    /// A complete head has been received and goes to hyper. With its fingerprint, if it arrived in one piece.
    pub(super) fn head_received(&self, head: Option<Fingerprint>) {
        *self.0.lock() = TrackerState::HeadReceived(head);
    }

    /// From now on it is not known which bytes a request was read from. What looked like a complete head may not have
    /// been one (blank lines before a request, say), and must not be remembered for the next request.
    pub(super) fn stop_tracking(&self) {
        *self.0.lock() = TrackerState::Unknown;
    }

    /// Whether the next byte begins a request.
    pub(super) fn is_between_requests(&self) -> bool {
        matches!(*self.0.lock(), TrackerState::BetweenRequests)
    }

    /// hyper has read a request. Returns the fingerprint of its head, if it is known which bytes the head had.
    pub(super) fn request_parsed(&self, head: &Parts, has_body: bool) -> Option<Fingerprint> {
        let mut state = self.0.lock();
        let TrackerState::HeadReceived(fingerprint) = *state else { return None };
        *state = if has_body || !head::is_whole_request(head) {
            TrackerState::Unknown
        } else {
            TrackerState::BetweenRequests
        };
        fingerprint.filter(|_| !has_body)
    }
}
