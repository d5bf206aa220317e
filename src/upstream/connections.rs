//! The connections to upstream: kept between calls, but not for ever.
//!
//! hyper-util's client keeps a connection in its pool as long as it works, so an upstream that has moved
//! would be asked at its old address for as long as it is kept busy there. The pool knows no age, so the
//! client as a whole is replaced: no connection is older than the client it belongs to, the idle ones
//! close with it, those in use when their answer has ended, and every new one resolves the name again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Request;
use hyper_util::client::legacy::{Builder, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::Connector;
use crate::clock::Clock;
use crate::stream::StreamBody;

/// An idle connection is let go before upstream is likely to close it, so that few requests meet one
/// that is just being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Far more than any answer's head has. hyper would buffer 400 KB of one, for each connection; it stops
/// reading here, give or take what it has read at once.
const MAX_HEAD_SIZE: usize = 64 * 1024;

/// The connections to both services.
pub(super) struct Connections {
    builder: Builder,
    connector: Connector,
    max_age: Duration,
    clock: Clock,
    pooled: Mutex<Pooled>,
    unpooled: Client<Connector, StreamBody>,
}

/// Connections that are kept, and since when there have been any.
struct Pooled {
    client: Client<Connector, StreamBody>,
    since: Instant,
}

impl Connections {
    /// None so far.
    pub(super) fn new(connector: Connector, max_age: Duration, clock: Clock) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.http1_max_buf_size(MAX_HEAD_SIZE);
        let unpooled = builder.pool_max_idle_per_host(0).build(connector.clone());
        builder.pool_max_idle_per_host(usize::MAX).pool_timer(TokioTimer::new()).pool_idle_timeout(POOL_IDLE_TIMEOUT);
        let pooled = Mutex::new(Pooled { client: builder.build(connector.clone()), since: clock.now() });
        Self { builder, connector, max_age, clock, pooled, unpooled }
    }

    /// Sends a request on a connection that is neither in use nor too old, or on a new one.
    pub(super) fn send(&self, request: Request<StreamBody>) -> ResponseFuture {
        let now = self.clock.now();
        let mut pooled = self.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(pooled.since) >= self.max_age {
            *pooled = Pooled { client: self.builder.build(self.connector.clone()), since: now };
        }
        pooled.client.request(request)
    }

    /// Sends a request on a connection of its own, which is not kept.
    pub(super) fn send_apart(&self, request: Request<StreamBody>) -> ResponseFuture {
        self.unpooled.request(request)
    }
}
