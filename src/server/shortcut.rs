//! The short way through the server: a head that has come before is answered here, between the socket and hyper,
//! which never sees it.
//!
//! That may only be where hyper is between two requests and has nothing left to write, and where it is certain that
//! what has come is one head and no more. A connection by which anything else has come (a body, a request before
//! the last was answered) is hyper's from then on, and so are those whose listener closes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::leaving::Leaving;
use super::pulse::Pulse;
use crate::gateway::{Connection, Gateway};
use crate::request::head::{Fingerprint, Scan};
use crate::telemetry::record::Record;

/// Bodies up to this size are copied behind their head and written with it: that costs less than a second part.
const SMALL: usize = 4 * 1024;

/// Heads longer than this are none that come again and again.
const LARGEST: usize = 64 * 1024;

/// One connection's.
pub(super) struct Shortcut {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    leaving: Leaving,
    place: Place,
    /// What is being written.
    text: Vec<u8>,
    answer: Option<Answer>,
}

/// Where in what a client sends the next byte is.
enum Place {
    /// At the beginning of a head.
    Between,
    /// In a head.
    Within(Scan),
    /// That is not known here, and won't be.
    Unknown,
}

/// An answer that is not yet written whole: this much of its text, and this part of its body, is to be written.
struct Answer {
    written: usize,
    body: Bytes,
    size: usize,
    record: Record,
}

impl Shortcut {
    pub(super) fn new(gateway: Arc<Gateway>, connection: Arc<Connection>, leaving: Leaving) -> Self {
        Self { gateway, connection, leaving, place: Place::Between, text: Vec::new(), answer: None }
    }

    /// Takes what has come, if it can be answered here. If not, it is hyper's.
    pub(super) fn takes(&mut self, news: &[u8], pulse: &Pulse) -> bool {
        let scan = match self.place {
            Place::Unknown => return false,
            _ if !pulse.is_free() => return self.gives_up(),
            Place::Between if !self.connection.is_between_requests() => return self.gives_up(),
            Place::Within(scan) => {
                self.follow(scan, news, None);
                return false;
            }
            Place::Between => Scan::default(),
        };
        // What has to be said in an answer then is not known here.
        let is_one = !self.leaving.is_begun()
            && news.len() <= LARGEST
            && news.starts_with(b"GET ")
            && news.ends_with(b"\r\n\r\n");
        let fingerprint = is_one.then(|| self.gateway.fingerprint(news));
        self.text.clear();
        if let Some(head) = &fingerprint
            && let Some((body, record)) = self.gateway.repeat(head, &self.connection, &mut self.text)
        {
            let size = body.len();
            let body = if size <= SMALL {
                self.text.extend_from_slice(&body);
                Bytes::new()
            } else {
                body
            };
            pulse.head_is_whole();
            self.answer = Some(Answer { written: 0, body, size, record });
            return true;
        }
        self.follow(scan, news, fingerprint);
        false
    }

    fn gives_up(&mut self) -> bool {
        self.place = Place::Unknown;
        self.connection.loses_track();
        false
    }

    /// Follows what goes to hyper, so that it is known where the next head begins.
    fn follow(&mut self, mut scan: Scan, news: &[u8], fingerprint: Option<Fingerprint>) {
        self.place = match scan.end(news) {
            Some(end) if end == news.len() => {
                self.connection.hears(fingerprint);
                Place::Between
            }
            Some(_) => Place::Unknown,
            None => Place::Within(scan),
        };
    }

    /// Writes what is left of an answer. Nothing else may be written before.
    pub(super) fn poll_finish<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
        pulse: &Pulse,
    ) -> Poll<io::Result<()>> {
        let Some(answer) = &mut self.answer else { return Poll::Ready(Ok(())) };
        while answer.written < self.text.len() || !answer.body.is_empty() {
            let text = &self.text[answer.written..];
            let written = if answer.body.is_empty() {
                Pin::new(&mut *io).poll_write(context, text)
            } else {
                Pin::new(&mut *io).poll_write_vectored(context, &[IoSlice::new(text), IoSlice::new(&answer.body)])
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_text = written.min(text.len());
            answer.written += of_text;
            answer.body.advance(written - of_text);
        }
        // With TLS it is not sent until then.
        ready!(Pin::new(io).poll_flush(context))?;
        answer.record.sent(answer.size);
        answer.record.is_whole();
        self.answer = None;
        // Kept for the next one, but for what hardly any answer takes.
        if self.text.capacity() > 4 * SMALL {
            self.text = Vec::new();
        }
        pulse.answered_here();
        Poll::Ready(Ok(()))
    }
}
