//! Isolation (invariant 11): for each resource, one client uses as much as it can, and another still gets its share.
//! Waiting is measured as the number of other calls that end before a client is served.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use workspace_gateway::testing::budget::Purpose;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;

use crate::support::{Call, PROJECT, Parts, Scripted, World, all_replies, config, within};

const SETTINGS: &str = "[upstream]\nmax_calls = 8\nmax_calls_per_caller = 8\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A product list.
    List,
    Relay,
}

impl Kind {
    /// Each number is another cache key or path.
    fn path(self, number: usize) -> String {
        match self {
            Self::List => format!("/v2/{PROJECT}/products?product_id={number}"),
            Self::Relay => format!("/v2/{PROJECT}/desktops/{number}"),
        }
    }
}

/// Addresses of two other hosts.
const ATTACKER: [u8; 4] = [192, 0, 2, 1];
const VICTIM: [u8; 4] = [192, 0, 2, 2];

/// A gateway whose upstream responses are sent by the test.
struct Fixture {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
    /// The calls that upstream has not answered, in order of arrival.
    in_flight: VecDeque<Call>,
    requests: Vec<JoinHandle<StatusCode>>,
}

impl Fixture {
    fn new(settings: &str) -> Self {
        Self::at(Clock::System, settings)
    }

    fn at(clock: Clock, settings: &str) -> Self {
        let (upstream, calls) = Scripted::new();
        let unused_url = "http://127.0.0.1:1";
        let config = config(unused_url, unused_url, settings);
        let gateway = Gateway::with_upstream(upstream, &config, clock, Random::System).unwrap();
        Self { gateway, calls, in_flight: VecDeque::new(), requests: Vec::new() }
    }

    fn connection(&self, peer: [u8; 4]) -> Arc<Connection> {
        Arc::new(self.gateway.connection(([127, 0, 0, 1], 8080).into(), IpAddr::from(peer)))
    }

    /// Begins a request. Without a token it has no credential.
    fn begin(&mut self, connection: &Arc<Connection>, token: &str, path: String) {
        self.begin_with(Method::GET, connection, token, path);
    }

    fn begin_with(&mut self, method: Method, connection: &Arc<Connection>, token: &str, path: String) {
        let request = Request::builder().method(method).uri(path).header("host", "gateway");
        let request = if token.is_empty() { request } else { request.header("x-auth-token", token) };
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (gateway, connection) = (Arc::clone(&self.gateway), Arc::clone(connection));
        self.requests.push(tokio::spawn(async move {
            let (head, body) = gateway.handle(request, &connection).await.into_parts();
            // A relayed request keeps its call slot until the end of the body.
            body.collect().await.unwrap();
            head.status
        }));
    }

