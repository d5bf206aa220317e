//! A client: asks one thing after another, by a connection that it keeps as a rule, and is not always well
//! behaved. It notes down what it asked and what it was given, for others to judge.

use std::net::SocketAddr;
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
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::request::caller::X_AUTH_TOKEN;

use super::settings::ANSWER_TIMEOUT;
use super::world::{CacheRequest, PROJECTS, World};

/// No answer is that late.
pub(crate) const HANG: Duration = Duration::from_secs(3 * ANSWER_TIMEOUT.as_secs() + 10);
/// What clients call the gateway.
const HOST_NAME: &str = "gateway";
/// So little that the gateway can't write a whole list before a slow reader has read half of it.
const SMALL_BUFFER: u32 = 4 * 1024;

/// What a client asks for besides.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RequestDirectives {
    None,
    /// Nothing from memory.
    NoCache,
    /// Nothing older than that.
    MaxAge(u64),
    /// Nothing to be asked.
    OnlyIfCached,
    /// Nothing to be kept.
    NoStore,
    /// Nothing that it has already: an answer with this tag and this body.
    IfNoneMatch(HeaderValue, Bytes),
}

/// A request and what came of it.
pub(crate) struct Exchange {
    pub(crate) client: usize,
    pub(crate) caller: usize,
    pub(crate) question: usize,
    pub(crate) wish: RequestDirectives,
    /// Just before it was sent.
    pub(crate) begun: Instant,
    /// Just after the head of its answer had come: nothing is decided later.
    pub(crate) decided: Instant,
    pub(crate) end: End,
}

/// What came of a request.
pub(crate) enum End {
    Answered {
        status: StatusCode,
        headers: HeaderMap,
        /// The body, or what broke it off.
        body: Result<Bytes, String>,
    },
    /// No answer.
    Broken(String),
    /// The client has not waited for it.
    HungUp,
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) world: Arc<World>,
    pub(crate) gateway: SocketAddr,
    pub(crate) dice: SmallRng,
    line: Option<Line>,
    /// Every fifth client.
    speaks_http2: bool,
    caller: usize,
    /// What it was given last that has a tag, and to which question.
    tagged: Option<(usize, HeaderValue, Bytes)>,
}

impl Client {
    pub(crate) fn new(number: usize, world: Arc<World>, gateway: SocketAddr, mut dice: SmallRng) -> Self {
        let caller = dice.random_range(0..world.callers.len());
        Self { number, world, gateway, dice, line: None, speaks_http2: number.is_multiple_of(5), caller, tagged: None }
    }

