//! Which request of a connection was read from which bytes. The server notes each head that it passes to hyper, and the
//! gateway each request that hyper has read from one. So a head is remembered for its own request, and bytes are taken for
//! a head only where a head begins.

use http::request::Parts;

use super::head;
use crate::request::fingerprint::Fingerprint;
use crate::sync::Mutex;

/// One connection's.
#[derive(Default)]
pub struct RequestTracker(Mutex<TrackerState>);

#[derive(Clone, Copy, Default)]
enum TrackerState {
    /// Each head that has come has become a request, and was all of it.
    #[default]
    Between,
    /// A whole head has come, and hyper has not told its request. Its fingerprint, if it came in one piece.
    Head(Option<Fingerprint>),
    /// More than its head may belong to a request, or it is not known which bytes a request was read from.
    Unknown,
}

impl RequestTracker {
    /// A whole head has come and is going to be read. Its fingerprint is given if it came in one piece.
    pub(super) fn head_has_come(&self, head: Option<Fingerprint>) {
        *self.0.lock() = TrackerState::Head(head);
    }

    /// From now on it is not known which bytes a request was read from. What looked like a whole head may not have been one
    /// (blank lines before a request are not), and must not be taken for the request that follows it.
    pub(super) fn gives_up(&self) {
        *self.0.lock() = TrackerState::Unknown;
    }

    /// Whether what comes next begins a request, because each head that has come has become one, and was all of it.
    pub(super) fn is_between_requests(&self) -> bool {
        matches!(*self.0.lock(), TrackerState::Between)
    }

    /// hyper has read a request. Returns the fingerprint of its head, if the same head would ask for the same again.
    pub(super) fn request_is_read(&self, head: &Parts, has_body: bool) -> Option<Fingerprint> {
        let mut state = self.0.lock();
        let TrackerState::Head(fingerprint) = *state else { return None };
        *state = if has_body || !head::is_all(head) { TrackerState::Unknown } else { TrackerState::Between };
        fingerprint.filter(|_| !has_body && head::is_repeatable(head))
    }
}
