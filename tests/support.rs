//! A gateway with the simulator as its upstream, and HTTP clients for it. No test belongs here.

pub mod clocks;
pub mod engine;
pub mod fleet;
pub mod frames;
pub mod in_process;
pub mod otlp;
pub mod process;
pub mod raw_client;
pub mod raw_upstream;
pub mod scripted;
pub mod signer;
pub mod tls;
pub mod wire;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::{Config, ConfigError, Override, SettingsDiff};
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::server::{Inherited, ReloadError, Server};
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::stream::{BoxError, StreamBody, stream};
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

/// A project id of the real length.
pub const PROJECT: &str = "00000000000000000000000000000001";

/// The path of a request that proves its caller. Its response has a few bytes.
pub const PROOF: &str = "/v2/PROJECT/products?limit=0";

/// Cache settings: a request for a stale entry waits for upstream, and failures are not remembered.
pub const WAIT_FOR_UPSTREAM: &str =
    "stale_while_revalidate = \"0s\"\nstale_if_slow = \"60s\"\nnegative_ttl = \"0s\"\nbackoff = \"0s\"\n";

/// The proxy variables of the environment. They may be set where the tests run.
pub const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"];

/// With the value `off`, gateways of this process start with the fast path off, except in tests that set it.
const FAST_PATH: &str = "WORKSPACE_GATEWAY_TEST_FAST_PATH";

static IS_FAST_PATH_OFF: LazyLock<bool> = LazyLock::new(|| {
    let Some(value) = std::env::var_os(FAST_PATH) else { return false };
    assert_eq!(value, "off", "{FAST_PATH}");
    // Not `eprintln!`: its output is shown for failed tests only.
    let _ = writeln!(std::io::stderr(), "{FAST_PATH}=off: gateways start with the fast path off.");
    true
});

/// The number of requests that wait for a shared fetch.
pub const WAITERS: &str = "workspace_gateway_coalesced_waiters";

/// Far longer than any step of a test takes. A test that reaches it fails.
pub const HANG: Duration = Duration::from_secs(60);

/// A gateway, its upstream services, and a client with a valid token.
pub struct World {
    pub simulator: Simulator,
    pub server: Server,
    pub clock: ManualClock,
    pub token: String,
    pub http: Http,
}

impl World {
    /// All settings have their defaults.
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// `settings` is the text of a configuration file.
    pub async fn with(settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
        Self::with_upstreams(simulator, &workspace, &appstream, settings).await
    }

    /// With other upstream URLs than the simulator's.
    pub async fn with_upstreams(simulator: Simulator, workspace: &str, appstream: &str, settings: &str) -> Self {
        Self::with_config(simulator, &config(workspace, appstream, settings)).await
    }

