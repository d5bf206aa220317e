//! Asking: the only place with an HTTP client.
//!
//! A product list is asked for whole, within a deadline ([`Upstream::ask`]); everything else is
//! relayed as a stream that may take as long as something moves ([`Upstream::relay`]).

mod causes;
pub(crate) mod client;
mod connect;
mod connections;
mod error;
mod failure;
mod fault;
pub(crate) mod gate;
mod hint;
mod idle;
pub(crate) mod key_breaker;
pub(crate) mod probe;
mod read_after_write_error;
mod resolve;
mod stall_limit;
pub(crate) mod successes;
mod trust;
mod tunnel;
mod upload;

use std::future::{Future, ready};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, response};

use crate::budget::Account;
use crate::catalogue::{Origin, Service};
use crate::request::key::RequestKey;
use crate::stream::StreamBody;
use client::FetchContext;
pub use error::UpstreamError;
pub use failure::Failure;
pub use fault::Fault;
pub use trust::Authorities;

/// What upstream, and a proxy on the way there, is told who asks.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("workspace-gateway/", env!("CARGO_PKG_VERSION")));

/// How much of a body is read, in bytes, to see what a refusal is about or whether a response is an error.
pub(crate) const MAX_PEEK: usize = 64 * 1024;

/// How long that may take, from the head on.
pub(crate) const PEEK_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer that is under way.
pub type PendingResponse<'a, T> = Pin<Box<dyn Future<Output = Result<T, UpstreamError>> + Send + 'a>>;

/// What upstream has answered a call for a product list.
pub enum UpstreamResponse {
    /// A whole answer, neither 401 nor 403.
    Whole(Response<Bytes>),
    /// A 401 or 403, of which only the head has been read.
    Refused(CallerRefusal),
}

/// A refusal of the caller. It counts from its head on, whether or not its body comes to an end.
pub struct CallerRefusal {
    /// The head.
    pub head: response::Parts,
    /// Reads the body: `None` if it is larger than [`MAX_PEEK`], takes longer than [`PEEK_TIMEOUT`] or breaks off.
    pub body: Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>,
}

impl UpstreamResponse {
    /// An answer whose body is there already.
    pub fn read(response: Response<Bytes>) -> Self {
        if !is_refusal(response.status()) {
            return Self::Whole(response);
        }
        let (head, body) = response.into_parts();
        Self::Refused(CallerRefusal { head, body: Box::pin(ready(Some(body))) })
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Whole(response) => response.status(),
            Self::Refused(refused) => refused.head.status,
        }
    }
}

/// Whether an answer of this status refuses the caller.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Whoever answers for the two services: the HTTP client, or a test's script.
pub trait Upstream: Send + Sync {
    /// Asks for a product list, and reads the answer whole within the deadline, or a refusal up to the end of its head.
    /// What is read is charged to the account. Fails if there is neither.
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        account: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse>;

    /// Sends a request on as it is, hop-by-hop headers apart, and streams both bodies. Fails if there
    /// is no answer's head.
    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>>;
}