    /// Waits until the sum of all series with this prefix has a value.
    async fn until(&self, series: &str, value: usize) {
        within(async {
            loop {
                let text = self.gateway.metrics().encode().unwrap();
                let values = text.lines().filter(|line| line.starts_with(series));
                let all: f64 = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
                if all as usize == value {
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until no more calls arrive, and takes those that have arrived.
    async fn until_idle(&mut self) {
        let mut idle_rounds = 0;
        while idle_rounds < 100 {
            tokio::task::yield_now().await;
            idle_rounds += 1;
            while let Ok(call) = self.calls.try_recv() {
                self.in_flight.push_back(call);
                idle_rounds = 0;
            }
        }
    }

    /// Waits until this many requests are queued for a call slot, and takes the calls that have arrived.
    async fn until_queued(&mut self, queued: usize) {
        self.until("workspace_gateway_upstream_calls_queued{", queued).await;
        while let Ok(call) = self.calls.try_recv() {
            self.in_flight.push_back(call);
        }
    }

    /// Answers the oldest call, waits for the call that takes its slot, and returns the token of that call.
    async fn next(&mut self) -> String {
        let call = self.in_flight.pop_front().expect("no call is in flight");
        call.answer_complete(StatusCode::OK, r#"{"products":[]}"#);
        let next = within(self.calls.recv()).await.unwrap();
        let token = next.token.clone();
        self.in_flight.push_back(next);
        token
    }

    /// Makes a successful call, so that the caller is known.
    async fn prove(&mut self, connection: &Arc<Connection>, token: &str, kind: Kind) {
        self.begin(connection, token, kind.path(100_000));
        within(self.calls.recv()).await.unwrap().answer_complete(StatusCode::OK, r#"{"products":[]}"#);
        assert_eq!(within(self.requests.pop().unwrap()).await.unwrap(), StatusCode::OK);
    }
}

/// One client that sends as many requests as it can.
#[derive(Clone, Copy, Debug)]
struct Attack {
    kind: Kind,
    /// Whether upstream accepts its token. If not, each request has another invalid token.
    is_known: bool,
    is_on_one_connection: bool,
}

impl Attack {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for kind in [Kind::List, Kind::Relay] {
            for is_known in [false, true] {
                all.extend([false, true].map(|is_on_one_connection| Self { kind, is_known, is_on_one_connection }));
            }
        }
        all
    }

    /// The number of call slots that its class gets while no other client sends requests.
    fn share(self) -> usize {
        if self.is_known && self.kind == Kind::List { 8 } else { 4 }
    }

    async fn begin(self, fixture: &mut Fixture) {
        let only = fixture.connection(ATTACKER);
        if self.is_known {
            fixture.prove(&only, "attacker", self.kind).await;
        }
        for number in 0..100 {
            let token = if self.is_known { "attacker".to_owned() } else { format!("invented-{number}") };
            let connection = if self.is_on_one_connection { Arc::clone(&only) } else { fixture.connection(ATTACKER) };
            fixture.begin(&connection, &token, self.kind.path(number));
        }
        fixture.until_queued(100 - self.share()).await;
        assert_eq!(fixture.in_flight.len(), self.share(), "{self:?}");
    }
}

#[tokio::test]
async fn a_hundred_queued_requests_delay_another_client_by_one_call() {
    for attack in Attack::all() {
        let mut fixture = Fixture::new(SETTINGS);
        let victim = fixture.connection(VICTIM);
        if attack.is_known {
            fixture.prove(&victim, "victim", attack.kind).await;
        }
        attack.begin(&mut fixture).await;
        let half = attack.share() / 2;
        for number in 200..200 + half {
            fixture.begin(&victim, "victim", attack.kind.path(number));
        }
        fixture.until_queued(100 - attack.share() + half).await;
        // The victim is served next, until it has as many slots as the attacker.
        for _ in 0..half {
            assert_eq!(fixture.next().await, "victim", "{attack:?}");
        }
        assert_ne!(fixture.next().await, "victim", "{attack:?}");
    }
}

#[tokio::test]
async fn a_proved_caller_does_not_wait_for_unknown_callers() {
    for attack in Attack::all().into_iter().filter(|attack| !attack.is_known) {
        let mut fixture = Fixture::new(SETTINGS);
        let victim = fixture.connection(ATTACKER);
        fixture.prove(&victim, "victim", Kind::List).await;
        attack.begin(&mut fixture).await;
        for number in 200..204 {
            fixture.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(fixture.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

/// Settings with many call slots, so that the memory budget is the limit.
const SMALL_BUDGET: &str = "[upstream]\nmax_calls = 4096\nmax_calls_per_caller = 4096\n[limits]\nmemory = \"8MiB\"\n";

#[tokio::test]
async fn a_client_that_uses_its_memory_share_does_not_delay_others() {
    for attack in Attack::all() {
        let mut fixture = Fixture::new(SMALL_BUDGET);
        let victim = fixture.connection(VICTIM);
        if attack.is_known {
            fixture.prove(&victim, "victim", attack.kind).await;
        }
        let only = fixture.connection(ATTACKER);
        if attack.is_known {
            fixture.prove(&only, "attacker", attack.kind).await;
        }
        for number in 0..1_000 {
            let token = if attack.is_known { "attacker".to_owned() } else { format!("invented-{number}") };
            let connection = if attack.is_on_one_connection { Arc::clone(&only) } else { fixture.connection(ATTACKER) };
            fixture.begin(&connection, &token, attack.kind.path(number));
        }
        fixture.until_idle().await;
        let used = fixture.gateway.budget().used();
        let limit = fixture.gateway.budget().limit() * if attack.is_known { 4 } else { 2 } / 5;
        assert!((limit / 2..=limit).contains(&used), "{attack:?}: {used} of {limit}");
        // None of the attacker's calls has to end first. A relayed request needs 208 KiB.
        for number in 2_000..2_000 + if attack.kind == Kind::List { 16 } else { 2 } {
            fixture.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(fixture.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

#[tokio::test]
async fn unknown_callers_at_their_memory_limit_do_not_delay_known_callers() {
    for attack in Attack::all().into_iter().filter(|attack| !attack.is_known) {
        let mut fixture = Fixture::new(SMALL_BUDGET);
        // All clients have the same address.
        let loopback = [127, 0, 0, 1];
        let victim = fixture.connection(loopback);
        fixture.prove(&victim, "victim", Kind::List).await;
        let only = fixture.connection(loopback);
        for number in 0..1_000 {
            let connection = if attack.is_on_one_connection { Arc::clone(&only) } else { fixture.connection(loopback) };
            fixture.begin(&connection, &format!("invented-{number}"), attack.kind.path(number));
        }
        fixture.until_idle().await;
        let limit = fixture.gateway.budget().limit() / 2;
        assert!(fixture.gateway.budget().used() <= limit, "{attack:?}");
        for number in 2_000..2_000 + if attack.kind == Kind::List { 64 } else { 6 } {
            fixture.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(fixture.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

#[tokio::test]
async fn a_relayed_request_waits_for_memory_without_a_call_slot() {
    let mut fixture = Fixture::new("");
    let (known, unknown) = (fixture.connection(VICTIM), fixture.connection(ATTACKER));
    fixture.prove(&known, "known", Kind::Relay).await;
    let budget = Arc::clone(fixture.gateway.budget());
    // Enough memory for the request, but not for its relay.
    let all = budget.charge(Purpose::Connections, budget.limit() - budget.used() - 180 * 1024);
    fixture.begin(&unknown, "unknown", Kind::Relay.path(1));
    assert_eq!(within(fixture.requests.pop().unwrap()).await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    fixture.begin(&known, "known", Kind::Relay.path(2));
    fixture.until_idle().await;
    assert!(fixture.in_flight.is_empty() && !fixture.requests[0].is_finished());
    fixture.until("workspace_gateway_upstream_calls{", 0).await;
    drop(all);
    within(fixture.calls.recv()).await.unwrap().answer_complete(StatusCode::OK, "{}");
    assert_eq!(within(fixture.requests.pop().unwrap()).await.unwrap(), StatusCode::OK);
}

/// The class in which a relayed request of the caller takes its call slot.
async fn class(fixture: &mut Fixture, token: &str) -> &'static str {
    fixture.begin(&fixture.connection(VICTIM), token, Kind::Relay.path(0));
    let call = within(fixture.calls.recv()).await.unwrap();
    let text = fixture.gateway.metrics().encode().unwrap();
    let is_in = |class: &&str| {
        let series = format!("workspace_gateway_upstream_calls_by_class{{class=\"{class}\",kind=\"relay\"}} 1");
        text.lines().any(|line| line == series)
    };
    let class = ["proved", "relayed", "unknown"].into_iter().find(is_in).expect("it has a slot");
    // This status does not change the class of the caller.
    call.answer_complete(StatusCode::NOT_FOUND, "");
    within(fixture.requests.pop().unwrap()).await.unwrap();
    class
}

#[tokio::test]
async fn a_product_list_makes_its_caller_proved_for_an_hour() {
    let clock = ManualClock::default();
    // The grant lapses long before.
    let settings = format!("{SETTINGS}[grants]\ngrant_ttl = \"1s\"\noutage_grace = \"1s\"\n");
    let mut fixture = Fixture::at(Clock::Manual(clock.clone()), &settings);
    assert_eq!(class(&mut fixture, "t").await, "unknown");
    fixture.prove(&fixture.connection(VICTIM), "t", Kind::List).await;
    clock.advance(Duration::from_secs(3599));
    assert_eq!(class(&mut fixture, "t").await, "proved");
    clock.advance(Duration::from_secs(1));
    assert_eq!(class(&mut fixture, "t").await, "relayed");
}

#[tokio::test]
async fn a_relayed_success_in_a_project_makes_its_caller_known() {
    let (project, version) = (format!("/v2/{PROJECT}/desktops"), "/v2".to_owned());
    let error = r#"{"error_code":"WKS.1"}"#;
    for (method, path, status, body, expected) in [
        (Method::GET, &project, 200, "{}", "relayed"),
        (Method::POST, &project, 202, "", "relayed"),
        (Method::PUT, &project, 204, "", "relayed"),
        (Method::PATCH, &project, 200, "{}", "relayed"),
        (Method::DELETE, &project, 200, "{}", "relayed"),
        (Method::OPTIONS, &project, 200, "", "unknown"),
        (Method::HEAD, &project, 200, "", "unknown"),
        (Method::GET, &project, 200, error, "unknown"),
        (Method::POST, &project, 200, error, "unknown"),
        (Method::GET, &project, 304, "", "unknown"),
        (Method::GET, &project, 404, "{}", "unknown"),
        (Method::GET, &version, 200, "{}", "unknown"),
    ] {
        let mut fixture = Fixture::new(SETTINGS);
        fixture.begin_with(method.clone(), &fixture.connection(VICTIM), "t", path.clone());
        let call = within(fixture.calls.recv()).await.unwrap();
        call.answer_complete(StatusCode::from_u16(status).unwrap(), body);
        within(fixture.requests.pop().unwrap()).await.unwrap();
        assert_eq!(class(&mut fixture, "t").await, expected, "{method} {path} {status} {body}");
    }
}

#[tokio::test]
async fn a_401_makes_its_caller_unknown() {
    for kind in [Kind::List, Kind::Relay] {
        let mut fixture = Fixture::new(SETTINGS);
        fixture.prove(&fixture.connection(VICTIM), "t", Kind::List).await;
        fixture.begin(&fixture.connection(VICTIM), "t", kind.path(1));
        within(fixture.calls.recv()).await.unwrap().answer_complete(StatusCode::UNAUTHORIZED, "{}");
        within(fixture.requests.pop().unwrap()).await.unwrap();
        assert_eq!(class(&mut fixture, "t").await, "unknown", "{kind:?}");
    }
}

#[tokio::test]
async fn a_caller_becomes_known_although_its_client_disconnects() {
    let mut fixture = Fixture::new(SETTINGS);
    fixture.begin(&fixture.connection(VICTIM), "t", Kind::Relay.path(1));
    let request = fixture.requests.pop().unwrap();
    within(fixture.calls.recv()).await.unwrap().answer(StatusCode::OK, "a body that does not end");
    fixture.until("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}", 1).await;
    request.abort();
    tokio::time::pause();
    // The time within which the gateway waits for an error in the body.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::time::resume();
    assert_eq!(class(&mut fixture, "t").await, "relayed");
}

#[tokio::test]
async fn slow_uploads_of_unknown_callers_lose_their_slots_within_10_s() {
    let world = World::with(SETTINGS).await;
    world.simulator.hold();
    let client: Client<_, Parts> = Client::builder(TokioExecutor::new()).build_http();
    let mut uploads = Vec::new();
    for number in 0..4 {
        let (parts, body) = mpsc::channel(1);
        let request = Request::post(world.url("/v2/PROJECT/desktops")).header("x-auth-token", format!("t-{number}"));
        let upload = tokio::spawn(client.request(request.body(Parts(body)).unwrap()));
        uploads.push((parts, upload));
    }
    within(world.simulator.wait_for_requests(4)).await;
    let victim = world.begin("victim", "/v2/PROJECT/desktops");
    world.until_metric("workspace_gateway_upstream_calls_queued{kind=\"relay\",service=\"workspace\"}", 1.0).await;
    // The clock is paused: time passes when all tasks wait.
    tokio::time::pause();
    for _ in 0..9 {
        for (parts, _) in &uploads {
            parts.send(Bytes::from_static(b"some bytes")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for (_, upload) in uploads {
        let (head, body) = upload.await.unwrap().unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.status, StatusCode::REQUEST_TIMEOUT, "{body:?}");
        assert!(String::from_utf8_lossy(&body).contains("1 KiB/s"), "{body:?}");
    }
    tokio::time::resume();
    within(world.simulator.wait_for_requests(5)).await;
    world.simulator.release();
    assert_eq!(all_replies(vec![victim]).await[0].status(), StatusCode::UNAUTHORIZED);
    let slow = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"upload-slow\"}";
    assert_eq!(world.metric(slow), 4.0);
}

#[tokio::test]
async fn requests_without_a_credential_are_limited_per_connection() {
    let mut fixture = Fixture::new("[upstream]\nmax_calls = 8\nmax_calls_per_caller = 2\n");
    let attacker = fixture.connection([127, 0, 0, 1]);
    for number in 0..100 {
        fixture.begin(&attacker, "", Kind::Relay.path(number));
    }
    fixture.until_queued(98).await;
    let other = fixture.connection([127, 0, 0, 1]);
    for number in 0..2 {
        fixture.begin(&other, "", Kind::Relay.path(number));
        within(fixture.calls.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn clients_of_a_shared_address_are_distinguished_by_connection() {
    let shared = format!("[listen]\nshared_addresses = [\"192.0.2.0/31\"]\n{SETTINGS}");
    for (settings, next) in [(SETTINGS, "other"), (&shared, "behind-the-same-address")] {
        let mut fixture = Fixture::new(settings);
        let attacker = fixture.connection(ATTACKER);
        for number in 0..100 {
            fixture.begin(&attacker, &format!("invented-{number}"), Kind::Relay.path(number));
        }
        fixture.until_queued(96).await;
        fixture.begin(&fixture.connection(ATTACKER), "behind-the-same-address", Kind::Relay.path(200));
        fixture.until_queued(97).await;
        fixture.begin(&fixture.connection(VICTIM), "other", Kind::Relay.path(200));
        fixture.until_queued(98).await;
        assert_eq!(fixture.next().await, next);
    }
}
