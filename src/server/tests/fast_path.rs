//! Timeouts on the fast path: the same as for other requests.

use std::sync::Arc;

use http::request::Parts;

use super::*;
use crate::budget::Charge;
use crate::catalogue::{Origin, Service};
use crate::config::{Config, Override};
use crate::gateway::Gateway;
use crate::random::Random;
use crate::request::key::RequestKey;
use crate::stream::StreamBody;
use crate::upstream::client::FetchContext;
use crate::upstream::{PendingResponse, Upstream, UpstreamResponse};

pub(super) const HEAD: &str = "GET /v2/p/products HTTP/1.1\r\nhost: x\r\nx-auth-token: t\r\n\r\n";

/// Answers every request with this body.
struct Fixed(Bytes);

impl Upstream for Fixed {
    fn fetch_list<'a>(
        &'a self,
        _: &'a RequestKey,
        _: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        Box::pin(std::future::ready(Ok(UpstreamResponse::read(Response::new(self.0.clone())))))
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        panic!("nothing is to be relayed")
    }
}

/// A gateway with a cached response that the fast path can serve.
pub(super) struct WarmGateway {
    gateway: Arc<Gateway>,
    body: Bytes,
}

impl WarmGateway {
    pub(super) async fn of(size: usize) -> Self {
        let body = Bytes::from(format!("{{\"products\":[\"{}\"]}}", "x".repeat(size)));
        let given = |path| Override { path, value: "http://127.0.0.1:1".into(), origin: "test".to_owned() };
        let overrides = [given(&["upstream", "workspace_url"]), given(&["upstream", "appstream_url"])];
        // Nothing expires while clients are slow.
        let settings = "[cache]\nttl = \"10h\"\n[grants]\ngrant_ttl = \"10h\"\n";
        let config = Config::from_layers("test.toml", settings, &overrides).unwrap();
        let gateway =
            Gateway::with_upstream(Arc::new(Fixed(body.clone())), &config, Clock::System, Random::System).unwrap();
        let warm = Self { gateway, body };
        let mut served = warm.serve();
        for _ in 0..2 {
            warm.send_and_read(&mut served).await;
        }
        warm
    }

    fn serve(&self) -> ServedConnection {
        self.serve_with_tls(None)
    }

