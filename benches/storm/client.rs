//! A client: sends one request after another, mostly on a persistent connection. Some clients read slowly or abort. It
//! records each exchange and does not judge it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, ETAG, HOST, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::task::JoinHandle;
use workspace_gateway::testing::request::caller::X_AUTH_TOKEN;

use super::endpoint::{Begun, Endpoint, Standing};
use super::network::connect;
use super::settings::{ANSWER_TIMEOUT, THINK};
use super::world::{Caller, PROJECTS, World};

/// Far longer than any response takes.
pub(crate) const HANG: Duration = Duration::from_secs(3 * ANSWER_TIMEOUT.as_secs() + 10);
const HOST_NAME: &str = "gateway";

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RequestDirectives {
    None,
    NoCache,
    /// Seconds.
    MaxAge(u64),
    OnlyIfCached,
    NoStore,
    /// The `ETag` and the body that the client has.
    IfNoneMatch(HeaderValue, Bytes),
}

/// A request and its result.
pub(crate) struct Exchange {
    pub(crate) client: usize,
    /// The gateway's number.
    pub(crate) gateway: usize,
    /// Of the gateway, from `begun` to `decided`.
    pub(crate) standing: Standing,
    pub(crate) caller: usize,
    pub(crate) resource: usize,
    pub(crate) directives: RequestDirectives,
    /// Immediately before the request was sent.
    pub(crate) begun: Instant,
    /// Immediately after the head of the response was received. The gateway has decided before.
    pub(crate) decided: Instant,
    pub(crate) end: End,
}

pub(crate) enum End {
    Answered {
        status: StatusCode,
        headers: HeaderMap,
        /// The body, or the error that ended it.
        body: Result<Bytes, String>,
    },
    /// No response.
    Broken(String),
    /// The client has aborted the request.
    Aborted,
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) world: Arc<World>,
    pub(crate) gateways: Arc<[Endpoint]>,
    gateway: usize,
    pub(crate) dice: SmallRng,
    connection: Option<Connection>,
    /// Every fifth client.
    uses_http2: bool,
    caller: usize,
    /// The last response with an `ETag`: its resource, tag and body.
    tagged: Option<(usize, HeaderValue, Bytes)>,
    /// What the next request is for, if [`Self::aim`] has said so.
    aimed: Option<usize>,
}

impl Client {
    pub(crate) fn new(number: usize, world: Arc<World>, gateways: &Arc<[Endpoint]>, mut dice: SmallRng) -> Self {
        let caller = dice.random_range(0..world.callers.len());
        Self {
            number,
            world,
            gateways: Arc::clone(gateways),
            gateway: number % gateways.len(),
            dice,
            connection: None,
            uses_http2: number.is_multiple_of(5),
            caller,
            tagged: None,
            aimed: None,
        }
    }

    /// The next request is for this resource, at this gateway, by any caller who may see it.
    #[allow(dead_code)]
    pub(crate) fn aim(&mut self, resource: usize, gateway: usize) {
        let World { callers, resources, .. } = &*self.world;
        let sees = |caller: &Caller| caller.project.is_some_and(|home| resources[resource].is_for(caller, home));
        let callers: Vec<_> = (0..callers.len()).filter(|caller| sees(&callers[*caller])).collect();
        self.caller = callers[self.dice.random_range(0..callers.len())];
        if self.gateway != gateway {
            (self.gateway, self.connection) = (gateway, None);
        }
        self.aimed = Some(resource);
    }

    pub(crate) async fn think(&mut self) {
        tokio::time::sleep(self.dice.random_range(THINK)).await;
    }

