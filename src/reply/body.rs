//! The body of an answer: whole or streamed. It carries the request's record, which is thereby
//! written down when the answer has been sent, or given up.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::budget::Charge;
use crate::stream::{BoxError, StreamBody};
use crate::telemetry::record::RequestRecord;

/// What an answer's body is made of.
pub enum Content {
    /// Bytes at hand; none once they are sent.
    Whole(Option<Bytes>),
    /// Bytes from upstream, as they arrive.
    Stream(StreamBody),
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

/// An answer's body, the record of its request, and what the request takes of the memory budget.
pub struct ReplyBody {
    content: Content,
    record: RequestRecord,
    _charge: Charge,
}

impl ReplyBody {
    /// Hands the record and the charge to the body.
    pub fn new(content: Content, record: RequestRecord, charge: Charge) -> Self {
        let mut body = Self { content, record, _charge: charge };
        body.note_the_end();
        body
    }

    /// hyper doesn't ask again once it knows that a body has ended.
    fn note_the_end(&mut self) {
        if self.is_end_stream() {
            self.record.is_whole();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(stream) => Pin::new(stream).poll_frame(context),
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                this.record.sent(frame.data_ref().map_or(0, Bytes::len));
                this.note_the_end();
            }
            Poll::Ready(None) => this.record.is_whole(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_none(),
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}
