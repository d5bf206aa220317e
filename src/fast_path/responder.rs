//! The fast path of one connection: takes a head that is known, between the socket and hyper, and writes the response.
//! hyper never sees that request.
//!
//! It may do so only where hyper is between two requests and has nothing left to write, and where what has come is certainly
//! one head and no more. If anything else has come by a connection (a body, a request before the last response was
//! written), its position in the stream is not certain any more. From then on all that comes is hyper's.

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

/// Bodies up to this size, in bytes, are copied behind their head and written with it: that costs less than a second part.
const SMALL: usize = 4 * 1024;

/// Heads of more bytes are not looked for: clients do not repeat them.
const LARGEST: usize = 64 * 1024;

/// The fast path of one connection of HTTP/1.
pub struct Responder<S: HitSource> {
    source: Arc<S>,
    connection: Arc<S::Connection>,
    position: Position,
    /// The head of the response that is being written, and its body if that is small.
    text: Vec<u8>,
    response: Option<HitResponse>,
}

/// What the server knows of a connection when bytes arrive.
#[derive(Clone, Copy, Debug)]
pub struct ResponderState {
    /// hyper answers nothing, and has nothing left to write.
    pub is_free: bool,
    /// The connection is about to end, which responses have to say. Those of the fast path do not.
    pub is_closing: bool,
}

/// Where the next byte is in what a client sends.
enum Position {
    /// At the beginning of a head.
    Between,
    /// In a head.
    Within(HeadScanner),
    /// That is not known, and will not be.
    Unknown,
}

/// A response that is not yet written whole: `written` bytes of the text are, and this part of the body is not.
struct HitResponse {
    written: usize,
    body: Bytes,
    /// Of the whole body.
    size: usize,
    record: RequestRecord,
}

impl<S: HitSource> Responder<S> {
    /// For a connection of this source's.
    pub fn new(source: Arc<S>, connection: Arc<S::Connection>) -> Self {
        Self { source, connection, position: Position::Between, text: Vec::new(), response: None }
    }

    /// Takes bytes that have arrived, if they are a request that can be answered here. Returns whether it has: if so,
    /// [`Self::poll_write`] is next; if not, they are hyper's.
    pub fn take(&mut self, bytes: &[u8], state: ResponderState) -> bool {
        let scanner = match self.position {
            Position::Unknown => return false,
            _ if !state.is_free => return self.give_up(),
            Position::Between if !self.tracker().is_between_requests() => return self.give_up(),
            Position::Within(scanner) => {
                self.follow(scanner, bytes, None);
                return false;
            }
            Position::Between => HeadScanner::default(),
        };
        let fast_path = self.source.fast_path();
        let is_one_head = fast_path.is_on()
            && !state.is_closing
            && bytes.len() <= LARGEST
            && bytes.starts_with(b"GET ")
            && bytes.ends_with(b"\r\n\r\n");
        let fingerprint = is_one_head.then(|| fast_path.fingerprints.of(bytes));
        self.text.clear();
        if let Some(head) = &fingerprint
            && let Some((body, record)) = fast_path.respond(head, &*self.source, &self.connection, &mut self.text)
        {
            let size = body.len();
            let body = if size <= SMALL {
                self.text.extend_from_slice(&body);
                Bytes::new()
            } else {
                body
            };
            self.response = Some(HitResponse { written: 0, body, size, record });
            return true;
        }
        self.follow(scanner, bytes, fingerprint);
        false
    }

    fn tracker(&self) -> &super::RequestTracker {
        (*self.connection).as_ref()
    }

    fn give_up(&mut self) -> bool {
        self.position = Position::Unknown;
        self.tracker().gives_up();
        false
    }

    /// Follows what goes to hyper, so that it is known where the next head begins.
    fn follow(&mut self, mut scanner: HeadScanner, bytes: &[u8], fingerprint: Option<Fingerprint>) {
        self.position = match scanner.end(bytes) {
            Some(end) if end == bytes.len() => {
                self.tracker().head_has_come(fingerprint);
                Position::Between
            }
            Some(_) => Position::Unknown,
            None => Position::Within(scanner),
        };
    }

    /// Frees the memory that responses were written from. Nothing may be left to write.
    pub fn shrink(&mut self) {
        self.text = Vec::new();
    }

    /// Writes what is left of a response, before anything else is written. Returns whether one has been written to its end.
    ///
    /// # Errors
    /// What writing brings.
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
        // With TLS it is not sent until then.
        ready!(Pin::new(io).poll_flush(context))?;
        response.record.sent(response.size);
        response.record.is_whole();
        self.response = None;
        // Kept for the next response, but for what hardly any takes.
        if self.text.capacity() > 4 * SMALL {
            self.text = Vec::new();
        }
        Poll::Ready(Ok(true))
    }
}
