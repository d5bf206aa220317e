//! Gateways with one simulated upstream, and what they are asked.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::gateway::{Connection, Gateway};
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamResponse};

use super::metrics::sum_of;

const LISTS: &str = "/v2/00000000000000000000000000000001/products";
/// Far longer than anything takes.
const HANG: Duration = Duration::from_secs(20);
/// Fewer than the look-ups that a gateway sends at a time.
const AT_ONCE: usize = 64;
/// Tokens that begin with this are none that upstream has issued.
pub(crate) const INVENTED: &str = "invented-";

pub(crate) const LOST: &str = "workspace_gateway_fleet_lost";
pub(crate) const IN_SYNC: &str = "workspace_gateway_fleet_in_sync";
pub(crate) const TO_TELL: &str = "workspace_gateway_fleet_to_tell";
pub(crate) const STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"entry\",result=\"stored\"}";
pub(crate) const PROOFS_STORED: &str = "workspace_gateway_fleet_stores_total{kind=\"grant\",result=\"stored\"}";

/// Upstream. All gateways call the same one.
pub(crate) struct Services {
    latency: AtomicU64,
    has_failed: AtomicBool,
    /// When the 401 of a revoked token was sent the first time.
    revoked: Mutex<HashMap<String, Option<Instant>>>,
}