    /// On inherited sockets, with default settings.
    pub async fn on_sockets(inherited: Inherited) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
        Self::start(inherited, simulator, &config(&workspace, &appstream, "")).await
    }

    /// With a configuration that a file cannot express.
    pub async fn with_config(simulator: Simulator, config: &Config) -> Self {
        Self::start(Inherited::default(), simulator, config).await
    }

    async fn start(inherited: Inherited, simulator: Simulator, config: &Config) -> Self {
        let clock = ManualClock::default();
        // Upstream uses the same clock, so that it accepts signatures made after the clock was advanced.
        simulator.set_clock(Clock::Manual(clock.clone()));
        let server = Server::start_on(inherited, config, Clock::Manual(clock.clone())).await.unwrap();
        let token = simulator.token(PROJECT);
        Self { simulator, server, clock, token, http: Http::new() }
    }

    /// The upstream sends these bytes on each connection after the first request. Then it sends nothing and keeps the
    /// connection open.
    pub async fn with_fixed_upstream(bytes: &'static str, settings: &str) -> Self {
        let url = fixed_upstream(bytes).await;
        Self::with_upstreams(Simulator::start().await.unwrap(), &url, &url, settings).await
    }

    /// Reloads the gateway's configuration.
    pub fn reload(&self, settings: &str) -> Result<SettingsDiff, ReloadError> {
        let url = |service| self.simulator.url(service);
        self.reload_with_upstreams(&url(Service::Workspace), &url(Service::AppStream), settings)
    }

    pub fn reload_with_upstreams(
        &self,
        workspace: &str,
        appstream: &str,
        settings: &str,
    ) -> Result<SettingsDiff, ReloadError> {
        self.server.reloading().apply(read_config(workspace, appstream, settings))
    }

    /// The URL of a path on the gateway. `PROJECT` in the path is replaced by [`PROJECT`].
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{}", self.server.proxy_address(), path.replace("PROJECT", PROJECT))
    }

    pub fn metrics_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.metrics_address())
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{}", self.server.admin_address(), path.replace("PROJECT", PROJECT))
    }

    /// Sends a GET with the valid token.
    pub async fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut all = vec![("x-auth-token", self.token.as_str())];
        all.extend(headers);
        self.http.send(Method::GET, &self.url(path), &all, "").await
    }

    pub async fn get_as(&self, token: &str, path: &str) -> Reply {
        self.http.send(Method::GET, &self.url(path), &[("x-auth-token", token)], "").await
    }

    /// Sends a GET and does not wait for the response.
    pub fn begin(&self, token: &str, path: &str) -> JoinHandle<Reply> {
        let (http, url, token) = (self.http.clone(), self.url(path), token.to_owned());
        tokio::spawn(async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await })
    }

    /// Sends a GET and waits until upstream has received `calls` requests.
    pub async fn begin_and_reach_upstream(&self, token: &str, path: &str, calls: usize) -> JoinHandle<Reply> {
        let pending = self.begin(token, path);
        within(self.simulator.wait_for_requests(calls)).await;
        pending
    }

    /// Sends a GET that waits for another request's fetch, and returns when `waiting` requests wait.
    pub async fn begin_and_wait(&self, token: &str, path: &str, waiting: usize) -> JoinHandle<Reply> {
        let pending = self.begin(token, path);
        self.until_metric(WAITERS, waiting as f64).await;
        pending
    }

    /// Starts a flight and holds it at the barrier: the first token leads, the others wait for it.
    pub async fn begin_flight(&self, tokens: &[String], path: &str) -> (JoinHandle<Reply>, Vec<JoinHandle<Reply>>) {
        self.simulator.hold();
        let leading = self.begin_and_reach_upstream(&tokens[0], path, 1).await;
        let following = tokens[1..].iter().map(|token| self.begin(token, path)).collect();
        self.until_metric(WAITERS, (tokens.len() - 1) as f64).await;
        (leading, following)
    }

    /// Issues tokens that have a grant for the product lists. The simulator's log is empty afterwards.
    pub async fn granted_tokens<const N: usize>(&self) -> [String; N] {
        let tokens = std::array::from_fn(|_| self.simulator.token(PROJECT));
        for token in &tokens {
            let proof = self.get_as(token, PROOF).await;
            assert_eq!(proof.status(), StatusCode::OK);
        }
        self.simulator.forget_requests();
        tokens
    }

    /// The tokens that upstream has received, in order of arrival.
    pub fn tokens_seen(&self) -> Vec<String> {
        let token = |headers: &HeaderMap| headers["x-auth-token"].to_str().unwrap().to_owned();
        self.simulator.requests_seen().iter().map(|seen| token(&seen.headers)).collect()
    }

    /// The time of the gateway and of its upstream.
    pub fn now(&self) -> Instant {
        Clock::Manual(self.clock.clone()).now()
    }

    /// Advances the clock.
    pub fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub fn purge(&self) {
        self.server.gateway().purge(&PurgeSelection::default());
    }

    pub fn upstream_calls(&self) -> usize {
        self.simulator.request_count()
    }

    /// The value of a metric series, 0 if it does not exist. `series` is written as in the text format.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.server.gateway().metrics().encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    pub async fn until_metric_over(&self, series: &str, value: f64) {
        within(async {
            while self.metric(series) <= value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub async fn until_metric(&self, series: &str, value: f64) {
        within(async {
            while (self.metric(series) - value).abs() > f64::EPSILON {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A configuration with the text of a file, on ports that the system chooses.
pub fn config(workspace: &str, appstream: &str, settings: &str) -> Config {
    read_config(workspace, appstream, settings).unwrap()
}

pub fn read_config(workspace: &str, appstream: &str, settings: &str) -> Result<Config, ConfigError> {
    let given = |path, value: &str| Override { path, value: value.into(), origin: "test".to_owned() };
    let overrides = [
        given(&["upstream", "workspace_url"], workspace),
        given(&["upstream", "appstream_url"], appstream),
        given(&["listen", "proxy"], "127.0.0.1:0"),
        given(&["listen", "metrics"], "127.0.0.1:0"),
        given(&["listen", "admin"], "127.0.0.1:0"),
    ];
    // Tests compute the freshness of entries.
    let no_jitter = (!settings.contains("ttl_jitter")).then(|| given(&["cache", "ttl_jitter"], "0%"));
    let overrides: Vec<_> = overrides.into_iter().chain(no_jitter).collect();
    let is_off = *IS_FAST_PATH_OFF && !settings.contains("fast_path");
    let switched_off = is_off.then(|| with_fast_path(false, settings));
    Config::from_layers("test.toml", switched_off.as_deref().unwrap_or(settings), &overrides)
}

pub fn with_fast_path(is_on: bool, settings: &str) -> String {
    let listen = format!("[listen]\nfast_path = {is_on}\n");
    if settings.contains("[listen]") {
        settings.replacen("[listen]", listen.trim_end(), 1)
    } else {
        format!("{settings}\n{listen}")
    }
}

/// Panics when the future takes longer than [`HANG`].
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("finished within a minute")
}

pub async fn all_replies(pending: Vec<JoinHandle<Reply>>) -> Vec<Reply> {
    let mut replies = Vec::new();
    for reply in pending {
        replies.push(within(reply).await.unwrap());
    }
    replies
}

#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// HTTP/2 with prior knowledge (RFC 9113 §3.3).
    pub fn http2() -> Self {
        Self(Client::builder(TokioExecutor::new()).http2_only(true).build_http())
    }

    pub async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let (head, body) = within(self.0.request(request)).await.unwrap().into_parts();
        let body = within(body.collect()).await.unwrap().to_bytes();
        Reply::new(Response::from_parts(head, body))
    }

    pub async fn get(&self, url: &str) -> Reply {
        self.send(Method::GET, url, &[], "").await
    }
}

/// A complete response.
pub struct Reply {
    response: Response<Bytes>,
    /// Without the key, which is a digest that tests cannot compute.
    cache_status: Option<String>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body()[..self.body().len().min(300)]);
        write!(f, "{} {:?} {body}", self.status(), self.headers())
    }
}

/// Splits a `Cache-Status` into its text without the key parameter, and the key.
pub fn without_key(cache_status: &str) -> (String, Option<String>) {
    let Some((before, rest)) = cache_status.split_once("; key=\"") else { return (cache_status.to_owned(), None) };
    let (key, after) = rest.split_once('"').unwrap();
    (format!("{before}{after}"), Some(key.to_owned()))
}

impl Reply {
    fn new(response: Response<Bytes>) -> Self {
        let status = response.headers().get("cache-status").and_then(|status| status.to_str().ok());
        let cache_status = status.map(|status| without_key(status).0);
        Self { response, cache_status }
    }

    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Panics unless the header occurs exactly once.
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers().get_all(name).iter();
        let value = values.next().unwrap_or_else(|| panic!("no {name} in {self:?}"));
        assert_eq!(values.next(), None, "{name} twice in {self:?}");
        value.to_str().unwrap()
    }

    pub fn cache_status(&self) -> &str {
        self.header("cache-status");
        self.cache_status.as_deref().unwrap()
    }

    /// The parameters of `Cache-Status` without the name of the cache (RFC 9211 §2) and without the key.
    pub fn cache_params(&self) -> &str {
        self.cache_status().strip_prefix("workspace-gateway; ").unwrap()
    }

    /// The digest of the cache key, if the response has one.
    pub fn key(&self) -> Option<String> {
        without_key(self.header("cache-status")).1
    }

    /// Asserts that it is an error in upstream's shape and has no product.
    pub fn assert_refused(&self, status: StatusCode) {
        assert_eq!(self.status(), status, "{self:?}");
        let json = self.json();
        assert!(json["error_code"].is_string() && json.get("products").is_none(), "{self:?}");
    }

    /// Whether it is a 200 from the cache.
    pub fn is_hit(&self) -> bool {
        self.status() == StatusCode::OK && self.cache_status().contains("; hit")
    }

    pub fn body(&self) -> &Bytes {
        self.response.body()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body()).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.body()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn products(&self) -> usize {
        self.json()["products"].as_array().map_or(0, Vec::len)
    }

    /// Asserts that it is an error in upstream's shape, and returns its code and message.
    pub fn error(&self) -> (String, String) {
        let json = self.json();
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("no {name} in {json}")).to_owned();
        assert_eq!(text("request_id"), self.header("x-request-id"));
        assert_eq!(self.header("content-type"), "application/json");
        (text("error_code"), text("error_msg"))
    }
}

