//! Telling a client of HTTP/2 that its connection is about to end, a moment before it does.
//!
//! hyper tells it too when it is to shut a connection down, but counts a round trip from then on: what comes later is
//! ignored, and a client may have been about to ask. So it is said here first (RFC 9113 §6.8 has it so), and nothing
//! else is done until the client has had time to go.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::frames::Frames;
use super::leaving::Leaving;

/// A GOAWAY that leaves every stream be, those that the client has yet to hear of it for included.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// One connection's.
pub(super) struct Notice {
    leaving: Leaving,
    /// What hyper has written.
    frames: Frames,
    written: usize,
    is_flushed: bool,
}

impl Notice {
    pub(super) fn new(leaving: Leaving) -> Self {
        Self { leaving, frames: Frames::new(), written: 0, is_flushed: false }
    }

    /// Says it, if it is time and can be said here. Nothing else may be written before it is said whole.
    pub(super) fn poll<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_flushed || (self.written == 0 && !(self.leaving.is_last_round() && self.frames.may_go_away())) {
            return Poll::Ready(Ok(()));
        }
        while self.written < GOAWAY.len() {
            let written = ready!(Pin::new(&mut *io).poll_write(context, &GOAWAY[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        ready!(Pin::new(io).poll_flush(context))?;
        self.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    /// Takes note of what hyper has written, which is this much of these parts.
    pub(super) fn follow<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>, mut written: usize) {
        for part in parts {
            let here = part.len().min(written);
            self.frames.follow(&part[..here]);
            written -= here;
        }
    }
}
