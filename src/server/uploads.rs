//! The requests of a connection in HTTP/2 whose bodies follow their heads, by stream: who waits for a 100 (Continue), and how
//! many trailer fields came.
//!
//! hyper does not tell on which stream a request has come. So `wire.rs` has it read no further than such a head until it has
//! accepted the request, or refused it: the head that was read last is the one of the request that is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use http::header::EXPECT;
use http::{HeaderMap, HeaderValue};
use thiserror::Error;

use crate::request::validate::has_blanks;
use crate::sync::{Mutex, MutexGuard};

/// One connection's.
#[derive(Default)]
pub(super) struct Uploads {
    /// Whether a 100 is to be written: cheaper to ask than the lock.
    is_due: AtomicBool,
    state: Mutex<UploadsState>,
}

#[derive(Default)]
struct UploadsState {
    /// The stream of the head that was read last, if nobody has accepted it, and whether its body has come, too.
    unaccepted: Option<(u32, bool)>,
    uploads: Vec<Upload>,
    /// Wakes the connection.
    connection: Option<Waker>,
}

/// At most as many as there may be streams.
struct Upload {
    stream: u32,
    is_due: bool,
    /// Whether the final response may have been written: then a 100 would be malformed.
    is_answered: bool,
    /// Fields of the trailer section, once that is there.
    trailer_fields: Option<usize>,
}

/// One that was accepted, until its body is dropped.
pub(super) struct AcceptedUpload {
    uploads: Arc<Uploads>,
    stream: u32,
    /// Whether its client waits for a 100, as far as is known.
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
    #[error("a trailer field's value begins or ends with a space or a tab (RFC 9113 §8.2.1)")]
    Blanks,
    /// h2 drops both.
    #[error("the trailer section has pseudo-header fields (RFC 9113 §8.1), or more fields than are read")]
    Fields,
}

impl Uploads {
    /// A head was read whose body follows. Until it is accepted, no other is read.
    pub(super) fn begins(&self, stream: u32, has_body: bool, connection: &Waker) {
        let mut state = self.state();
        state.unaccepted = Some((stream, has_body));
        match &mut state.connection {
            Some(waker) => waker.clone_from(connection),
            none => *none = Some(connection.clone()),
        }
    }

    /// Its request was accepted.
    pub(super) fn accepted(self: &Arc<Self>, head: &HeaderMap) -> Option<AcceptedUpload> {
        let mut state = self.state();
        let (stream, has_body) = state.unaccepted.take()?;
        state.uploads.push(Upload { stream, is_due: false, is_answered: false, trailer_fields: None });
        let mut expectations = head.get_all(EXPECT).iter().map(HeaderValue::as_bytes);
        let is_expected = !has_body && expectations.any(|value| value.eq_ignore_ascii_case(b"100-continue"));
        Some(AcceptedUpload { uploads: Arc::clone(self), stream, is_expected })
    }

    /// A trailer section of so many fields was read.
    pub(super) fn trailers(&self, stream: u32, fields: usize) {
        self.change(stream, |upload| upload.trailer_fields = Some(fields));
    }

    /// A stream whose client is to be sent a 100 now.
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
    /// Until its final response, if it expects another one before.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.is_expected.then(|| Unanswered { uploads: Arc::clone(&self.uploads), stream: self.stream })
    }

    /// Its body is waited for. A client that waits, too, is told to send it.
    pub(super) fn awaits_body(&mut self) {
        if !std::mem::take(&mut self.is_expected) {
            return;
        }
        self.uploads.change(self.stream, |upload| upload.is_due = true);
        self.uploads.is_due.store(true, Ordering::Release);
        if let Some(connection) = &self.uploads.state().connection {
            connection.wake_by_ref();
        }
    }

    /// Some of its body has come, so that its client does not wait.
    pub(super) fn has_body(&mut self) {
        self.is_expected = false;
    }

    /// Checks its trailer section, of which these are the fields that h2 has read.
    ///
    /// # Errors
    /// If it is malformed.
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

    fn begun(uploads: &Arc<Uploads>, stream: u32, expect: &'static str) -> AcceptedUpload {
        uploads.begins(stream, false, Waker::noop());
        uploads.accepted(&HeaderMap::from_iter([(EXPECT, HeaderValue::from_static(expect))])).unwrap()
    }

    #[test]
    fn a_100_is_due_once_from_when_the_body_is_waited_for_to_the_final_response() {
        let uploads = Arc::default();
        let [mut one, mut two, mut three, mut other] =
            [(1, "100-continue"), (3, "100-Continue"), (5, "100-continue"), (7, "something-else")]
                .map(|(stream, expect)| begun(&uploads, stream, expect));
        assert!(uploads.accepted(&HeaderMap::new()).is_none(), "there are no more");
        assert_eq!(uploads.take_due(), None);
        let unanswered = one.unanswered();
        for upload in [&mut one, &mut two, &mut three, &mut other] {
            upload.awaits_body();
        }
        drop(unanswered);
        assert!(other.unanswered().is_none());
        assert_eq!([uploads.take_due(), uploads.take_due(), uploads.take_due()], [Some(3), Some(5), None]);
        two.awaits_body();
        assert_eq!(uploads.take_due(), None);
    }

    #[test]
    fn a_body_that_has_come_or_is_given_up_makes_no_100_due() {
        let uploads = Arc::default();
        let mut come = begun(&uploads, 1, "100-continue");
        come.has_body();
        come.awaits_body();
        let mut given_up = begun(&uploads, 3, "100-continue");
        given_up.awaits_body();
        drop(given_up);
        uploads.begins(5, true, Waker::noop());
        let expect = HeaderMap::from_iter([(EXPECT, HeaderValue::from_static("100-continue"))]);
        uploads.accepted(&expect).unwrap().awaits_body();
        assert_eq!(uploads.take_due(), None);
    }

    #[test]
    fn trailers_are_checked_against_what_came_on_their_stream() {
        let uploads = Arc::default();
        let [one, two] = [1, 3].map(|stream| begun(&uploads, stream, ""));
        uploads.trailers(1, 2);
        uploads.trailers(3, 1);
        let fields = |value| HeaderMap::from_iter([(EXPECT, HeaderValue::from_static(value))]);
        assert_eq!(one.check(&fields("a")), Err(MalformedTrailers::Fields));
        assert_eq!(two.check(&fields("a")), Ok(()));
        assert_eq!(two.check(&fields("a ")), Err(MalformedTrailers::Blanks));
    }
}
