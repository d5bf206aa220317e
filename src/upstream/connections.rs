//! The pool of connections to upstream. Connections are reused, but only up to a maximum age.
//!
//! hyper-util's pool keeps a connection as long as it works. So if the address of upstream changes, a busy gateway
//! would continue to use the old one. The pool has no maximum age. Therefore the gateway replaces the whole client: its
//! idle connections close immediately and its busy ones after their response. Each new connection resolves the name
//! again.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request};
use hyper_util::client::legacy::{Builder, Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::connect::OriginConnector;
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::random::HashMap;
use crate::request::hop::KEEP_ALIVE;
use crate::stream::StreamBody;
use crate::sync::Mutex;

/// The gateway closes an idle connection before upstream is likely to do so. Then few requests are sent on a connection
/// that is being closed. If upstream announces a shorter time (`Keep-Alive: timeout=`), that time is used.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The maximum size of a response head (plus one read), and of the part of an upload that upstream has not read yet, in
/// bytes. hyper's default is 400 KB of each per connection. Response heads are much smaller.
const MAX_BUFFER: usize = 32 * 1024;

/// The maximum number of fields in a response head. A response with more is malformed. hyper's default is 100. Each
/// field takes 64 bytes while a head is being parsed.
const MAX_FIELDS: usize = 1024;

/// How long before the time that upstream announces the gateway closes an idle connection.
const MARGIN: Duration = Duration::from_secs(1);

/// A request whose field values have more bytes than this gets its own connection.
const LARGE_HEAD: usize = 16 * 1024;

pub(super) struct Connections {
    builder: Builder,
    connector: OriginConnector,
    max_age: Duration,
    clock: Clock,
    /// At most one for each service in the configuration.
    pooled: Mutex<HashMap<Service, Pooled>>,
    unpooled: Client<OriginConnector, StreamBody>,
}

/// The pooled connections to one service.
struct Pooled {
    client: Client<OriginConnector, StreamBody>,
    /// When the pool was created.
    since: Instant,
    /// The same moment, on the clock that stops while the machine is suspended.
    timer_since: tokio::time::Instant,
    /// The idle timeout. Zero: no connection is reused.
    idle: Duration,
}

impl Connections {
    pub(super) fn new(connector: OriginConnector, max_age: Duration, clock: Clock) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .http1_max_buf_size(MAX_BUFFER)
            .http1_max_headers(MAX_FIELDS)
            // A proxy corrects both instead of rejecting the response (RFC 9112 §5.1 and §5.2).
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true);
        let unpooled = builder.pool_max_idle_per_host(0).build(connector.clone());
        builder.pool_max_idle_per_host(usize::MAX).pool_timer(TokioTimer::new());
        Self { builder, connector, max_age, clock, pooled: Mutex::default(), unpooled }
    }

    fn new_pool(&self, idle: Duration) -> Pooled {
        let mut builder = self.builder.clone();
        builder.pool_idle_timeout(idle);
        if idle.is_zero() {
            builder.pool_max_idle_per_host(0);
        }
        let client = builder.build(self.connector.clone());
        Pooled { client, since: self.clock.now(), timer_since: self.clock.timer_now(), idle }
    }

    /// Sends a request on an idle pooled connection or on a new one. A request with a large head gets its own
    /// connection, because hyper keeps a buffer of that size until the connection closes.
    pub(super) fn send(&self, service: Service, request: Request<StreamBody>) -> ResponseFuture {
        let size: usize = request.headers().values().map(HeaderValue::len).sum();
        if size > LARGE_HEAD {
            return self.send_unpooled(request);
        }
        let (now, timer_now) = (self.clock.now(), self.clock.timer_now());
        let mut services = self.pooled.lock();
        let pooled = services.entry(service).or_insert_with(|| self.new_pool(POOL_IDLE_TIMEOUT));
        let age = now.saturating_duration_since(pooled.since);
        // The pool's timer stops while the machine is suspended. The timers of upstream and of NAT devices do not.
        let suspended = age.saturating_sub(timer_now.saturating_duration_since(pooled.timer_since));
        if age >= self.max_age || suspended >= pooled.idle.max(MARGIN) {
            *pooled = self.new_pool(POOL_IDLE_TIMEOUT);
        }
        pooled.client.request(request)
    }

    /// Sends a request on a new connection, which is not reused.
    pub(super) fn send_unpooled(&self, request: Request<StreamBody>) -> ResponseFuture {
        self.unpooled.request(request)
    }

    /// Applies the idle timeout that a service announces with `Keep-Alive`. If it is shorter than the timeout of the
    /// pool, the pool is replaced by one with the shorter timeout. That one is used until it reaches the maximum age.
    pub(super) fn apply_keep_alive(&self, service: Service, response: &HeaderMap) {
        let Some(idle) = announced_timeout(response).map(|timeout| timeout.saturating_sub(MARGIN)) else { return };
        let mut services = self.pooled.lock();
        if let Some(pooled) = services.get_mut(&service)
            && idle < pooled.idle
        {
            *pooled = self.new_pool(idle);
        }
    }
}

/// The shortest idle timeout that a response announces. Values that are not numbers are ignored.
fn announced_timeout(response: &HeaderMap) -> Option<Duration> {
    let values = response.get_all(KEEP_ALIVE).iter().filter_map(|value| value.to_str().ok());
    let parameters = values.flat_map(|value| value.split(',')).filter_map(|parameter| parameter.split_once('='));
    let timeouts = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"));
    timeouts.filter_map(|(_, seconds)| seconds.trim().parse().ok().map(Duration::from_secs)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_announced_timeout_is_used() {
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
            let mut response = HeaderMap::new();
            for value in values {
                response.append(KEEP_ALIVE, HeaderValue::from_static(value));
            }
            assert_eq!(announced_timeout(&response), seconds.map(Duration::from_secs), "{values:?}");
        }
    }
}
