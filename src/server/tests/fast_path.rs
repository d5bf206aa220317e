//! How long a client of the fast path may take for what: as long as any other.

use std::sync::Arc;

use http::request::Parts;

use super::*;
use crate::budget::Account;
use crate::catalogue::{Origin, Service};
use crate::config::{Config, Override};
use crate::gateway::Gateway;
use crate::random::Random;
use crate::request::key::RequestKey;
use crate::stream::StreamBody;
use crate::upstream::client::FetchContext;
use crate::upstream::{PendingResponse, Upstream, UpstreamResponse};

pub(super) const HEAD: &str = "GET /v2/p/products HTTP/1.1\r\nhost: x\r\nx-auth-token: t\r\n\r\n";

/// Answers every question with this.
struct Fixed(Bytes);

impl Upstream for Fixed {
    fn ask<'a>(&'a self, _: &'a RequestKey, _: FetchContext, _: &'a Account) -> PendingResponse<'a, UpstreamResponse> {
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

/// A gateway that knows the head and has an answer of some size.
pub(super) struct Knowing {
    gateway: Arc<Gateway>,
    body: Bytes,
}

impl Knowing {
    pub(super) async fn of(size: usize) -> Self {
        let body = Bytes::from(format!("{{\"products\":[\"{}\"]}}", "x".repeat(size)));
        let given = |path| Override { path, value: "http://127.0.0.1:1".to_owned(), origin: "test".to_owned() };
        let overrides = [given(&["upstream", "workspace_url"]), given(&["upstream", "appstream_url"])];
        // Nothing lapses while clients take their time.
        let settings = "[cache]\nttl = \"10h\"\n[grants]\ngrant_ttl = \"10h\"\n";
        let config = Config::from_layers("test.toml", settings, &overrides).unwrap();
        let gateway = Gateway::before(Arc::new(Fixed(body.clone())), &config, Clock::System, Random::System).unwrap();
        let knowing = Self { gateway, body };
        let mut served = knowing.served();
        for _ in 0..2 {
            knowing.asks(&mut served).await;
        }
        knowing
    }

    /// A connection that it serves.
    fn served(&self) -> Served {
        self.served_in(None)
    }

