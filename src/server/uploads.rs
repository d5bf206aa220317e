//! The HTTP/2 requests with bodies, by stream: which client waits for a 100 (Continue), and how many trailer fields
//! were received. No frame is written here.
//!
//! hyper does not tell on which stream a request arrived. So `wire.rs` lets hyper read up to the end of such a head,
//! and no further until the request is accepted or refused. The request that is accepted next is then the one of the
//! last head.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use http::header::EXPECT;
use http::{HeaderMap, HeaderValue};
use thiserror::Error;

use crate::request::validate::has_blanks;
use crate::sync::{Mutex, MutexGuard};

/// The uploads of one connection.
#[derive(Default)]
pub(super) struct Uploads {
    /// Whether a 100 has to be written: cheaper to check than the lock.
    is_due: AtomicBool,
    state: Mutex<UploadsState>,
}

#[derive(Default)]
struct UploadsState {
    /// The stream of the last head, if it was not accepted yet, and whether data of its body follows it.
    unaccepted: Option<(u32, bool)>,
    uploads: Vec<Upload>,
    /// Wakes the connection.
    connection: Option<Waker>,
}

/// There are at most as many as concurrent streams.
struct Upload {
    stream: u32,
    is_due: bool,
    /// Whether the final response may have been written: a 100 after it would be malformed.
    is_answered: bool,
    /// Fields of the trailer section, when it is complete.
    trailer_fields: Option<usize>,
}

/// An accepted request, until its body is dropped.
pub(super) struct AcceptedUpload {
    uploads: Arc<Uploads>,
    stream: u32,
    /// Whether the client waits for a 100, as far as known.
    is_expected: bool,
}

/// Dropped when the final response is ready: no 100 is sent afterwards.
pub(super) struct Unanswered {
    uploads: Arc<Uploads>,
    stream: u32,
}

/// What is wrong with a trailer section.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum MalformedTrailers {
    #[error("a trailer field's value starts or ends with a space or a tab (RFC 9113 §8.2.1)")]
    Blanks,
    /// h2 drops both.
    #[error("the trailer section has pseudo-header fields (RFC 9113 §8.1) or too many fields")]
    Fields,
}

impl Uploads {
    /// The head of a request with a body was read. No other head is read before it is accepted.
    pub(super) fn head_read(&self, stream: u32, has_body: bool, connection: &Waker) {
        let mut state = self.state();
        state.unaccepted = Some((stream, has_body));
        match &mut state.connection {
            Some(waker) => waker.clone_from(connection),
            none => *none = Some(connection.clone()),
        }
    }

    pub(super) fn accept(self: &Arc<Self>, head: &HeaderMap) -> Option<AcceptedUpload> {
        let mut state = self.state();
        let (stream, has_body) = state.unaccepted.take()?;
        state.uploads.push(Upload { stream, is_due: false, is_answered: false, trailer_fields: None });
        let mut expectations = head.get_all(EXPECT).iter().map(HeaderValue::as_bytes);
        let is_expected = !has_body && expectations.any(|value| value.eq_ignore_ascii_case(b"100-continue"));
        Some(AcceptedUpload { uploads: Arc::clone(self), stream, is_expected })
    }

    /// A trailer section was read.
    pub(super) fn trailers_read(&self, stream: u32, fields: usize) {
        self.change(stream, |upload| upload.trailer_fields = Some(fields));
    }

    /// Takes a stream whose client has to be sent a 100 now.
    pub(super) fn take_due(&self) -> Option<u32> {
        if !self.is_due.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        let mut due = state.uploads.iter_mut().filter(|upload| upload.is_due && !upload.is_answered);
        let upload = due.next();
        let stream = upload.map(|upload| {
            upload.is_due = false;
            upload.stream
        });
        self.is_due.store(due.next().is_some(), Ordering::Release);
        stream
    }

    fn change(&self, stream: u32, change: impl FnOnce(&mut Upload)) {
        if let Some(upload) = self.state().uploads.iter_mut().find(|upload| upload.stream == stream) {
            change(upload);
        }
    }

    fn state(&self) -> MutexGuard<'_, UploadsState> {
        self.state.lock()
    }
}

