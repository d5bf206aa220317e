//! Calls to upstream. No other part of the gateway has an HTTP client.
//!
//! A product list is read completely, within a deadline ([`Upstream::fetch_list`]). Everything else is relayed as a
//! stream, which has an idle timeout and no deadline ([`Upstream::relay`]).

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
pub(crate) mod quota;
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

use crate::budget::Charge;
use crate::catalogue::{Origin, Service};
use crate::request::key::RequestKey;
use crate::stream::StreamBody;
use client::FetchContext;
pub use error::UpstreamError;
pub use failure::Failure;
pub use fault::Fault;
pub use trust::Authorities;
pub(crate) use trust::tls;
pub use tunnel::connect_status;

/// The `User-Agent` of calls to upstream and of CONNECT requests to a proxy.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("workspace-gateway/", env!("CARGO_PKG_VERSION")));

/// How many bytes of a body are read to find the error code of a refusal, or to find out whether a response is an
/// error.
pub(crate) const MAX_PEEK: usize = 64 * 1024;

/// How long reading these bytes may take, from the end of the head.
pub(crate) const PEEK_TIMEOUT: Duration = Duration::from_secs(2);

pub type PendingResponse<'a, T> = Pin<Box<dyn Future<Output = Result<T, UpstreamError>> + Send + 'a>>;

/// Upstream's response to a call for a product list.
pub enum UpstreamResponse {
    /// A complete response that is neither 401 nor 403.
    Complete(Response<Bytes>),
    /// A 401 or 403. Only its head has been read.
    Refused(CallerRefusal),
}

/// A refusal of the caller. It takes effect as soon as its head has been read, even if its body never ends.
pub struct CallerRefusal {
    pub head: response::Parts,
    /// Reads the body: `None` if it is larger than [`MAX_PEEK`], takes longer than [`PEEK_TIMEOUT`] or is incomplete.
    pub body: Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>,
}

impl UpstreamResponse {
    /// For a response whose body has been read already.
    pub fn read(response: Response<Bytes>) -> Self {
        if !is_refusal(response.status()) {
            return Self::Complete(response);
        }
        let (head, body) = response.into_parts();
        Self::Refused(CallerRefusal { head, body: Box::pin(ready(Some(body))) })
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::Complete(response) => response.status(),
            Self::Refused(refused) => refused.head.status,
        }
    }
}

/// Whether a response with this status refuses the caller.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Both upstream services. The implementations are the HTTP client and test doubles.
pub trait Upstream: Send + Sync {
    /// Sends a request for a product list and reads the complete response within the deadline. Of a 401 or 403, it
    /// reads only the head. `memory` is charged for the response, and grows with it.
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        memory: Charge,
    ) -> PendingResponse<'a, UpstreamResponse>;

    /// Relays a request unchanged, except for hop-by-hop fields, and streams both bodies. Fails if no response head
    /// arrives.
    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>>;
}