    /// Some time before the next request.
    pub(crate) async fn think(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.dice.random_range(10..200))).await;
    }

    /// Asks something.
    pub(crate) async fn ask(&mut self) -> Exchange {
        // On the same connection now and then.
        if self.dice.random_ratio(1, 10) {
            self.caller = self.dice.random_range(0..self.world.callers.len());
        }
        let (question, caller) = (self.some_question(), self.caller);
        let wish = self.some_wish(question);
        let is_slow = self.dice.random_ratio(1, 20);
        if is_slow || self.dice.random_ratio(1, 10) {
            self.line = None;
        }
        let stale_if_slow =
            self.dice.random_ratio(1, 30).then(|| Duration::from_millis(self.dice.random_range(0..300)));
        let leaves_in_body = self.dice.random_ratio(1, 50);

        let request = self.request(question, &wish);
        let mut begun = Clock::System.now();
        let exchange = |begun, end| Exchange {
            client: self.number,
            caller,
            question,
            wish: wish.clone(),
            begun,
            decided: Clock::System.now(),
            end,
        };
        let line = match &mut self.line {
            Some(line) => line,
            none => match Line::to(self.gateway, self.speaks_http2, is_slow).await {
                Ok(line) => none.insert(line),
                Err(error) => return exchange(begun, End::Broken(format!("not connected: {error}"))),
            },
        };
        begun = Clock::System.now();
        let answering = line.send(request);
        let answer = tokio::time::timeout(stale_if_slow.unwrap_or(HANG), answering).await;
        let (mut exchange, body) = match answer {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                let end = End::Answered { status: head.status, headers: head.headers, body: Ok(Bytes::new()) };
                (exchange(begun, end), body)
            }
            Ok(Err(error)) => {
                self.line = None;
                return exchange(begun, End::Broken(format!("no answer: {error:?}")));
            }
            Err(_) => {
                // By HTTP/2 this resets a stream, and the connection goes on.
                self.line.take_if(|_| !self.speaks_http2);
                let end = if stale_if_slow.is_some() { End::HungUp } else { End::Broken("it hangs".to_owned()) };
                return exchange(begun, end);
            }
        };
        if leaves_in_body {
            self.line.take_if(|_| !self.speaks_http2);
            exchange.end = End::HungUp;
            return exchange;
        }
        let reading = read(body, is_slow.then(|| Duration::from_millis(self.dice.random_range(1..20))));
        let read = tokio::time::timeout(HANG, reading).await.unwrap_or_else(|_| Err("it hangs".to_owned()));
        if let End::Answered { status, headers, body } = &mut exchange.end {
            if read.is_err() || headers.get(CONNECTION).is_some_and(|value| value == "close") {
                self.line = None;
            }
            if let (StatusCode::OK, Some(tag), Ok(body)) = (*status, headers.get(ETAG), &read) {
                self.tagged = Some((question, tag.clone(), body.clone()));
            }
            *body = read;
        }
        exchange
    }

    fn some_question(&mut self) -> usize {
        let world = Arc::clone(&self.world);
        let caller = &world.callers[self.caller];
        let project = match caller.project {
            Some(home) if !self.dice.random_ratio(1, 40) => home,
            _ => self.dice.random_range(0..PROJECTS),
        };
        let fits = |question: &CacheRequest| question.project == project && (question.is_private || !caller.is_narrow);
        let questions: Vec<_> =
            (0..world.questions.len()).filter(|&question| fits(&world.questions[question])).collect();
        // The first ones more often.
        let [one, other] = [0; 2].map(|least| self.dice.random_range(least..questions.len()));
        questions[one.min(other)]
    }

    fn some_wish(&mut self, question: usize) -> RequestDirectives {
        match self.dice.random_range(0..60) {
            0 => RequestDirectives::NoCache,
            1 => RequestDirectives::MaxAge(0),
            2 => RequestDirectives::MaxAge(1),
            3 => RequestDirectives::OnlyIfCached,
            4 => RequestDirectives::NoStore,
            _ => match &self.tagged {
                Some((tagged, tag, body)) if *tagged == question && self.dice.random_ratio(1, 2) => {
                    RequestDirectives::IfNoneMatch(tag.clone(), body.clone())
                }
                _ => RequestDirectives::None,
            },
        }
    }

    fn request(&mut self, question: usize, wish: &RequestDirectives) -> Request<Empty<Bytes>> {
        let question = &self.world.questions[question];
        let target = &question.targets[self.dice.random_range(0..question.targets.len())];
        let mut headers = language(question.language);
        let mut add =
            |name: HeaderName, value: &str| headers.insert(name, HeaderValue::try_from(value).expect("a value"));
        add(HOST, HOST_NAME);
        add(X_AUTH_TOKEN, &self.world.callers[self.caller].token);
        match wish {
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

/// The headers that a question is asked with.
pub(crate) fn language(language: Option<&'static str>) -> HeaderMap {
    let header = |value| (HeaderName::from_static("x-language"), HeaderValue::from_static(value));
    language.map(header).into_iter().collect()
}

async fn read(mut body: Incoming, pause: Option<Duration>) -> Result<Bytes, String> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("broken off: {error:?}"))?;
        whole.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(whole.into())
}

/// A connection, which closes with this value.
struct Line {
    sender: Sender,
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Line {
    async fn to(gateway: SocketAddr, by_http2: bool, is_slow: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let socket = TcpSocket::new_v4()?;
        if is_slow {
            socket.set_recv_buffer_size(SMALL_BUFFER)?;
        }
        let stream = tokio::time::timeout(HANG, socket.connect(gateway)).await??;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // How a connection ends is told to whoever waits for an answer.
        let (sender, driver) = if by_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            (Sender::Http2(sender), tokio::spawn(async { drop(connection.await) }))
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            (Sender::Http1(sender), tokio::spawn(async { drop(connection.await) }))
        };
        Ok(Self { sender, driver })
    }

    async fn send(&mut self, mut request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
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

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