impl AcceptedUpload {
    /// `None` if the client does not wait for a 100.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.is_expected.then(|| Unanswered { uploads: Arc::clone(&self.uploads), stream: self.stream })
    }

    /// The gateway waits for the body. If the client waits, too, it is sent a 100.
    pub(super) fn body_awaited(&mut self) {
        if !std::mem::take(&mut self.is_expected) {
            return;
        }
        self.uploads.change(self.stream, |upload| upload.is_due = true);
        self.uploads.is_due.store(true, Ordering::Release);
        if let Some(connection) = &self.uploads.state().connection {
            connection.wake_by_ref();
        }
    }

    /// A part of the body was received, so the client does not wait.
    pub(super) fn body_received(&mut self) {
        self.is_expected = false;
    }

    /// Checks the trailer section. `trailers` are the fields that h2 has decoded.
    ///
    /// # Errors
    /// If the section is malformed.
    pub(super) fn check(&self, trailers: &HeaderMap) -> Result<(), MalformedTrailers> {
        if trailers.values().any(has_blanks) {
            return Err(MalformedTrailers::Blanks);
        }
        let mut fields = None;
        self.uploads.change(self.stream, |upload| fields = upload.trailer_fields);
        if fields.is_some_and(|fields| fields != trailers.len()) {
            return Err(MalformedTrailers::Fields);
        }
        Ok(())
    }
}

impl Drop for AcceptedUpload {
    fn drop(&mut self) {
        let mut state = self.uploads.state();
        state.uploads.retain(|upload| upload.stream != self.stream);
        if state.uploads.is_empty() {
            state.uploads = Vec::new();
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.uploads.change(self.stream, |upload| upload.is_answered = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(uploads: &Arc<Uploads>, stream: u32, expect: &'static str) -> AcceptedUpload {
        uploads.head_read(stream, false, Waker::noop());
        uploads.accept(&HeaderMap::from_iter([(EXPECT, HeaderValue::from_static(expect))])).unwrap()
    }

    #[test]
    fn a_100_is_due_once_between_waiting_for_the_body_and_the_final_response() {
        let uploads = Arc::default();
        let [mut one, mut two, mut three, mut other] =
            [(1, "100-continue"), (3, "100-Continue"), (5, "100-continue"), (7, "something-else")]
                .map(|(stream, expect)| accepted(&uploads, stream, expect));
        assert!(uploads.accept(&HeaderMap::new()).is_none(), "there are no more");
        assert_eq!(uploads.take_due(), None);
        let unanswered = one.unanswered();
        for upload in [&mut one, &mut two, &mut three, &mut other] {
            upload.body_awaited();
        }
        drop(unanswered);
        assert!(other.unanswered().is_none());
        assert_eq!([uploads.take_due(), uploads.take_due(), uploads.take_due()], [Some(3), Some(5), None]);
        two.body_awaited();
        assert_eq!(uploads.take_due(), None);
    }

    #[test]
    fn no_100_is_due_when_a_body_was_received_or_dropped() {
        let uploads = Arc::default();
        let mut received = accepted(&uploads, 1, "100-continue");
        received.body_received();
        received.body_awaited();
        let mut dropped = accepted(&uploads, 3, "100-continue");
        dropped.body_awaited();
        drop(dropped);
        uploads.head_read(5, true, Waker::noop());
        let expect = HeaderMap::from_iter([(EXPECT, HeaderValue::from_static("100-continue"))]);
        uploads.accept(&expect).unwrap().body_awaited();
        assert_eq!(uploads.take_due(), None);
    }

    #[test]
    fn trailers_are_checked_against_what_came_on_their_stream() {
        let uploads = Arc::default();
        let [one, two] = [1, 3].map(|stream| accepted(&uploads, stream, ""));
        uploads.trailers_read(1, 2);
        uploads.trailers_read(3, 1);
        let fields = |value| HeaderMap::from_iter([(EXPECT, HeaderValue::from_static(value))]);
        assert_eq!(one.check(&fields("a")), Err(MalformedTrailers::Fields));
        assert_eq!(two.check(&fields("a")), Ok(()));
        assert_eq!(two.check(&fields("a ")), Err(MalformedTrailers::Blanks));
    }
}