impl Services {
    pub(crate) fn new(latency: Duration) -> Arc<Self> {
        let services =
            Self { latency: AtomicU64::default(), has_failed: AtomicBool::default(), revoked: Mutex::default() };
        services.set_latency(latency);
        Arc::new(services)
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        self.latency.store(u64::try_from(latency.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// From now on it answers with 500 only.
    pub(crate) fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn revoke(&self, token: &str) {
        self.revoked().insert(token.to_owned(), None);
    }

    /// When it has refused a token for the first time.
    pub(crate) fn refused(&self, token: &str) -> Option<Instant> {
        self.revoked().get(token).copied().flatten()
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<String, Option<Instant>>> {
        lock(&self.revoked)
    }

    fn answer(&self, token: &str, list: &str) -> Response<Bytes> {
        let is_refused = token.starts_with(INVENTED)
            || self.revoked().get_mut(token).is_some_and(|at| {
                at.get_or_insert_with(now);
                true
            });
        let (status, body) = match (self.has_failed.load(Ordering::Relaxed), is_refused) {
            (true, _) => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::from_static(b"{}")),
            (false, true) => (
                StatusCode::UNAUTHORIZED,
                Bytes::from_static(b"{\"error_code\":\"APIGW.0307\",\"error_msg\":\"The token must be updated\"}"),
            ),
            (false, false) => (StatusCode::OK, answer(list)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("x-request-id", HeaderValue::from_static("00000000000000000000000000000001"));
        response
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn now() -> Instant {
    Clock::System.timer_now()
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// So many tokens.
pub(crate) fn tokens(name: &str, number: usize) -> Vec<String> {
    (0..number).map(|token| format!("{name}-{token}")).collect()
}

/// What upstream answers.
pub(crate) fn answer(list: &str) -> Bytes {
    format!("{{\"products\":[\"{list}\"],\"total_count\":1}}").into()
}

/// Upstream, as one gateway sees it.
struct Line {
    services: Arc<Services>,
    calls: AtomicUsize,
    /// The tokens of these calls, without invented ones.
    tokens: Mutex<HashSet<String>>,
}

impl Upstream for Line {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let list = key.query().split_once("product_id=").map_or("", |(_, list)| list);
        let list = list.split('&').next().unwrap_or_default();
        let token = context.credential.token().and_then(|token| token.to_str().ok()).unwrap_or_default().to_owned();
        if !token.starts_with(INVENTED) {
            lock(&self.tokens).insert(token.clone());
        }
        Box::pin(async move {
            sleep(Duration::from_millis(self.services.latency.load(Ordering::Relaxed))).await;
            Ok(UpstreamResponse::read(self.services.answer(&token, list)))
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        unreachable!("no request is relayed")
    }
}

/// A gateway, until it is dropped.
pub(crate) struct Member {
    pub(crate) gateway: Arc<Gateway>,
    line: Arc<Line>,
    connection: Connection,
    keeping: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Member {
    /// With `is_patient`, requests wait for the engine as long as a busy machine needs.
    pub(crate) fn new(services: &Arc<Services>, settings: &str, is_patient: bool) -> Self {
        let settings =
            format!("region = \"cn-north-4\"\n[upstream]\nmax_calls = 1000\nmax_calls_per_caller = 500\n{settings}");
        let mut config = Config::from_layers("fleet", &settings, &[] as &[Override]).expect("valid settings");
        if let (true, Some(fleet)) = (is_patient, &mut config.fleet) {
            fleet.set_budget(HANG);
        }
        let line =
            Arc::new(Line { services: Arc::clone(services), calls: AtomicUsize::default(), tokens: Mutex::default() });
        let upstream = Arc::clone(&line) as Arc<dyn Upstream>;
        let gateway = Gateway::with_upstream(upstream, &config, Clock::System, Random::System).expect("a gateway");
        let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        let keeping = tokio::spawn(Arc::clone(&gateway).keep_fleet());
        Self { gateway, line, connection, keeping }
    }

    /// So many gateways of one fleet, which are in sync.
    pub(crate) async fn fleet(services: &Arc<Services>, settings: &str, number: usize) -> Vec<Arc<Self>> {
        let members: Vec<_> = (0..number).map(|_| Arc::new(Self::new(services, settings, true))).collect();
        for member in &members {
            member.until_in_sync().await;
        }
        members
    }

    pub(crate) async fn until_in_sync(&self) {
        self.until(IN_SYNC, |in_sync| in_sync == 1.0).await;
    }

    /// The connection of another client.
    pub(crate) fn connection_of(&self, client: [u8; 4]) -> Connection {
        self.gateway.connection(([127, 0, 0, 1], 8080).into(), client.into())
    }

    /// How many calls it has made.
    pub(crate) fn calls(&self) -> usize {
        self.line.calls.load(Ordering::Relaxed)
    }

    /// Whether it has made a call with this token, which is not an invented one.
    pub(crate) fn has_called_with(&self, token: &str) -> bool {
        lock(&self.line.tokens).contains(token)
    }

    /// Returns the status, or none if a 200 has the wrong body.
    pub(crate) async fn ask(&self, token: &str, list: &str) -> Option<StatusCode> {
        self.ask_over(&self.connection, token, list).await
    }

    pub(crate) async fn ask_over(&self, connection: &Connection, token: &str, list: &str) -> Option<StatusCode> {
        let request = Request::get(format!("{LISTS}?product_id={list}")).header("host", "gateway");
        let request = request.header("x-auth-token", token).body(Empty::<Bytes>::new());
        let response = self.gateway.handle(request.expect("a request"), connection).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a complete response").to_bytes();
        (head.status != StatusCode::OK || body == answer(list)).then_some(head.status)
    }

    /// Asks for a list with each token, some of them at a time. All must be 200s.
    pub(crate) async fn ask_all(self: &Arc<Self>, tokens: &[String], list: &str) {
        for some in tokens.chunks(AT_ONCE) {
            let mut asking = JoinSet::new();
            for token in some {
                let (member, token, list) = (Arc::clone(self), token.clone(), list.to_owned());
                asking.spawn(async move { member.ask(&token, &list).await });
            }
            let answers = asking.join_all().await;
            assert!(answers.iter().all(|status| *status == Some(StatusCode::OK)), "{answers:?}");
        }
    }

    /// Proves these callers. Returns when the engine has their proofs.
    pub(crate) async fn prove(self: &Arc<Self>, tokens: &[String], list: &str) {
        let before = self.metric(PROOFS_STORED);
        self.ask_all(tokens, list).await;
        self.until(PROOFS_STORED, |stored| stored >= before + tokens.len() as f64).await;
    }

    pub(crate) fn metric(&self, series: &str) -> f64 {
        sum_of(&self.gateway.metrics().encode().expect("metrics"), series)
    }

    /// The series of a metric that are not zero, as they are in its text.
    pub(crate) fn series(&self, name: &str) -> Vec<String> {
        let text = self.gateway.metrics().encode().expect("metrics");
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)).filter(|line| !line.ends_with(" 0"));
        lines.map(str::to_owned).collect()
    }

    pub(crate) async fn until(&self, series: &str, is_reached: impl Fn(f64) -> bool) {
        let waiting = async {
            while !is_reached(self.metric(series)) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(HANG, waiting).await.unwrap_or_else(|_| panic!("{series} takes less than 20 s"));
    }
}