    pub(crate) async fn exchange(&mut self) -> Exchange {
        let resource = self.aimed.take().unwrap_or_else(|| self.pick());
        let caller = self.caller;
        let directives = self.pick_directives(resource);
        let is_slow = self.dice.random_ratio(1, 20);
        if is_slow || self.dice.random_ratio(1, 10) {
            self.connection = None;
        }
        let abort_after = self.dice.random_ratio(1, 30).then(|| Duration::from_millis(self.dice.random_range(0..300)));
        let aborts_in_body = self.dice.random_ratio(1, 50);

        let request = self.request(resource, &directives);
        let (gateways, gateway) = (Arc::clone(&self.gateways), self.gateway);
        let endpoint = &gateways[gateway];
        let mut begun = endpoint.begin();
        let exchange = |begun: Begun, end| {
            let (decided, standing) = endpoint.end(begun);
            let (client, directives, begun) = (self.number, directives.clone(), begun.at);
            Exchange { client, gateway, standing, caller, resource, directives, begun, decided, end }
        };
        let address = endpoint.address();
        self.connection.take_if(|connection| connection.gateway != address || connection.is_closed());
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match Connection::open(self.number, address, self.uses_http2, is_slow).await {
                Ok(connection) => none.insert(connection),
                Err(error) => return exchange(begun, End::Broken(format!("not connected: {error}"))),
            },
        };
        begun = endpoint.begin();
        let sending = connection.send(request);
        let result = tokio::time::timeout(abort_after.unwrap_or(HANG), sending).await;
        let (mut exchange, body) = match result {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                let end = End::Answered { status: head.status, headers: head.headers, body: Ok(Bytes::new()) };
                (exchange(begun, end), body)
            }
            Ok(Err(error)) => {
                self.connection = None;
                return exchange(begun, End::Broken(format!("no response: {error:?}")));
            }
            Err(_) => {
                // In HTTP/2 only the stream is reset, and the connection stays open.
                self.connection.take_if(|_| !self.uses_http2);
                let end = if abort_after.is_some() { End::Aborted } else { End::Broken("timeout".to_owned()) };
                return exchange(begun, end);
            }
        };
        if aborts_in_body {
            self.connection.take_if(|_| !self.uses_http2);
            exchange.end = End::Aborted;
            return exchange;
        }
        let reading = read(body, is_slow.then(|| Duration::from_millis(self.dice.random_range(1..20))));
        let read = tokio::time::timeout(HANG, reading).await.unwrap_or_else(|_| Err("timeout".to_owned()));
        if let End::Answered { status, headers, body } = &mut exchange.end {
            if read.is_err() || headers.get(CONNECTION).is_some_and(|value| value == "close") {
                self.connection = None;
            }
            if let (StatusCode::OK, Some(tag), Ok(body)) = (*status, headers.get(ETAG), &read) {
                self.tagged = Some((resource, tag.clone(), body.clone()));
            }
            *body = read;
        }
        exchange
    }

    /// Sometimes with another caller, or at another gateway.
    fn pick(&mut self) -> usize {
        // The connection stays open: callers may share one.
        if self.dice.random_ratio(1, 10) {
            self.caller = self.dice.random_range(0..self.world.callers.len());
        }
        if self.gateways.len() > 1 && self.dice.random_ratio(1, 4) {
            self.gateway = self.dice.random_range(0..self.gateways.len());
            self.connection = None;
        }
        self.pick_resource()
    }

    fn pick_resource(&mut self) -> usize {
        let world = Arc::clone(&self.world);
        let caller = &world.callers[self.caller];
        let project = match caller.project {
            Some(home) if !self.dice.random_ratio(1, 40) => home,
            _ => self.dice.random_range(0..PROJECTS),
        };
        let resources: Vec<_> =
            (0..world.resources.len()).filter(|&resource| world.resources[resource].is_for(caller, project)).collect();
        // The first resources are more popular.
        let [one, other] = [0; 2].map(|least| self.dice.random_range(least..resources.len()));
        resources[one.min(other)]
    }

    fn pick_directives(&mut self, resource: usize) -> RequestDirectives {
        match self.dice.random_range(0..60) {
            0 => RequestDirectives::NoCache,
            1 => RequestDirectives::MaxAge(0),
            2 => RequestDirectives::MaxAge(1),
            3 => RequestDirectives::OnlyIfCached,
            4..=6 => RequestDirectives::NoStore,
            _ => match &self.tagged {
                Some((tagged, tag, body)) if *tagged == resource && self.dice.random_ratio(1, 2) => {
                    RequestDirectives::IfNoneMatch(tag.clone(), body.clone())
                }
                _ => RequestDirectives::None,
            },
        }
    }

    fn request(&mut self, resource: usize, directives: &RequestDirectives) -> Request<Empty<Bytes>> {
        let resource = &self.world.resources[resource];
        let target = &resource.targets[self.dice.random_range(0..resource.targets.len())];
        let mut headers = language(resource.language);
        let mut add =
            |name: HeaderName, value: &str| headers.insert(name, HeaderValue::try_from(value).expect("a value"));
        add(HOST, HOST_NAME);
        add(X_AUTH_TOKEN, &self.world.callers[self.caller].token);
        match directives {
            RequestDirectives::None => None,
            RequestDirectives::NoCache => add(CACHE_CONTROL, "no-cache"),
            RequestDirectives::MaxAge(age) => add(CACHE_CONTROL, &format!("max-age={age}")),
            RequestDirectives::OnlyIfCached => add(CACHE_CONTROL, "only-if-cached"),
            RequestDirectives::NoStore => add(CACHE_CONTROL, "no-store"),
            RequestDirectives::IfNoneMatch(tag, _) => headers.insert(IF_NONE_MATCH, tag.clone()),
        };
        let mut request = Request::get(target).body(Empty::new()).expect("a request");
        *request.headers_mut() = headers;
        request
    }
}

pub(crate) fn language(language: Option<&'static str>) -> HeaderMap {
    let header = |value| (HeaderName::from_static("x-language"), HeaderValue::from_static(value));
    language.map(header).into_iter().collect()
}

async fn read(mut body: Incoming, pause: Option<Duration>) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("incomplete body: {error:?}"))?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(bytes.into())
}

/// A connection. It is closed when this is dropped.
pub(crate) struct Connection {
    gateway: std::net::SocketAddr,
    sender: Sender,
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Connection {
    pub(crate) async fn open(
        client: usize,
        gateway: std::net::SocketAddr,
        uses_http2: bool,
        is_slow: bool,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let stream = TokioIo::new(tokio::time::timeout(HANG, connect(client, gateway, is_slow)).await??);
        // The sender reports how a connection ends, so the driver's result is not needed.
        let (sender, driver) = if uses_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            (Sender::Http2(sender), tokio::spawn(async { drop(connection.await) }))
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            (Sender::Http1(sender), tokio::spawn(async { drop(connection.await) }))
        };
        Ok(Self { gateway, sender, driver })
    }

    /// Whether the gateway has closed it.
    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    pub(crate) async fn send(&mut self, mut request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => {
                let target = format!("http://{HOST_NAME}{}", request.uri());
                *request.uri_mut() = target.parse().expect("a URL");
                request.headers_mut().remove(HOST);
                sender.send_request(request).await
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
