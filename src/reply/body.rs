//! The body of a response: buffered or streamed. It owns the request's record, which is written when the body is
//! dropped: after it has been sent, or when the client disconnects. It must not change any bytes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::budget::Charge;
use crate::stream::{BoxError, StreamBody};
use crate::telemetry::record::RequestRecord;

pub enum Content {
    /// `None` after the bytes have been sent.
    Buffered(Option<Bytes>),
    Stream(StreamBody),
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Buffered(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

/// The body of a response, with the record and the memory charge of its request.
pub struct ReplyBody {
    content: Content,
    record: RequestRecord,
    _charge: Charge,
}

impl ReplyBody {
    pub fn new(content: Content, record: RequestRecord, charge: Charge) -> Self {
        let mut body = Self { content, record, _charge: charge };
        body.record_end();
        body
    }

    /// hyper does not poll a body again after `is_end_stream`, so the end is recorded as soon as it is known.
    fn record_end(&mut self) {
        if self.is_end_stream() {
            self.record.set_complete();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Buffered(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(stream) => Pin::new(stream).poll_frame(context),
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                this.record.add_sent(frame.data_ref().map_or(0, Bytes::len));
                this.record_end();
            }
            Poll::Ready(None) => this.record.set_complete(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Buffered(bytes) => bytes.is_none(),
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Buffered(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}
