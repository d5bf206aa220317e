//! Streamed bodies: the one body type of this crate. A body must not be buffered here beyond what [`peek`] needs.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use tokio::time::sleep;

/// The size of one read from a connection, in bytes. hyper enlarges its buffer when one read fills it.
pub(crate) const READ_AT_ONCE: usize = 16 * 1024 - 1;

/// An error of a body or a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub type StreamBody = UnsyncBoxBody<Bytes, BoxError>;

pub fn stream<B>(body: B) -> StreamBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// An empty body. It takes no memory.
pub fn nothing() -> StreamBody {
    stream(Empty::new())
}

/// The body, which fails with a `LengthLimitError` if it is longer than `limit` bytes.
pub(crate) fn limited(body: StreamBody, limit: usize) -> StreamBody {
    stream(Limited::new(body, limit))
}

/// Reads the beginning of a body: at least `min` bytes, or fewer if the body is shorter or `limit` has passed. Returns
/// it with the complete body.
pub(crate) async fn peek(mut body: StreamBody, min: usize, limit: Duration) -> (Bytes, StreamBody) {
    let (mut beginning, mut read) = (BytesMut::new(), VecDeque::new());
    let mut timeout = pin!(sleep(limit));
    while beginning.len() < min {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut timeout => break,
        };
        let Some(frame) = frame else { break };
        if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
            beginning.extend_from_slice(data);
        }
        let is_over = frame.is_err();
        read.push_back(frame);
        if is_over {
            break;
        }
    }
    (beginning.freeze(), stream(PeekedBody { read, unread: body, has_yielded: false }))
}

/// A body whose beginning has been read.
struct PeekedBody {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    unread: StreamBody,
    /// Whether `poll_frame` has returned `Pending` once before an error, so that hyper sends what precedes the error.
    has_yielded: bool,
}

impl Body for PeekedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // If a body fails before it has been pending once, hyper sends nothing of the response, not even the head.
        if matches!(self.read.front(), Some(Err(_))) && !std::mem::replace(&mut self.has_yielded, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.unread).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.unread.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_bytes_that_were_peeked_are_still_in_the_body() {
        for (min, expected) in [(0, ""), (3, "complete"), (100, "complete")] {
            let (beginning, body) = peek(stream(Full::new(Bytes::from("complete"))), min, LONG).await;
            assert_eq!(beginning, expected);
            assert_eq!(body.collect().await.unwrap().to_bytes(), "complete");
        }
        let (beginning, body) = peek(limited(stream(Full::new(Bytes::from("too long"))), 3), 100, LONG).await;
        assert_eq!(beginning, "");
        assert!(body.collect().await.is_err());
    }

    /// A body whose parts arrive when the test sends them.
    struct Parts(mpsc::Receiver<Bytes>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_arrive_after_the_time_limit_are_not_peeked_and_not_lost() {
        let (parts, receiver) = mpsc::channel(2);
        parts.send(Bytes::from("begun")).await.unwrap();
        let (beginning, body) = peek(stream(Parts(receiver)), 100, LONG).await;
        assert_eq!(beginning, "begun");
        parts.send(Bytes::from(" and ended")).await.unwrap();
        drop(parts);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "begun and ended");
    }
}
