//! What one client can take from others: for each resource one client does its worst, and another still gets its share.
//! Waiting is counted in turns: how many of the others' calls end before it is served.

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

use crate::support::{Call, PROJECT, Parts, Scripted, World, all, config, within};

const SETTINGS: &str = "[upstream]\nmax_calls = 8\nmax_calls_per_caller = 8\n";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A product list.
    List,
    Relay,
}

impl Kind {
    /// Each number is another question.
    fn path(self, number: usize) -> String {
        match self {
            Self::List => format!("/v2/{PROJECT}/products?product_id={number}"),
            Self::Relay => format!("/v2/{PROJECT}/desktops/{number}"),
        }
    }
}

/// Addresses of two hosts that are not this one.
const ATTACKER: [u8; 4] = [192, 0, 2, 1];
const VICTIM: [u8; 4] = [192, 0, 2, 2];

/// A gateway before an upstream that answers when a test says so.
struct Stage {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
    /// The calls that upstream has not answered, in order of arrival.
    under_way: VecDeque<Call>,
    asking: Vec<JoinHandle<StatusCode>>,
}

impl Stage {
    fn new(settings: &str) -> Self {
        Self::at(Clock::System, settings)
    }

    fn at(clock: Clock, settings: &str) -> Self {
        let (upstream, calls) = Scripted::new();
        let nowhere = "http://127.0.0.1:1";
        let gateway = Gateway::before(upstream, &config(nowhere, nowhere, settings), clock, Random::System).unwrap();
        Self { gateway, calls, under_way: VecDeque::new(), asking: Vec::new() }
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
        self.asking.push(tokio::spawn(async move {
            let (head, body) = gateway.handle(request, &connection).await.into_parts();
            // With its end, the slot of what is relayed is free.
            body.collect().await.unwrap();
            head.status
        }));
    }

    /// Waits until all series of a metric that begin like this add up to a value.
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

    /// Waits until nothing more happens, and forgets the calls that have come.
    async fn until_at_rest(&mut self) {
        let mut still = 0;
        while still < 100 {
            tokio::task::yield_now().await;
            still += 1;
            while let Ok(call) = self.calls.try_recv() {
                self.under_way.push_back(call);
                still = 0;
            }
        }
    }

    /// Waits until so many requests wait for a slot.
    async fn until_queued(&mut self, queued: usize) {
        self.until("workspace_gateway_upstream_calls_queued{", queued).await;
        while let Ok(call) = self.calls.try_recv() {
            self.under_way.push_back(call);
        }
    }

