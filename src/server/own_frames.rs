//! HTTP/2 frames that the gateway writes between those of hyper. hyper offers neither of them:
//!
//! - GOAWAY some time before the connection ends (RFC 9113 §6.8). hyper sends its own one when it shuts down, and then
//!   ignores requests that arrive after one round trip. A client may be about to send one.
//! - 100 (Continue), for which some clients wait before they send a body (RFC 9110 §10.1.1).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// GOAWAY with the highest stream identifier: all streams are still served (RFC 9113 §6.8).
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// The current frame. It is written completely before anything else.
#[derive(Default)]
pub(super) struct OwnFrames {
    frame: [u8; GOAWAY.len()],
    length: usize,
    written: usize,
    is_unflushed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnFrame {
    GoAway,
    /// A 100 on this stream. `reduced`: the client's header table size, if it is below the default of 4,096 bytes.
    Continue {
        stream: u32,
        reduced: Option<u32>,
    },
}

impl OwnFrame {
    fn bytes(self) -> ([u8; GOAWAY.len()], usize) {
        match self {
            Self::GoAway => (GOAWAY, GOAWAY.len()),
            Self::Continue { stream, reduced } => {
                let (mut frame, mut length) = ([0; GOAWAY.len()], 9);
                let mut add = |bytes: &[u8]| {
                    frame[length..][..bytes.len()].copy_from_slice(bytes);
                    length += bytes.len();
                };
                // The first head after a reduction has to acknowledge it (RFC 7541 §4.2). hyper does so again in its
                // next head, which has no effect.
                match reduced {
                    None => {}
                    Some(size @ ..0x1f) => add(&[0x20 | size as u8]),
                    Some(size) => {
                        let [.., high, low] = ((size - 0x1f) << 1).to_be_bytes();
                        add(&[0x3f, 0x80 | low >> 1, high]);
                    }
                }
                // `:status` is sent as a literal without indexing (RFC 7541 §6.2.2), so that hyper's encoder is not
                // affected.
                add(&[8, 3, b'1', b'0', b'0']);
                frame[2] = length as u8 - 9;
                // HEADERS with END_HEADERS.
                (frame[3], frame[4]) = (1, 4);
                frame[5..9].copy_from_slice(&stream.to_be_bytes());
                (frame, length)
            }
        }
    }
}

impl OwnFrames {
    /// Writes the frames that `next` returns until there are none. Nothing else may be written before this is ready.
    pub(super) fn poll<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        context: &mut Context<'_>,
        mut next: impl FnMut() -> Option<OwnFrame>,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.length {
                let written = ready!(Pin::new(&mut *io).poll_write(context, &self.frame[self.written..self.length]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += written;
            }
            match next() {
                Some(frame) => {
                    (self.frame, self.length) = frame.bytes();
                    (self.written, self.is_unflushed) = (0, true);
                }
                None if self.is_unflushed => {
                    ready!(Pin::new(&mut *io).poll_flush(context))?;
                    self.is_unflushed = false;
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continued(reduced: Option<u32>) -> Vec<u8> {
        let (frame, length) = OwnFrame::Continue { stream: 0x0102, reduced }.bytes();
        frame[..length].to_vec()
    }

    #[test]
    fn a_100_first_acknowledges_a_smaller_table() {
        let status = [8, 3, b'1', b'0', b'0'];
        // RFC 7541 §5.1 has 1337 as an example.
        for (reduced, update) in [
            (None, &[][..]),
            (Some(0), &[0x20]),
            (Some(30), &[0x3e]),
            (Some(31), &[0x3f, 0x80, 0x00]),
            (Some(1_337), &[0x3f, 0x9a, 0x0a]),
            (Some(4_095), &[0x3f, 0xe0, 0x1f]),
        ] {
            let length = u8::try_from(update.len() + status.len()).unwrap();
            let expected = [&[0, 0, length, 1, 4, 0, 0, 1, 2], update, &status].concat();
            assert_eq!(continued(reduced), expected, "{reduced:?}");
        }
    }
}