    /// The same in TLS.
    pub(super) fn served_in(&self, tls: Option<Tls>) -> Served {
        let connection = Arc::new(self.gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into()));
        let gateway = Arc::clone(&self.gateway);
        let exit = ShutdownControl::new(watch::channel(false).1, false);
        let fast_path = WireFastPath::new(&self.gateway, &connection, exit.shutdown());
        Served::by(exit, tls, Some(Box::new(fast_path)), move |request| {
            let (gateway, connection) = (Arc::clone(&gateway), Arc::clone(&connection));
            async move { gateway.handle(request, &connection).await }
        })
    }

    async fn asks(&self, served: &mut Served) {
        served.write(HEAD).await;
        self.is_answered(served, Duration::ZERO).await;
    }

    /// Reads the answer to its end and no further, with a pause before each piece.
    async fn is_answered(&self, served: &mut Served, pause: Duration) {
        self.answers(served.client(), pause).await;
    }

    pub(super) async fn answers<S: AsyncRead + Unpin>(&self, client: &mut S, pause: Duration) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&head));
        // With room for it, or the first pieces would be smaller.
        let mut body = Vec::with_capacity(self.body.len());
        while body.len() < self.body.len() {
            sleep(pause).await;
            let left = BETWEEN.min(self.body.len() - body.len());
            let read = (&mut *client).take(left as u64).read_buf(&mut body).await.unwrap();
            assert!(read > 0, "{}", body.len());
        }
        assert!(body == self.body);
    }

    /// How many answers have gone the fast path.
    pub(super) fn fast_path_hits(&self) -> u64 {
        self.metric("workspace_gateway_fast_path_hits_total")
    }

    /// How many answers are not finished.
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
async fn an_answer_of_the_fast_path_that_is_not_read_ends_the_connection() {
    // With its body written behind the head, and apart from it.
    for size in [BETWEEN - 100, LARGE] {
        let knowing = Knowing::of(size).await;
        // The first on its connection, and not the first.
        for before in 0..2 {
            let mut served = knowing.served();
            for _ in 0..before {
                knowing.asks(&mut served).await;
            }
            served.write(HEAD).await;
            assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]), "{before}");
        }
        assert_eq!(knowing.fast_path_hits(), 3, "the one who didn't read it was answered, too");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_fast_path_that_is_read_slowly_goes_on() {
    let knowing = Knowing::of(LARGE).await;
    let mut served = knowing.served();
    for asked in 0..2 {
        served.write(HEAD).await;
        knowing.is_answered(&mut served, Duration::from_secs(29)).await;
        assert_eq!((served.causes(), knowing.fast_path_hits()), (vec![], asked + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_idle_since_its_last_answer_by_the_fast_path() {
    let knowing = Knowing::of(1).await;
    let mut served = knowing.served();
    for _ in 0..3 {
        knowing.asks(&mut served).await;
        sleep(Duration::from_secs(70)).await;
    }
    assert_eq!((served.seconds(), knowing.fast_path_hits()), (210, 3));
    assert_eq!(served.ended().await, (215, vec![("keepalive-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_head_after_the_fast_path_has_as_long_as_any_other() {
    let knowing = Knowing::of(1).await;
    let mut served = knowing.served();
    knowing.asks(&mut served).await;
    sleep(Duration::from_secs(20)).await;
    served.write("GET").await;
    sleep(Duration::from_secs(6)).await;
    served.write(" /v2").await;
    assert_eq!(served.ended().await, (30, vec![("header-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_while_an_answer_is_unread_is_answered_after_it() {
    let knowing = Knowing::of(LARGE).await;
    for other in [HEAD, "GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"] {
        let mut served = knowing.served();
        served.write(HEAD).await;
        sleep(Duration::from_secs(1)).await;
        served.write(other).await;
        sleep(Duration::from_secs(1)).await;
        knowing.is_answered(&mut served, Duration::from_millis(1)).await;
        if other == HEAD {
            knowing.is_answered(&mut served, Duration::ZERO).await;
        } else {
            let mut rest = String::new();
            served.client().read_to_string(&mut rest).await.unwrap();
            assert!(rest.starts_with("HTTP/1.1 404 "), "{rest}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn to_drain_is_to_finish_what_the_fast_path_has_begun() {
    let knowing = Knowing::of(LARGE).await;
    // On a connection that hyper has not seen a request of, and on one that it has.
    for first in [HEAD, "GET /v2/p/products HTTP/1.1\r\nx-auth-token: t\r\nhost: x\r\nx-n: 1\r\n\r\n"] {
        let mut served = knowing.served();
        served.write(first).await;
        knowing.is_answered(&mut served, Duration::ZERO).await;
        let before = knowing.fast_path_hits();
        served.write(HEAD).await;
        sleep(Duration::from_secs(1)).await;
        served.exit.drain();
        sleep(Duration::from_secs(1)).await;
        assert!(!served.serving.is_finished());
        knowing.is_answered(&mut served, Duration::from_secs(20)).await;
        assert_eq!(served.client().read(&mut [0]).await.unwrap(), 0);
        let (_, causes) = served.ended().await;
        assert_eq!((causes, knowing.fast_path_hits()), (vec![], before + 1));
    }
    // Nobody waits for ever for it to be read.
    let mut served = knowing.served();
    served.write(HEAD).await;
    sleep(Duration::from_secs(1)).await;
    served.exit.drain();
    assert_eq!(served.ended().await, (30, vec![("write-timeout", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_no_more_is_answered_whole() {
    let knowing = Knowing::of(LARGE).await;
    let mut served = knowing.served();
    served.write(HEAD).await;
    served.client().shutdown().await.unwrap();
    knowing.is_answered(&mut served, Duration::from_millis(1)).await;
    assert_eq!(served.client().read(&mut [0]).await.unwrap(), 0);
    assert_eq!((served.ended().await.1, knowing.fast_path_hits()), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn what_has_to_say_that_the_connection_ends_takes_the_whole_path() {
    let knowing = Knowing::of(1).await;
    let mut served = knowing.served();
    knowing.asks(&mut served).await;
    assert_eq!(knowing.fast_path_hits(), 1);
    served.exit.leave();
    served.write(HEAD).await;
    let mut answer = String::new();
    served.client().read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\r\ncache-status: workspace-gateway; hit"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_eq!((served.ended().await, knowing.fast_path_hits()), ((0, vec![]), 1));
}
