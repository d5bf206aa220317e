//! A gateway before the simulator, and a client to ask it.

pub mod clocks;
pub mod frames;
pub mod line;
pub mod process;
pub mod raw;
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
use std::time::Duration;

use bytes::Bytes;
use http::request;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use workspace_gateway::testing::budget::Account;
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

/// A project as they look in practice.
pub const PROJECT: &str = "00000000000000000000000000000001";

/// A question that proves who asks it and has an answer of a few bytes.
pub const PROOF: &str = "/v2/PROJECT/products?limit=0";

/// Settings of the cache by which whoever finds something stale waits for upstream, and by which nothing
/// is remembered of failures.
pub const WAITING: &str =
    "stale_while_revalidate = \"0s\"\nstale_if_slow = \"60s\"\nnegative_ttl = \"0s\"\nbackoff = \"0s\"\n";

/// The variables that tell the way to upstream. Where the tests run they may be set.
pub const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"];

/// Set to `off`, it starts the gateways of this process with the fast path off, but for tests that set it.
const FAST_PATH: &str = "WORKSPACE_GATEWAY_TEST_FAST_PATH";

static IS_FAST_PATH_OFF: LazyLock<bool> = LazyLock::new(|| {
    let Some(value) = std::env::var_os(FAST_PATH) else { return false };
    assert_eq!(value, "off", "{FAST_PATH}");
    // Straight to the terminal: what goes through `eprintln!` is shown for failed tests only.
    let _ = writeln!(std::io::stderr(), "{FAST_PATH}=off: gateways start with the fast path off.");
    true
});

/// How many requests wait for another's upstream call.
pub const WAITERS: &str = "workspace_gateway_coalesced_waiters";

/// Far longer than anything here takes; reaching it is a failure, not a wait.
pub const HANG: Duration = Duration::from_secs(60);

/// A gateway, the upstream services behind it, and someone with a valid token.
pub struct World {
    pub simulator: Simulator,
    pub server: Server,
    pub clock: ManualClock,
    pub token: String,
    pub http: Http,
}

