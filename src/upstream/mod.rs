//! Asking: the only place with an HTTP client.
//!
//! A product list is asked for whole, within a deadline ([`Upstream::ask`]); everything else is
//! relayed as a stream that may take as long as something moves ([`Upstream::relay`]).

pub mod client;
mod connect;
mod connections;
mod error;
pub mod gate;
mod idle;
pub mod probation;
mod tunnel;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response};

use crate::catalogue::{Origin, Service};
use crate::request::key::Key;
use crate::stream::StreamBody;
use client::Errand;
pub use error::UpstreamError;

/// What upstream, and a proxy on the way there, is told who asks.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("workspace-gateway/", env!("CARGO_PKG_VERSION")));

/// An answer that is under way.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, UpstreamError>> + Send + 'a>>;

/// Whoever answers for the two services: the HTTP client, or a test's script.
pub trait Upstream: Send + Sync {
    /// Asks for a product list, and reads the answer whole within the deadline. Fails if there is no
    /// whole answer.
    fn ask<'a>(&'a self, key: &'a Key, errand: Errand) -> Answering<'a, Bytes>;

    /// Sends a request on as it is, hop-by-hop headers apart, and streams both bodies. Fails if there
    /// is no answer's head.
    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> Answering<'a, StreamBody>;
}
