//! The fast path of one connection. It stands between the socket and hyper, takes a known head, and writes the
//! response. hyper never sees that request.
//!
//! It must do so only while hyper is between two requests and has nothing left to write, and only if the received bytes
//! are exactly one head. After anything else (a body, a pipelined request), it is not certain where the next head
//! begins. From then on all bytes of the connection go to hyper.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::HitSource;
use super::head::HeadScanner;
use crate::request::fingerprint::Fingerprint;
use crate::telemetry::record::RequestRecord;

/// A body of at most this size, in bytes, is copied behind the head: that costs less than a vectored write.
const MAX_COPIED_BODY: usize = 4 * 1024;

/// Larger heads, in bytes, are not fingerprinted: clients do not repeat them.
const MAX_HEAD_SIZE: usize = 64 * 1024;

pub struct Responder<S: HitSource> {
    source: Arc<S>,
    connection: Arc<S::Connection>,
    position: Position,
    /// The head of the response that is being written, and its body if it is small.
    text: Vec<u8>,
    response: Option<HitResponse>,
}

/// The state of a connection when bytes arrive.
#[derive(Clone, Copy, Debug)]
pub struct ResponderState {
    /// hyper processes no request, and has nothing left to write.
    pub is_free: bool,
    /// The connection is closing, so the response needs `Connection: close`. The fast path cannot send that.
    pub is_closing: bool,
}

/// The position of the next byte in the client's data.
enum Position {
    /// At the beginning of a head.
    BetweenRequests,
    WithinHead(HeadScanner),
    /// Not known, for the rest of the connection.
    Unknown,
}

/// A response that is being written.
struct HitResponse {
    /// The number of bytes of the text that have been written.
    written: usize,
    /// The part of the body that has not been written.
    body: Bytes,
    /// The size of the whole body, in bytes.
    size: usize,
    record: RequestRecord,
}

impl<S: HitSource> Responder<S> {
    pub fn new(source: Arc<S>, connection: Arc<S::Connection>) -> Self {
        Self { source, connection, position: Position::BetweenRequests, text: Vec::new(), response: None }
    }

    /// Takes received bytes if they are a request that can be answered here. If it returns true, the server must call
    /// [`Self::poll_write`] next. If it returns false, the bytes go to hyper.
    pub fn take(&mut self, bytes: &[u8], state: ResponderState) -> bool {
        let scanner = match self.position {
            Position::Unknown => return false,
            _ if !state.is_free => return self.give_up(),
            Position::BetweenRequests if !self.tracker().is_between_requests() => return self.give_up(),
            Position::WithinHead(scanner) => {
                self.follow(scanner, bytes, None);
                return false;
            }
            Position::BetweenRequests => HeadScanner::default(),
        };
        let fast_path = self.source.fast_path();
        let is_one_head = fast_path.is_on()
            && !state.is_closing
            && bytes.len() <= MAX_HEAD_SIZE
            && bytes.starts_with(b"GET ")
            && bytes.ends_with(b"\r\n\r\n");
        let head = is_one_head.then(|| fast_path.read(bytes)).flatten();
        self.text.clear();
        if let Some(head) = &head
            && let Some((entry, record)) = fast_path.respond(head, &*self.source, &self.connection, &mut self.text)
        {
            let whole: &[u8] = entry.as_ref().map_or(&[], |entry| entry.body());
            let size = whole.len();
            let body = match entry {
                Some(entry) if size > MAX_COPIED_BODY => entry.body().clone(),
                _ => {
                    self.text.extend_from_slice(whole);
                    Bytes::new()
                }
            };
            self.response = Some(HitResponse { written: 0, body, size, record });
            return true;
        }
        self.follow(scanner, bytes, head.map(|head| head.fingerprint));
        false
    }

    fn tracker(&self) -> &super::RequestTracker {
        (*self.connection).as_ref()
    }

    fn give_up(&mut self) -> bool {
        self.position = Position::Unknown;
        self.tracker().stop_tracking();
        false
    }

    /// Scans bytes that go to hyper, to know where the next head begins.
    fn follow(&mut self, mut scanner: HeadScanner, bytes: &[u8], fingerprint: Option<Fingerprint>) {
        self.position = match scanner.end(bytes) {
            Some(end) if end == bytes.len() => {
                self.tracker().head_received(fingerprint);
                Position::BetweenRequests
            }
            Some(_) => Position::Unknown,
            None => Position::WithinHead(scanner),
        };
    }

    /// Frees the buffer of the response heads. It must not be called while a response is being written.
    pub fn shrink(&mut self) {
        self.text = Vec::new();
    }

    /// Writes the rest of a response. Returns whether a response was completed. Nothing else may be written before.
    ///
    /// # Errors
    /// Those of writing to `io`.
    pub fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(false)) };
        while response.written < self.text.len() || !response.body.is_empty() {
            let text = &self.text[response.written..];
            let written = if response.body.is_empty() {
                Pin::new(&mut *io).poll_write(context, text)
            } else {
                Pin::new(&mut *io).poll_write_vectored(context, &[IoSlice::new(text), IoSlice::new(&response.body)])
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_text = written.min(text.len());
            response.written += of_text;
            response.body.advance(written - of_text);
        }
        // TLS sends the last record only when it is flushed.
        ready!(Pin::new(io).poll_flush(context))?;
        response.record.add_sent(response.size);
        response.record.set_complete();
        self.response = None;
        // The buffer is kept for the next response, unless it has grown unusually large.
        if self.text.capacity() > 4 * MAX_COPIED_BODY {
            self.text = Vec::new();
        }
        Poll::Ready(Ok(true))
    }
}