/// An upstream whose responses a test gives, call by call. It has no sockets, so thousands of calls can be in flight.
pub struct Scripted(mpsc::UnboundedSender<Call>);

/// A call that waits for its response.
pub struct Call {
    pub token: String,
    response: oneshot::Sender<Result<Response<Bytes>, UpstreamError>>,
    /// For the response to a list. It is held until the call is answered.
    _memory: Option<Charge>,
}

impl Call {
    pub fn answer(self, status: StatusCode, body: impl Into<Bytes>) {
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        self.response.send(Ok(response)).expect("a call in flight");
    }

    /// The same. The body of a relayed response ends.
    pub fn answer_complete(self, status: StatusCode, body: impl Into<Bytes>) {
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        response.extensions_mut().insert(Complete);
        self.response.send(Ok(response)).expect("a call in flight");
    }

    pub fn fail(self, error: UpstreamError) {
        self.response.send(Err(error)).expect("a call in flight");
    }
}

impl Scripted {
    /// Returns the upstream, and its calls in order of arrival.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Call>) {
        let (sender, calls) = mpsc::unbounded_channel();
        (Arc::new(Self(sender)), calls)
    }
}

impl Upstream for Scripted {
    fn fetch_list<'a>(
        &'a self,
        _: &'a RequestKey,
        context: FetchContext,
        memory: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let (response, received) = oneshot::channel();
        let token = context.credential.token().unwrap().to_str().unwrap().to_owned();
        self.0.send(Call { token, response, _memory: Some(memory) }).unwrap();
        Box::pin(async { received.await.unwrap().map(UpstreamResponse::read) })
    }

    /// The body begins with what the test gives. It ends only after [`Call::answer_complete`].
    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        head: &'a request::Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let (response, received) = oneshot::channel();
        let token = head.headers.get("x-auth-token").map_or("", |token| token.to_str().unwrap()).to_owned();
        self.0.send(Call { token, response, _memory: None }).unwrap();
        Box::pin(async move {
            let (head, beginning) = received.await.unwrap()?.into_parts();
            let is_complete = head.extensions.get::<Complete>().is_some();
            Ok(Response::from_parts(
                head,
                if is_complete { stream(Full::new(beginning)) } else { Endless(Some(beginning)).boxed_unsync() },
            ))
        })
    }
}

