//! Bodies that are read as they arrive, in the one form that every place here takes.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};
use tokio::time::sleep;

/// How much is read from a connection at once, in bytes. hyper makes its buffer larger whenever one read fills it.
pub(crate) const READ_AT_ONCE: usize = 16 * 1024 - 1;

/// Any error, of a body or a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is read as it arrives.
pub type StreamBody = UnsyncBoxBody<Bytes, BoxError>;

/// Gives any body that form.
pub fn stream<B>(body: B) -> StreamBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// No body, which takes no memory.
pub fn nothing() -> StreamBody {
    stream(Empty::new())
}

/// The body, which fails with a `LengthLimitError` once it is longer than this.
pub(crate) fn limited(body: StreamBody, limit: usize) -> StreamBody {
    stream(Limited::new(body, limit))
}

/// The beginning of a body, so much of it at least, if it has as much and that comes in time; and the body, of which
/// nothing is lost.
pub(crate) async fn peek(mut body: StreamBody, enough: usize, limit: Duration) -> (Bytes, StreamBody) {
    let (mut beginning, mut read) = (BytesMut::new(), VecDeque::new());
    let mut late = pin!(sleep(limit));
    while beginning.len() < enough {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut late => break,
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
    (beginning.freeze(), stream(PeekedBody { read, rest: body, has_yielded: false }))
}

/// A body of which something has been read.
struct PeekedBody {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: StreamBody,
    /// Whether what comes before an error has had time to be sent.
    has_yielded: bool,
}

impl Body for PeekedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // hyper sends nothing of a response whose body fails before it has waited once, not even the head.
        if matches!(self.read.front(), Some(Err(_))) && !std::mem::replace(&mut self.has_yielded, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_was_looked_at_is_not_lost() {
        for (enough, seen) in [(0, ""), (3, "whole"), (100, "whole")] {
            let (beginning, body) = peek(stream(Full::new(Bytes::from("whole"))), enough, LONG).await;
            assert_eq!(beginning, seen);
            assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        }
        let (beginning, body) = peek(limited(stream(Full::new(Bytes::from("too long"))), 3), 100, LONG).await;
        assert_eq!(beginning, "");
        assert!(body.collect().await.is_err());
    }

    /// A body whose parts come when they are sent.
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
    async fn what_does_not_come_in_time_is_not_looked_at_and_not_lost() {
        let (parts, receiver) = mpsc::channel(2);
        parts.send(Bytes::from("begun")).await.unwrap();
        let (beginning, body) = peek(stream(Parts(receiver)), 100, LONG).await;
        assert_eq!(beginning, "begun");
        parts.send(Bytes::from(" and ended")).await.unwrap();
        drop(parts);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "begun and ended");
    }
}
