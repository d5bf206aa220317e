//! Upstream with quotas and clients of one gateway, in simulated time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Quota, QuotaPolicy, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::simulator::{EnforcedQuota, QuotaCall, QuotaWindow, Quotas};
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

/// The time of an upstream call.
pub(crate) const LATENCY: Duration = Duration::from_millis(300);
pub(crate) const LISTS: &str = "/v2/00000000000000000000000000000001/products";
const RELAYED: &str = "/v2/00000000000000000000000000000001/desktops";

pub(crate) fn quota(calls: u32, window: Duration) -> Quota {
    Quota { calls, window }
}

/// A call that upstream has answered.
#[derive(Clone, Debug)]
pub(crate) struct AnsweredCall {
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
    pub(crate) token: String,
    pub(crate) is_relayed: bool,
    pub(crate) refused_by: Option<QuotaPolicy>,
}

#[derive(Default)]
pub(crate) struct UpstreamState {
    pub(crate) quotas: Quotas,
    pub(crate) calls: Vec<AnsweredCall>,
}

/// A request that the gateway has answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) caller: usize,
    pub(crate) waited: Duration,
    pub(crate) status: StatusCode,
    /// In seconds.
    pub(crate) retry_after: Option<u64>,
}

/// A gateway, its upstream and what has happened.
#[derive(Clone)]
pub(crate) struct World {
    gateway: Arc<Gateway>,
    pub(crate) upstream: Arc<Mutex<UpstreamState>>,
    pub(crate) answers: Arc<Mutex<Vec<Answer>>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(settings: &str) -> Self {
        let region = Override { path: &["region"], value: "cn-north-4".into(), origin: "bench".to_owned() };
        let config = Config::from_layers("quota", settings, &[region]).expect("valid settings");
        let upstream = Arc::new(Mutex::new(UpstreamState::default()));
        let service = Arc::new(Services(Arc::clone(&upstream)));
        let gateway =
            Gateway::with_upstream(service, &config, Clock::System, Random::seeded([22; 32])).expect("a gateway");
        Self { gateway, upstream, answers: Arc::default() }
    }

    /// Begins or changes a quota. Its windows do not begin with the simulation.
    pub(crate) fn limit(&self, policy: QuotaPolicy, quota: Quota) {
        let window = QuotaWindow::Fixed { origin: Clock::System.now() + quota.window.mul_f64(0.37) };
        lock(&self.upstream).quotas.set(EnforcedQuota::new(policy, quota, window));
    }

    pub(crate) fn connection(&self) -> Connection {
        self.gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into())
    }

    /// Proves the first callers.
    pub(crate) async fn prove(&self, callers: usize) {
        let connection = self.connection();
        for caller in 0..callers {
            self.ask(&connection, caller, "proof").await;
        }
        lock(&self.answers).clear();
        lock(&self.upstream).calls.clear();
    }

    /// Asks for a list that nobody has asked for.
    pub(crate) async fn ask(&self, connection: &Connection, caller: usize, list: &str) -> StatusCode {
        self.send(connection, caller, &format!("caller-{caller}"), &format!("{LISTS}?product_id={list}")).await
    }

    pub(crate) async fn relay(&self, connection: &Connection, caller: usize) -> StatusCode {
        self.send(connection, caller, &format!("caller-{caller}"), RELAYED).await
    }

    pub(crate) async fn send(&self, connection: &Connection, caller: usize, token: &str, target: &str) -> StatusCode {
        let begun = Clock::System.now();
        let request = Request::get(target).header("host", "gateway").header("x-auth-token", token);
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let (head, body) = self.gateway.handle(request, connection).await.into_parts();
        // Upstream's body may be incomplete, but never here.
        body.collect().await.expect("a complete response");
        let waited = Clock::System.now() - begun;
        let retry_after = head.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        lock(&self.answers).push(Answer { caller, waited, status: head.status, retry_after });
        head.status
    }

    /// Each caller asks for new lists at a steady rate, for a time. Returns when all requests have been answered.
    pub(crate) async fn load(&self, callers: std::ops::Range<usize>, per_second: f64, time: Duration) {
        let begun = Clock::System.now();
        let (connection, mut requests) = (Arc::new(self.connection()), JoinSet::new());
        let gap = Duration::from_secs_f64(1.0 / per_second);
        let mut number = 0_usize;
        while Clock::System.now() - begun < time {
            let caller = callers.start + number % callers.len();
            let (world, connection, list) =
                (self.clone(), Arc::clone(&connection), format!("{}-{number}", callers.start));
            requests.spawn(async move { world.ask(&connection, caller, &list).await });
            number += 1;
            let next = begun + gap.mul_f64(number as f64);
            sleep(next.saturating_duration_since(Clock::System.now())).await;
        }
        requests.join_all().await;
    }
}

/// Both services. They accept every token that does not begin with "invented".
struct Services(Arc<Mutex<UpstreamState>>);

impl Services {
    async fn call(&self, service: Service, api: &str, token: &str, is_relayed: bool) -> Response<Bytes> {
        let sent = Clock::System.now();
        // It arrives some milliseconds later: more, less, more.
        let delay = Duration::from_millis(u64::try_from(lock(&self.0).calls.len() % 7).unwrap_or(0));
        sleep(delay).await;
        let is_known = !token.starts_with("invented");
        let call = QuotaCall { service, api, user: is_known.then_some(token), app: None };
        let verdict = lock(&self.0).quotas.call(&call, Clock::System.now());
        let refused_by = verdict.refused_by.map(|state| state.policy);
        let body = match (verdict.is_accepted(), is_known) {
            (false, _) => verdict.body("id"),
            (true, true) => Bytes::from_static(br#"{"products":[],"total_count":0}"#),
            (true, false) => Bytes::from_static(br#"{"error_code":"APIGW.0301","error_msg":"decrypt token fail"}"#),
        };
        sleep(if verdict.is_accepted() { LATENCY - delay } else { Duration::from_millis(20) }).await;
        let answered = Clock::System.now();
        lock(&self.0).calls.push(AnsweredCall { sent, answered, token: token.to_owned(), is_relayed, refused_by });
        let mut response = Response::new(body);
        *response.headers_mut() = verdict.headers(false);
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        *response.status_mut() = match (verdict.is_accepted(), is_known) {
            (false, _) => StatusCode::TOO_MANY_REQUESTS,
            (true, true) => StatusCode::OK,
            (true, false) => StatusCode::UNAUTHORIZED,
        };
        response
    }
}

fn text(token: Option<&http::HeaderValue>) -> String {
    token.and_then(|token| token.to_str().ok()).unwrap_or_default().to_owned()
}

impl Upstream for Services {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let token = text(context.credential.token());
        let operation = Arc::clone(key.operation());
        Box::pin(async move {
            Ok(UpstreamResponse::read(self.call(operation.service, &operation.name, &token, false).await))
        })
    }

    fn relay<'a>(
        &'a self,
        service: Service,
        _: &'a Origin,
        head: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let token = text(head.headers.get("x-auth-token"));
        Box::pin(async move {
            let response = self.call(service, "relayed", &token, true).await;
            Ok::<_, UpstreamError>(response.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync()))
        })
    }
}

impl UpstreamState {
    /// The accepted and the refused calls of a quota.
    pub(crate) fn counts(&self, policy: QuotaPolicy) -> (usize, usize) {
        let accepted = self.calls.iter().filter(|call| call.refused_by.is_none()).count();
        let refused = self.calls.iter().filter(|call| call.refused_by == Some(policy)).count();
        (accepted, refused)
    }
}
