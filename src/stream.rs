//! Bodies that are read as they arrive, in the one form that every place here takes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited};

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
pub fn limited(body: StreamBody, limit: usize) -> StreamBody {
    stream(Limited::new(body, limit))
}

/// The beginning of a body, so much of it at least, if it has as much; and the body, of which nothing is lost.
pub async fn peek(mut body: StreamBody, enough: usize) -> (Bytes, StreamBody) {
    let (mut beginning, mut read) = (BytesMut::new(), VecDeque::new());
    while beginning.len() < enough {
        let Some(frame) = body.frame().await else { break };
        if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
            beginning.extend_from_slice(data);
        }
        let is_over = frame.is_err();
        read.push_back(frame);
        if is_over {
            break;
        }
    }
    (beginning.freeze(), stream(Begun { read, rest: body }))
}

/// A body of which something has been read.
struct Begun {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: StreamBody,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
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

    use super::*;

    #[tokio::test]
    async fn what_was_looked_at_is_not_lost() {
        for (enough, seen) in [(0, ""), (3, "whole"), (100, "whole")] {
            let (beginning, body) = peek(stream(Full::new(Bytes::from("whole"))), enough).await;
            assert_eq!(beginning, seen);
            assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
        }
        let (beginning, body) = peek(limited(stream(Full::new(Bytes::from("too long"))), 3), 100).await;
        assert_eq!(beginning, "");
        assert!(body.collect().await.is_err());
    }
}
