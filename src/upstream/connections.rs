//! The connections to upstream: kept between calls, but not for ever.
//!
//! hyper-util's client keeps a connection in its pool as long as it works, so an upstream that has moved
//! would be asked at its old address for as long as it is kept busy there. The pool knows no age, so the
//! client as a whole is replaced: no connection is older than the client it belongs to, the idle ones
//! close with it, those in use when their answer has ended, and every new one resolves the name again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request};
use hyper_util::client::legacy::{Builder, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::OriginConnector;
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::request::hop::KEEP_ALIVE;
use crate::stream::StreamBody;
use crate::sync::Mutex;

/// An idle connection is let go before upstream is likely to close it, so that few requests meet one
/// that is just being closed. An upstream that announces less time (`Keep-Alive: timeout=`) gets less.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How much of a response's head is read, give or take one read, and how much of an upload waits until upstream reads it, in
/// bytes. hyper's default is 400 KB of either for each connection. Heads are much smaller.
const MAX_BUFFER: usize = 32 * 1024;

/// How many fields a response may have; one with more is broken. hyper's default is 100, and each takes 64 bytes while a head
/// is read.
const MAX_FIELDS: usize = 1024;

/// How much sooner than upstream the gateway closes an idle connection, if upstream announces when it does.
const SOONER: Duration = Duration::from_secs(1);

/// From which size on a request's fields are large, in bytes.
const LARGE_HEAD: usize = 16 * 1024;

/// The connections to the services.
pub(super) struct Connections {
    builder: Builder,
    connector: OriginConnector,
    max_age: Duration,
    clock: Clock,
    /// Of each service that has been asked, of which there are as many as the settings name.
    pooled: Mutex<HashMap<Service, Pooled>>,
    unpooled: Client<OriginConnector, StreamBody>,
}

/// Connections that are kept, and since when there have been any.
struct Pooled {
    client: Client<OriginConnector, StreamBody>,
    since: Instant,
    /// The same moment, by a clock that stands still in a suspension.
    timer_since: tokio::time::Instant,
    /// How long they may be idle. Zero: none is kept.
    idle: Duration,
}

impl Connections {
    /// None so far.
    pub(super) fn new(connector: OriginConnector, max_age: Duration, clock: Clock) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .http1_max_buf_size(MAX_BUFFER)
            .http1_max_headers(MAX_FIELDS)
            // A proxy repairs both instead of failing (RFC 9112 §5.1 and §5.2).
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true);
        let unpooled = builder.pool_max_idle_per_host(0).build(connector.clone());
        builder.pool_max_idle_per_host(usize::MAX).pool_timer(TokioTimer::new());
        Self { builder, connector, max_age, clock, pooled: Mutex::default(), unpooled }
    }

    /// Connections that may be idle for so long, none so far.
    fn pool(&self, idle: Duration) -> Pooled {
        let mut builder = self.builder.clone();
        builder.pool_idle_timeout(idle);
        if idle.is_zero() {
            builder.pool_max_idle_per_host(0);
        }
        let client = builder.build(self.connector.clone());
        Pooled { client, since: self.clock.now(), timer_since: self.clock.timer_now(), idle }
    }

    /// Sends a request on a connection that is neither in use nor too old, or on a new one. One with a large head gets a
    /// connection of its own: hyper keeps a buffer of that size as long as the connection is open.
    pub(super) fn send(&self, service: Service, request: Request<StreamBody>) -> ResponseFuture {
        let size: usize = request.headers().values().map(HeaderValue::len).sum();
        if size > LARGE_HEAD {
            return self.send_apart(request);
        }
        let (now, timer_now) = (self.clock.now(), self.clock.timer_now());
        let mut services = self.pooled.lock();
        let pooled = services.entry(service).or_insert_with(|| self.pool(POOL_IDLE_TIMEOUT));
        let age = now.saturating_duration_since(pooled.since);
        // The pool's timer does not see a suspension, but the peer, and whatever translates addresses, does.
        let suspended = age.saturating_sub(timer_now.saturating_duration_since(pooled.timer_since));
        if age >= self.max_age || suspended >= pooled.idle.max(SOONER) {
            *pooled = self.pool(POOL_IDLE_TIMEOUT);
        }
        pooled.client.request(request)
    }

    /// Sends a request on a connection of its own, which is not kept.
    pub(super) fn send_apart(&self, request: Request<StreamBody>) -> ResponseFuture {
        self.unpooled.request(request)
    }

    /// Takes note of how long a service keeps idle connections, if it announces that. Where the pool would keep them longer, it
    /// is replaced, until the next one is due for its age.
    pub(super) fn heed(&self, service: Service, answer: &HeaderMap) {
        let Some(idle) = announced(answer).map(|timeout| timeout.saturating_sub(SOONER)) else { return };
        let mut services = self.pooled.lock();
        if let Some(pooled) = services.get_mut(&service)
            && idle < pooled.idle
        {
            *pooled = self.pool(idle);
        }
    }
}

/// The shortest idle time that an answer announces. What can't be read is ignored.
fn announced(answer: &HeaderMap) -> Option<Duration> {
    let values = answer.get_all(KEEP_ALIVE).iter().filter_map(|value| value.to_str().ok());
    let parameters = values.flat_map(|value| value.split(',')).filter_map(|parameter| parameter.split_once('='));
    let timeouts = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"));
    timeouts.filter_map(|(_, seconds)| seconds.trim().parse().ok().map(Duration::from_secs)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_time_that_is_announced_counts() {
        for (values, seconds) in [
            (&["timeout=5"][..], Some(5)),
            (&["timeout=5, max=100"], Some(5)),
            (&["max=1,TimeOut = 7 "], Some(7)),
            (&["timeout=9", "timeout=8"], Some(8)),
            (&["timeout=0"], Some(0)),
            (&["timeout=x, timeout=6"], Some(6)),
            (&["timeout=-1"], None),
            (&["timeout=99999999999999999999"], None),
            (&["timeout"], None),
            (&["max=5"], None),
            (&[], None),
        ] {
            let mut answer = HeaderMap::new();
            for value in values {
                answer.append(KEEP_ALIVE, HeaderValue::from_static(value));
            }
            assert_eq!(announced(&answer), seconds.map(Duration::from_secs), "{values:?}");
        }
    }
}