    /// Has upstream answer the oldest call, and waits for the call that takes its slot.
    async fn next(&mut self) -> String {
        let call = self.under_way.pop_front().expect("nothing is under way");
        call.answer_whole(StatusCode::OK, r#"{"products":[]}"#);
        let next = within(self.calls.recv()).await.unwrap();
        let token = next.token.clone();
        self.under_way.push_back(next);
        token
    }

    /// Has upstream answer a caller well.
    async fn prove(&mut self, connection: &Arc<Connection>, token: &str, kind: Kind) {
        self.begin(connection, token, kind.path(100_000));
        within(self.calls.recv()).await.unwrap().answer_whole(StatusCode::OK, r#"{"products":[]}"#);
        assert_eq!(within(self.asking.pop().unwrap()).await.unwrap(), StatusCode::OK);
    }
}

/// One client with a hundred requests: how it is known, and from where it comes.
#[derive(Clone, Copy, Debug)]
struct Attack {
    kind: Kind,
    /// Whether upstream knows its token. If not, each request has another.
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

    /// How many slots a class gets while nobody else is there.
    fn share(self) -> usize {
        if self.is_known && self.kind == Kind::List { 8 } else { 4 }
    }

    async fn begin(self, stage: &mut Stage) {
        let only = stage.connection(ATTACKER);
        if self.is_known {
            stage.prove(&only, "attacker", self.kind).await;
        }
        for number in 0..100 {
            let token = if self.is_known { "attacker".to_owned() } else { format!("invented-{number}") };
            let connection = if self.is_on_one_connection { Arc::clone(&only) } else { stage.connection(ATTACKER) };
            stage.begin(&connection, &token, self.kind.path(number));
        }
        stage.until_queued(100 - self.share()).await;
        assert_eq!(stage.under_way.len(), self.share(), "{self:?}");
    }
}

#[tokio::test]
async fn a_client_of_the_same_class_waits_for_one_call_of_another_that_has_queued_a_hundred() {
    for attack in Attack::all() {
        let mut stage = Stage::new(SETTINGS);
        let victim = stage.connection(VICTIM);
        if attack.is_known {
            stage.prove(&victim, "victim", attack.kind).await;
        }
        attack.begin(&mut stage).await;
        let half = attack.share() / 2;
        for number in 200..200 + half {
            stage.begin(&victim, "victim", attack.kind.path(number));
        }
        stage.until_queued(100 - attack.share() + half).await;
        // It is next, until it has as much as the other.
        for _ in 0..half {
            assert_eq!(stage.next().await, "victim", "{attack:?}");
        }
        assert_ne!(stage.next().await, "victim", "{attack:?}");
    }
}

#[tokio::test]
async fn a_proved_caller_does_not_wait_for_unknown_ones() {
    for attack in Attack::all().into_iter().filter(|attack| !attack.is_known) {
        let mut stage = Stage::new(SETTINGS);
        let victim = stage.connection(ATTACKER);
        stage.prove(&victim, "victim", Kind::List).await;
        attack.begin(&mut stage).await;
        for number in 200..204 {
            stage.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(stage.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

/// So many calls that the memory budget is the bound.
const FEW_BYTES: &str = "[upstream]\nmax_calls = 4096\nmax_calls_per_caller = 4096\n[limits]\nmemory = \"8MiB\"\n";

#[tokio::test]
async fn a_client_is_served_at_once_though_another_holds_all_the_memory_that_it_can_get() {
    for attack in Attack::all() {
        let mut stage = Stage::new(FEW_BYTES);
        let victim = stage.connection(VICTIM);
        if attack.is_known {
            stage.prove(&victim, "victim", attack.kind).await;
        }
        let only = stage.connection(ATTACKER);
        if attack.is_known {
            stage.prove(&only, "attacker", attack.kind).await;
        }
        for number in 0..1_000 {
            let token = if attack.is_known { "attacker".to_owned() } else { format!("invented-{number}") };
            let connection = if attack.is_on_one_connection { Arc::clone(&only) } else { stage.connection(ATTACKER) };
            stage.begin(&connection, &token, attack.kind.path(number));
        }
        stage.until_at_rest().await;
        let held = stage.gateway.budget().used();
        let most = stage.gateway.budget().limit() * if attack.is_known { 4 } else { 2 } / 5;
        assert!((most / 2..=most).contains(&held), "{attack:?}: {held} of {most}");
        // Not one of the attacker's calls has to end first. In the relay each takes 208 KiB.
        for number in 2_000..2_000 + if attack.kind == Kind::List { 16 } else { 2 } {
            stage.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(stage.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

#[tokio::test]
async fn a_known_caller_is_served_at_once_though_unknown_ones_hold_all_the_memory_that_they_can_get() {
    for attack in Attack::all().into_iter().filter(|attack| !attack.is_known) {
        let mut stage = Stage::new(FEW_BYTES);
        // From the same address, where clients cannot be told apart by it.
        let loopback = [127, 0, 0, 1];
        let victim = stage.connection(loopback);
        stage.prove(&victim, "victim", Kind::List).await;
        let only = stage.connection(loopback);
        for number in 0..1_000 {
            let connection = if attack.is_on_one_connection { Arc::clone(&only) } else { stage.connection(loopback) };
            stage.begin(&connection, &format!("invented-{number}"), attack.kind.path(number));
        }
        stage.until_at_rest().await;
        let most = stage.gateway.budget().limit() / 2;
        assert!(stage.gateway.budget().used() <= most, "{attack:?}");
        for number in 2_000..2_000 + if attack.kind == Kind::List { 64 } else { 6 } {
            stage.begin(&victim, "victim", attack.kind.path(number));
            assert_eq!(within(stage.calls.recv()).await.unwrap().token, "victim", "{attack:?}");
        }
    }
}

#[tokio::test]
async fn a_relayed_request_of_a_known_caller_waits_for_memory_without_a_slot() {
    let mut stage = Stage::new("");
    let (known, unknown) = (stage.connection(VICTIM), stage.connection(ATTACKER));
    stage.prove(&known, "known", Kind::Relay).await;
    let budget = Arc::clone(stage.gateway.budget());
    // Room for the request, but not for what its relay takes.
    let all = budget.charge(Purpose::Connections, budget.limit() - budget.used() - 180 * 1024);
    stage.begin(&unknown, "unknown", Kind::Relay.path(1));
    assert_eq!(within(stage.asking.pop().unwrap()).await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    stage.begin(&known, "known", Kind::Relay.path(2));
    stage.until_at_rest().await;
    assert!(stage.under_way.is_empty() && !stage.asking[0].is_finished());
    stage.until("workspace_gateway_upstream_calls{", 0).await;
    drop(all);
    within(stage.calls.recv()).await.unwrap().answer_whole(StatusCode::OK, "{}");
    assert_eq!(within(stage.asking.pop().unwrap()).await.unwrap(), StatusCode::OK);
}

/// The class in which a relayed request of a caller takes its slot.
async fn class(stage: &mut Stage, token: &str) -> &'static str {
    stage.begin(&stage.connection(VICTIM), token, Kind::Relay.path(0));
    let call = within(stage.calls.recv()).await.unwrap();
    let text = stage.gateway.metrics().encode().unwrap();
    let is_in = |class: &&str| {
        let series = format!("workspace_gateway_upstream_calls_by_class{{class=\"{class}\",kind=\"relay\"}} 1");
        text.lines().any(|line| line == series)
    };
    let found = ["proved", "relayed", "unknown"].into_iter().find(is_in).expect("it has a slot");
    // This says nothing of the caller.
    call.answer_whole(StatusCode::NOT_FOUND, "");
    within(stage.asking.pop().unwrap()).await.unwrap();
    found
}

#[tokio::test]
async fn a_product_list_proves_its_caller_for_an_hour_in_the_relay_too() {
    let clock = ManualClock::default();
    // So short a grant has lapsed by then.
    let settings = format!("{SETTINGS}[grants]\ngrant_ttl = \"1s\"\noutage_grace = \"1s\"\n");
    let mut stage = Stage::at(Clock::Manual(clock.clone()), &settings);
    assert_eq!(class(&mut stage, "t").await, "unknown");
    stage.prove(&stage.connection(VICTIM), "t", Kind::List).await;
    clock.advance(Duration::from_secs(3599));
    assert_eq!(class(&mut stage, "t").await, "proved");
    clock.advance(Duration::from_secs(1));
    assert_eq!(class(&mut stage, "t").await, "relayed");
}

#[tokio::test]
async fn a_2xx_below_a_project_makes_its_caller_known_unless_it_tells_of_an_error_or_says_nothing_of_the_token() {
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
        let mut stage = Stage::new(SETTINGS);
        stage.begin_with(method.clone(), &stage.connection(VICTIM), "t", path.clone());
        let call = within(stage.calls.recv()).await.unwrap();
        call.answer_whole(StatusCode::from_u16(status).unwrap(), body);
        within(stage.asking.pop().unwrap()).await.unwrap();
        assert_eq!(class(&mut stage, "t").await, expected, "{method} {path} {status} {body}");
    }
}

#[tokio::test]
async fn a_401_makes_its_caller_unknown_whatever_it_was_asked() {
    for kind in [Kind::List, Kind::Relay] {
        let mut stage = Stage::new(SETTINGS);
        stage.prove(&stage.connection(VICTIM), "t", Kind::List).await;
        stage.begin(&stage.connection(VICTIM), "t", kind.path(1));
        within(stage.calls.recv()).await.unwrap().answer_whole(StatusCode::UNAUTHORIZED, "{}");
        within(stage.asking.pop().unwrap()).await.unwrap();
        assert_eq!(class(&mut stage, "t").await, "unknown", "{kind:?}");
    }
}

#[tokio::test]
async fn a_caller_becomes_known_though_its_client_hangs_up_at_the_head() {
    let mut stage = Stage::new(SETTINGS);
    stage.begin(&stage.connection(VICTIM), "t", Kind::Relay.path(1));
    let asking = stage.asking.pop().unwrap();
    within(stage.calls.recv()).await.unwrap().answer(StatusCode::OK, "a body that does not end");
    stage.until("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}", 1).await;
    asking.abort();
    tokio::time::pause();
    // As long as the body may take to tell of an error.
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::time::resume();
    assert_eq!(class(&mut stage, "t").await, "relayed");
}

#[tokio::test]
async fn trickling_uploads_of_invented_tokens_lose_their_slots_within_10_s() {
    let world = World::with(SETTINGS).await;
    world.simulator.hold();
    let client: Client<_, Parts> = Client::builder(TokioExecutor::new()).build_http();
    let mut uploads = Vec::new();
    for number in 0..4 {
        let (parts, body) = mpsc::channel(1);
        let request = Request::post(world.url("/v2/PROJECT/desktops")).header("x-auth-token", format!("t-{number}"));
        let asking = tokio::spawn(client.request(request.body(Parts(body)).unwrap()));
        uploads.push((parts, asking));
    }
    within(world.simulator.arrived(4)).await;
    let victim = world.begin("victim", "/v2/PROJECT/desktops");
    world.until_metric("workspace_gateway_upstream_calls_queued{kind=\"relay\",service=\"workspace\"}", 1.0).await;
    // Time passes when there is nothing else to do.
    tokio::time::pause();
    for _ in 0..9 {
        for (parts, _) in &uploads {
            parts.send(Bytes::from_static(b"some bytes")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for (_, asking) in uploads {
        let (head, body) = asking.await.unwrap().unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.status, StatusCode::REQUEST_TIMEOUT, "{body:?}");
        assert!(String::from_utf8_lossy(&body).contains("1 KiB/s"), "{body:?}");
    }
    tokio::time::resume();
    within(world.simulator.arrived(5)).await;
    world.simulator.release();
    assert_eq!(all(vec![victim]).await[0].status(), StatusCode::UNAUTHORIZED);
    let slow = "workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"upload-slow\"}";
    assert_eq!(world.metric(slow), 4.0);
}

#[tokio::test]
async fn requests_without_a_credential_are_bounded_by_connection() {
    let mut stage = Stage::new("[upstream]\nmax_calls = 8\nmax_calls_per_caller = 2\n");
    let looping = stage.connection([127, 0, 0, 1]);
    for number in 0..100 {
        stage.begin(&looping, "", Kind::Relay.path(number));
    }
    stage.until_queued(98).await;
    let other = stage.connection([127, 0, 0, 1]);
    for number in 0..2 {
        stage.begin(&other, "", Kind::Relay.path(number));
        within(stage.calls.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn clients_of_a_shared_address_are_told_apart_by_connection() {
    let shared = format!("[listen]\nshared_addresses = [\"192.0.2.0/31\"]\n{SETTINGS}");
    for (settings, next) in [(SETTINGS, "other"), (&shared, "behind-the-same-address")] {
        let mut stage = Stage::new(settings);
        let looping = stage.connection(ATTACKER);
        for number in 0..100 {
            stage.begin(&looping, &format!("invented-{number}"), Kind::Relay.path(number));
        }
        stage.until_queued(96).await;
        stage.begin(&stage.connection(ATTACKER), "behind-the-same-address", Kind::Relay.path(200));
        stage.until_queued(97).await;
        stage.begin(&stage.connection(VICTIM), "other", Kind::Relay.path(200));
        stage.until_queued(98).await;
        assert_eq!(stage.next().await, next);
    }
}
