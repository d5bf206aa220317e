//! Bodies that are read as they arrive, in the one form that every place here takes.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};

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

/// The body, which fails with a `LengthLimitError` once it is longer than this.
pub fn limited(body: StreamBody, limit: usize) -> StreamBody {
    stream(Limited::new(body, limit))
}