/// Marks a response whose body ends.
#[derive(Clone, Copy)]
struct Complete;

/// A body whose parts a test sends.
pub struct Parts(pub mpsc::Receiver<Bytes>);

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

/// A body that does not end.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.take().map_or(Poll::Pending, |beginning| Poll::Ready(Some(Ok(Frame::data(beginning)))))
    }
}

/// Sends a GET to a gateway without a socket.
pub async fn get_in_process(gateway: &Arc<Gateway>, token: &str, path: &str) -> Reply {
    get_in_process_with(gateway, token, path, &[]).await
}

pub async fn get_in_process_with(gateway: &Arc<Gateway>, token: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request =
        Request::get(path.replace("PROJECT", PROJECT)).header("host", "gateway").header("x-auth-token", token);
    handle(gateway, headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

/// Has a gateway handle a request without a body.
pub async fn handle(gateway: &Arc<Gateway>, request: http::request::Builder) -> Reply {
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
    let (head, body) = gateway.handle(request, &connection).await.into_parts();
    Reply::new(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
}

/// Binds a free port of 127.0.0.1 and does not listen. So connections are refused, and nobody else gets the port, except a
/// process that listens on it and says that it may be bound already (SO_REUSEADDR), as engines do.
pub fn reserve_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}

async fn fixed_upstream(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            let has_ended = |head: &[u8]| head.windows(4).any(|end| end == b"\r\n\r\n");
            while !has_ended(&head) && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
            let _ = stream.write_all(bytes.as_bytes()).await;
            open.push(stream);
        }
    });
    url
}

/// Sends bytes on a new connection and returns everything that is received until the connection is closed.
pub async fn send_raw(address: std::net::SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server may close before it has read everything.
    let _ = stream.write_all(request.as_ref()).await;
    let mut received = Vec::new();
    within(async { while stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {} }).await;
    String::from_utf8_lossy(&received).into_owned()
}