    pub(super) fn serve_with_tls(&self, tls: Option<Tls>) -> ServedConnection {
        let connection = Arc::new(self.gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into()));
        let gateway = Arc::clone(&self.gateway);
        let shutdown_control = ShutdownControl::new(watch::channel(false).1, false);
        let fast_path = WireFastPath::new(&self.gateway, &connection, shutdown_control.shutdown());
        ServedConnection::with_handler(shutdown_control, tls, Some(Box::new(fast_path)), move |request| {
            let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
            async move { gateway.handle(request, &connection).await }
        })
    }

    async fn send_and_read(&self, served: &mut ServedConnection) {
        served.write(HEAD).await;
        self.read_response(served, Duration::ZERO).await;
    }

    /// Reads exactly one response, with a pause before each piece.
    async fn read_response(&self, served: &mut ServedConnection, pause: Duration) {
        self.read_response_from(served.client(), pause).await;
    }

    pub(super) async fn read_response_from<S: AsyncRead + Unpin>(&self, client: &mut S, pause: Duration) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&head));
        // With capacity for the whole body; otherwise the first pieces would be smaller.
        let mut body = Vec::with_capacity(self.body.len());
        while body.len() < self.body.len() {
            sleep(pause).await;
            let left = BETWEEN.min(self.body.len() - body.len());
            let read = (&mut *client).take(left as u64).read_buf(&mut body).await.unwrap();
            assert!(read > 0, "{}", body.len());
        }
        assert!(body == self.body);
    }

    pub(super) fn fast_path_hits(&self) -> u64 {
        self.metric("workspace_gateway_fast_path_hits_total")
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.metric("workspace_gateway_requests_in_flight")
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.gateway.metrics().encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_fast_path_response_that_is_not_read_ends_the_connection() {
    // With the body written together with the head, and separately.
    for size in [BETWEEN - 100, LARGE] {
        let warm = WarmGateway::of(size).await;
        // As the first request of a connection, and as a later one.
        for before in 0..2 {
            let mut served = warm.serve();
            for _ in 0..before {
                warm.send_and_read(&mut served).await;
            }
            served.write(HEAD).await;
            assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]), "{before}");
        }
        assert_eq!(warm.fast_path_hits(), 3, "the response that was not read counts, too");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fast_path_response_that_is_read_slowly_goes_on() {
    let warm = WarmGateway::of(LARGE).await;
    let mut served = warm.serve();
    for sent in 0..2 {
        served.write(HEAD).await;
        warm.read_response(&mut served, Duration::from_secs(29)).await;
        assert_eq!((served.causes(), warm.fast_path_hits()), (vec![], sent + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fast_path_response_restarts_the_keepalive_timeout() {
    let warm = WarmGateway::of(1).await;
    let mut served = warm.serve();
    for _ in 0..3 {
        warm.send_and_read(&mut served).await;
        sleep(Duration::from_secs(70)).await;
    }
    assert_eq!((served.seconds(), warm.fast_path_hits()), (210, 3));
    assert_eq!(served.ended().await, (215, vec![("keepalive-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_head_after_the_fast_path_has_the_header_timeout() {
    let warm = WarmGateway::of(1).await;
    let mut served = warm.serve();
    warm.send_and_read(&mut served).await;
    sleep(Duration::from_secs(20)).await;
    served.write("GET").await;
    sleep(Duration::from_secs(6)).await;
    served.write(" /v2").await;
    assert_eq!(served.ended().await, (30, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_while_a_response_is_unread_is_answered_after_it() {
    let warm = WarmGateway::of(LARGE).await;
    for other in [HEAD, "GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"] {
        let mut served = warm.serve();
        served.write(HEAD).await;
        sleep(Duration::from_secs(1)).await;
        served.write(other).await;
        sleep(Duration::from_secs(1)).await;
        warm.read_response(&mut served, Duration::from_millis(1)).await;
        if other == HEAD {
            warm.read_response(&mut served, Duration::ZERO).await;
        } else {
            let mut rest = String::new();
            served.client().read_to_string(&mut rest).await.unwrap();
            assert!(rest.starts_with("HTTP/1.1 404 "), "{rest}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_fast_path_responses() {
    let warm = WarmGateway::of(LARGE).await;
    // On a connection where hyper has seen no request, and on one where it has.
    for first in [HEAD, "GET /v2/p/products HTTP/1.1\r\nx-auth-token: t\r\nhost: x\r\nx-n: 1\r\n\r\n"] {
        let mut served = warm.serve();
        served.write(first).await;
        warm.read_response(&mut served, Duration::ZERO).await;
        let before = warm.fast_path_hits();
        served.write(HEAD).await;
        sleep(Duration::from_secs(1)).await;
        served.shutdown_control.drain();
        sleep(Duration::from_secs(1)).await;
        assert!(!served.serving.is_finished());
        warm.read_response(&mut served, Duration::from_secs(20)).await;
        assert_eq!(served.client().read(&mut [0]).await.unwrap(), 0);
        let (_, causes) = served.ended().await;
        assert_eq!((causes, warm.fast_path_hits()), (vec![], before + 1));
    }
    // Shutdown does not wait forever for a client that does not read.
    let mut served = warm.serve();
    served.write(HEAD).await;
    sleep(Duration::from_secs(1)).await;
    served.shutdown_control.drain();
    assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_sending_side_gets_the_whole_response() {
    let warm = WarmGateway::of(LARGE).await;
    let mut served = warm.serve();
    served.write(HEAD).await;
    served.client().shutdown().await.unwrap();
    warm.read_response(&mut served, Duration::from_millis(1)).await;
    assert_eq!(served.client().read(&mut [0]).await.unwrap(), 0);
    assert_eq!((served.ended().await.1, warm.fast_path_hits()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_announces_the_end_of_the_connection_does_not_use_the_fast_path() {
    let warm = WarmGateway::of(1).await;
    let mut served = warm.serve();
    warm.send_and_read(&mut served).await;
    assert_eq!(warm.fast_path_hits(), 1);
    served.shutdown_control.announce();
    served.write(HEAD).await;
    let mut response = String::new();
    served.client().read_to_string(&mut response).await.unwrap();
    assert!(response.contains("\r\ncache-status: workspace-gateway; hit"), "{response}");
    assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
    assert_eq!((served.ended().await, warm.fast_path_hits()), ((0, vec![]), 1));
}