impl World {
    /// With every setting at its default.
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// With the settings of a configuration file.
    pub async fn with(settings: &str) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
        Self::before(simulator, &workspace, &appstream, settings).await
    }

    /// Before upstream services that are somewhere else than the simulator says.
    pub async fn before(simulator: Simulator, workspace: &str, appstream: &str, settings: &str) -> Self {
        Self::configured(simulator, &config(workspace, appstream, settings)).await
    }

    /// On sockets that were handed down, with every setting at its default.
    pub async fn on(inherited: Inherited) -> Self {
        let simulator = Simulator::start().await.unwrap();
        let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
        Self::start(inherited, simulator, &config(&workspace, &appstream, "")).await
    }

    /// With settings, and with what no file tells.
    pub async fn configured(simulator: Simulator, config: &Config) -> Self {
        Self::start(Inherited::default(), simulator, config).await
    }

    async fn start(inherited: Inherited, simulator: Simulator, config: &Config) -> Self {
        let clock = ManualClock::default();
        // What the gateway signs when time has passed is not from the future.
        let date = Clock::Manual(clock.clone());
        simulator.take_date_from(move || date.date());
        let server = Server::start_on(inherited, config, Clock::Manual(clock.clone())).await.unwrap();
        let token = simulator.token(PROJECT);
        Self { simulator, server, clock, token, http: Http::new() }
    }

    /// Before an upstream that says these very bytes on each connection, once it has been asked, then
    /// nothing more, and doesn't hang up.
    pub async fn before_one_that_says(bytes: &'static str, settings: &str) -> Self {
        let url = upstream_that_says(bytes).await;
        Self::before(Simulator::start().await.unwrap(), &url, &url, settings).await
    }

    /// Has the gateway read other settings, while it runs.
    pub fn reload(&self, settings: &str) -> Result<SettingsDiff, ReloadError> {
        let url = |service| self.simulator.url(service);
        self.reload_before(&url(Service::Workspace), &url(Service::AppStream), settings)
    }

    /// The same with upstream services somewhere else.
    pub fn reload_before(&self, workspace: &str, appstream: &str, settings: &str) -> Result<SettingsDiff, ReloadError> {
        self.server.reloading().apply(read(workspace, appstream, settings))
    }

    /// The URL of a path on the gateway; `PROJECT` in it stands for the project.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{}", self.server.proxy_address(), path.replace("PROJECT", PROJECT))
    }

    /// The URL of a path on the metrics listener.
    pub fn metrics_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.metrics_address())
    }

    /// The URL of a path on the admin listener.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{}", self.server.admin_address(), path.replace("PROJECT", PROJECT))
    }

    /// GET with the valid token.
    pub async fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[]).await
    }

    /// GET with the valid token and more headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut all = vec![("x-auth-token", self.token.as_str())];
        all.extend(headers);
        self.http.send(Method::GET, &self.url(path), &all, "").await
    }

    /// GET with another token.
    pub async fn get_as(&self, token: &str, path: &str) -> Reply {
        self.http.send(Method::GET, &self.url(path), &[("x-auth-token", token)], "").await
    }

    /// Begins a GET with a token, to be waited for later.
    pub fn begin(&self, token: &str, path: &str) -> JoinHandle<Reply> {
        let (http, url, token) = (self.http.clone(), self.url(path), token.to_owned());
        tokio::spawn(async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await })
    }

    /// Begins a GET, and returns once upstream has seen that many requests.
    pub async fn begin_and_arrive(&self, token: &str, path: &str, calls: usize) -> JoinHandle<Reply> {
        let asking = self.begin(token, path);
        within(self.simulator.arrived(calls)).await;
        asking
    }

    /// Begins a GET that has to wait for another's upstream call, and returns once that many do.
    pub async fn begin_and_wait(&self, token: &str, path: &str, waiting: usize) -> JoinHandle<Reply> {
        let asking = self.begin(token, path);
        self.until_metric(WAITERS, waiting as f64).await;
        asking
    }

    /// Has the first of these tokens lead a flight, and returns once it and the others wait at the barrier.
    pub async fn board(&self, tokens: &[String], path: &str) -> (JoinHandle<Reply>, Vec<JoinHandle<Reply>>) {
        self.simulator.hold();
        let leading = self.begin_and_arrive(&tokens[0], path, 1).await;
        let following = tokens[1..].iter().map(|token| self.begin(token, path)).collect();
        self.until_metric(WAITERS, (tokens.len() - 1) as f64).await;
        (leading, following)
    }

    /// Issues tokens and has upstream prove each for the product lists; what that took is forgotten.
    pub async fn granted<const N: usize>(&self) -> [String; N] {
        let tokens = std::array::from_fn(|_| self.simulator.token(PROJECT));
        for token in &tokens {
            let proof = self.get_as(token, PROOF).await;
            assert_eq!(proof.status(), StatusCode::OK);
        }
        self.simulator.forget_requests();
        tokens
    }

    /// The tokens that upstream has seen, in order of arrival.
    pub fn tokens_seen(&self) -> Vec<String> {
        let token = |headers: &HeaderMap| headers["x-auth-token"].to_str().unwrap().to_owned();
        self.simulator.requests_seen().iter().map(|seen| token(&seen.headers)).collect()
    }

    /// Lets time pass.
    pub fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Removes everything from the cache.
    pub fn purge(&self) {
        self.server.gateway().purge(&PurgeSelection::default());
    }

    /// How many requests upstream has seen.
    pub fn upstream_calls(&self) -> usize {
        self.simulator.request_count()
    }

    /// The value of a metric series, written as in the text format; 0 if there is none yet.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.server.gateway().metrics().encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric series is greater than this.
    pub async fn until_metric_over(&self, series: &str, value: f64) {
        within(async {
            while self.metric(series) <= value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until a metric series has a value.
    pub async fn until_metric(&self, series: &str, value: f64) {
        within(async {
            while (self.metric(series) - value).abs() > f64::EPSILON {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// The settings of a configuration file, on ports the system chooses.
pub fn config(workspace: &str, appstream: &str, settings: &str) -> Config {
    read(workspace, appstream, settings).unwrap()
}

/// The same, whatever comes of it.
pub fn read(workspace: &str, appstream: &str, settings: &str) -> Result<Config, ConfigError> {
    let given = |path, value: &str| Override { path, value: value.to_owned(), origin: "test".to_owned() };
    let overrides = [
        given(&["upstream", "workspace_url"], workspace),
        given(&["upstream", "appstream_url"], appstream),
        given(&["listen", "proxy"], "127.0.0.1:0"),
        given(&["listen", "metrics"], "127.0.0.1:0"),
        given(&["listen", "admin"], "127.0.0.1:0"),
    ];
    // Tests foretell what is fresh when.
    let steady = (!settings.contains("ttl_jitter")).then(|| given(&["cache", "ttl_jitter"], "0%"));
    let overrides: Vec<_> = overrides.into_iter().chain(steady).collect();
    let is_off = *IS_FAST_PATH_OFF && !settings.contains("fast_path");
    let switched_off = is_off.then(|| with_fast_path(false, settings));
    Config::from_layers("test.toml", switched_off.as_deref().unwrap_or(settings), &overrides)
}

/// These settings with the fast path on or off.
pub fn with_fast_path(is_on: bool, settings: &str) -> String {
    let listen = format!("[listen]\nfast_path = {is_on}\n");
    if settings.contains("[listen]") {
        settings.replacen("[listen]", listen.trim_end(), 1)
    } else {
        format!("{settings}\n{listen}")
    }
}

/// Fails instead of hanging.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("nothing came of it in a minute")
}

/// What all of these are answered.
pub async fn all(asking: Vec<JoinHandle<Reply>>) -> Vec<Reply> {
    let mut replies = Vec::new();
    for asking in asking {
        replies.push(within(asking).await.unwrap());
    }
    replies
}

/// An HTTP client.
#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// One that speaks HTTP/2 from the first byte on.
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

/// A whole answer.
pub struct Reply {
    response: Response<Bytes>,
    /// Without the key's digest, which nobody foresees.
    cache_status: Option<String>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body()[..self.body().len().min(300)]);
        write!(f, "{} {:?} {body}", self.status(), self.headers())
    }
}

/// What a `Cache-Status` says, but for the digest of the key; and the digest.
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

    /// A header that must be there once, as text.
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

    /// The digest of its cache key, if it tells one.
    pub fn key(&self) -> Option<String> {
        without_key(self.header("cache-status")).1
    }

    /// Asserts that it is a refusal or failure in upstream's shape, and shows no product.
    pub fn assert_refused(&self, status: StatusCode) {
        assert_eq!(self.status(), status, "{self:?}");
        let json = self.json();
        assert!(json["error_code"].is_string() && json.get("products").is_none(), "{self:?}");
    }

    /// Whether it was answered from memory, and well.
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

    /// How many products a list has.
    pub fn products(&self) -> usize {
        self.json()["products"].as_array().map_or(0, Vec::len)
    }

    /// Asserts that this is an error of upstream's shape, and gives its code and message.
    pub fn error(&self) -> (String, String) {
        let json = self.json();
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("no {name} in {json}")).to_owned();
        assert_eq!(text("request_id"), self.header("x-request-id"));
        assert_eq!(self.header("content-type"), "application/json");
        (text("error_code"), text("error_msg"))
    }
}

/// An upstream that a test answers for, call by call. Without sockets, thousands may ask at once.
pub struct Scripted(mpsc::UnboundedSender<Call>);

/// A call that waits for its answer.
pub struct Call {
    pub token: String,
    answer: oneshot::Sender<Result<Response<Bytes>, UpstreamError>>,
}

impl Call {
    pub fn answer(self, status: StatusCode, body: impl Into<Bytes>) {
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        self.answer.send(Ok(response)).expect("the call was given up");
    }

    /// The same; what is relayed ends with this body.
    pub fn answer_whole(self, status: StatusCode, body: impl Into<Bytes>) {
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        response.extensions_mut().insert(Whole);
        self.answer.send(Ok(response)).expect("the call was given up");
    }

    pub fn fail(self, error: UpstreamError) {
        self.answer.send(Err(error)).expect("the call was given up");
    }
}

impl Scripted {
    /// The upstream, and the calls as they come in.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Call>) {
        let (sender, calls) = mpsc::unbounded_channel();
        (Arc::new(Self(sender)), calls)
    }
}

impl Upstream for Scripted {
    fn ask<'a>(
        &'a self,
        _: &'a RequestKey,
        context: FetchContext,
        _: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Call { token: context.credential.token().unwrap().to_str().unwrap().to_owned(), answer }).unwrap();
        Box::pin(async { answered.await.unwrap().map(UpstreamResponse::read) })
    }

    /// The body of the answer begins as the test says, and does not end unless the answer is whole.
    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        head: &'a request::Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let (answer, answered) = oneshot::channel();
        let token = head.headers.get("x-auth-token").map_or("", |token| token.to_str().unwrap()).to_owned();
        self.0.send(Call { token, answer }).unwrap();
        Box::pin(async move {
            let (head, beginning) = answered.await.unwrap()?.into_parts();
            let is_whole = head.extensions.get::<Whole>().is_some();
            Ok(Response::from_parts(
                head,
                if is_whole { stream(Full::new(beginning)) } else { Endless(Some(beginning)).boxed_unsync() },
            ))
        })
    }
}

/// Marks an answer whose body ends.
#[derive(Clone, Copy)]
struct Whole;

/// A body whose parts are sent when the test says so.
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

/// Asks a gateway without a socket in between.
pub async fn ask(gateway: &Arc<Gateway>, token: &str, path: &str) -> Reply {
    ask_with(gateway, token, path, &[]).await
}

/// The same, with more headers.
pub async fn ask_with(gateway: &Arc<Gateway>, token: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request =
        Request::get(path.replace("PROJECT", PROJECT)).header("host", "gateway").header("x-auth-token", token);
    handle(gateway, headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

/// Hands a gateway a request without a body.
pub async fn handle(gateway: &Arc<Gateway>, request: http::request::Builder) -> Reply {
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
    let (head, body) = gateway.handle(request, &connection).await.into_parts();
    Reply::new(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
}

async fn upstream_that_says(bytes: &'static str) -> String {
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

/// Writes bytes on a connection of their own and reads all that comes back until it is closed.
pub async fn raw(address: std::net::SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has seen enough may close before it has read everything.
    let _ = stream.write_all(request.as_ref()).await;
    let mut answer = Vec::new();
    within(async { while stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {} }).await;
    String::from_utf8_lossy(&answer).into_owned()
}
