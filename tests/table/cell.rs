//! One cell of the table: a gateway of its own, what has happened to it before, one request, and what
//! comes of it.
//!
//! What happened before and what comes afterwards is told to the gateway without a socket; the
//! behaviour itself is met over one, by the program's own HTTP client. The client's side is the bytes
//! of HTTP, through a pipe.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use tokio::sync::watch;
use workspace_gateway::catalogue::{Origin, Service};
use workspace_gateway::clock::{Clock, ManualClock};
use workspace_gateway::config::Config;
use workspace_gateway::gateway::Gateway;
use workspace_gateway::request::hop::Via;
use workspace_gateway::request::key::Key;
use workspace_gateway::stream::StreamBody;
use workspace_gateway::upstream::client::{Errand, HttpClient, Limits};
use workspace_gateway::upstream::{Answering, Upstream};

use super::behaviours::{Behaviour, Line, MAX_BODY, Meaning, NEW, NEXT, OLD, OTHER_TAG, personal};
use super::rules::{Answer, Body, Expectation};
use super::states::{Before, Standing, State, Wish};
use crate::support::raw::{RawUpstream, silent};
use crate::support::wire::{Answered, exchange};
use crate::support::{HANG, PROJECT, config};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
/// Proves a caller in the scope of the list.
const PROOF: &str = "/v2/PROJECT/products?limit=0";
/// Another question in it.
const ASIDE: &str = "/v2/PROJECT/products?limit=1";

const CLIENT: &str = "the-client";
const OTHER_CALLER: &str = "another-caller";

/// What upstream said a second ago, where it didn't say well.
const BEFORE: &str = r#"{"error_code":"WKS.00000000","error_msg":"a second ago"}"#;
const OLD_TAG: &str = "\"old\"";

/// What is said of an upstream that is too slow.
const FIRST_BYTE: &str = "first-byte";
const TIMEOUT: &str = "timeout";

/// How long a slow upstream is waited for. Nothing else is waited for that long by anyone.
const SLOW: Duration = Duration::from_millis(1500);

/// The HTTP clients, one for each pace: they take long to make.
#[derive(Default)]
pub(super) struct Clients(Vec<(&'static str, Arc<HttpClient>)>);

impl Clients {
    pub(super) fn client(&mut self, behaviour: &Behaviour) -> Arc<HttpClient> {
        // The deadline that is going to be met.
        let pace = match behaviour.meaning {
            Meaning::Nothing(word @ (FIRST_BYTE | TIMEOUT)) => word,
            _ => "",
        };
        if let Some((_, client)) = self.0.iter().find(|(of, _)| *of == pace) {
            return Arc::clone(client);
        }
        let slow_if = |is_slow| if is_slow { SLOW } else { HANG };
        let limits = Limits {
            connect: Duration::from_secs(1),
            first_byte: slow_if(pace == FIRST_BYTE),
            answer: slow_if(pace == TIMEOUT),
            idle: slow_if(!pace.is_empty()),
            // No connection serves two cells.
            age: Duration::ZERO,
            max_body: MAX_BODY,
        };
        let client = Arc::new(HttpClient::new(None, limits, Via::new(1), Clock::System, |_| {}).unwrap());
        self.0.push((pace, Arc::clone(&client)));
        client
    }
}

/// An upstream that says what it is told to, or is asked over HTTP.
struct Staged {
    says: Mutex<Option<Response<Bytes>>>,
    client: Arc<HttpClient>,
    calls: watch::Sender<Calls>,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    begun: usize,
    ended: usize,
}

impl Staged {
    fn will_say(&self, answer: Response<Bytes>) {
        *self.says.lock().unwrap() = Some(answer);
    }

    fn will_be_asked(&self) {
        *self.says.lock().unwrap() = None;
    }

    async fn counted<T>(&self, call: impl Future<Output = T>) -> T {
        self.calls.send_modify(|calls| calls.begun += 1);
        let answer = call.await;
        self.calls.send_modify(|calls| calls.ended += 1);
        answer
    }

    /// Returns once nothing is under way, neither in the background.
    async fn is_idle(&self) {
        // What has been begun in the background gets a chance to ask.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        self.calls.subscribe().wait_for(|calls| calls.begun == calls.ended).await.unwrap();
        tokio::task::yield_now().await;
    }

    fn begun(&self) -> usize {
        self.calls.borrow().begun
    }
}

impl Upstream for Staged {
    fn ask<'a>(&'a self, key: &'a Key, errand: Errand) -> Answering<'a, Bytes> {
        let said = self.says.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match said {
                Some(answer) => Ok(answer),
                None => Upstream::ask(&*self.client, key, errand).await,
            }
        }))
    }

    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> Answering<'a, StreamBody> {
        let said = self.says.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match said {
                Some(answer) => Ok(answer.map(|bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync())),
                None => Upstream::relay(&*self.client, service, origin, head, body).await,
            }
        }))
    }
}

/// A gateway before a staged upstream, and time.
struct Stage {
    upstream: Arc<Staged>,
    gateway: Arc<Gateway>,
    clock: ManualClock,
}

/// An answer that is told without a socket.
fn told(status: u16, of: &str, tag: Option<&str>, body: &'static str) -> Response<Bytes> {
    let mut answer = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in personal(of).lines().map(|line| line.split_once(": ").unwrap()) {
        answer = answer.header(name, value);
    }
    if let Some(tag) = tag {
        answer = answer.header("etag", tag);
    }
    answer.body(Bytes::from_static(body.as_bytes())).unwrap()
}

/// Upstream at its address, for all wishes in one state.
pub(super) struct Place<'b> {
    behaviour: &'b Behaviour,
    state: &'b State,
    raw: RawUpstream,
    config: Config,
    client: Arc<HttpClient>,
    /// One for each wish, so that all of them begin at the date that upstream counts from.
    clocks: [ManualClock; Wish::ALL.len()],
}

impl<'b> Place<'b> {
    pub(super) async fn of(behaviour: &'b Behaviour, state: &'b State, client: Arc<HttpClient>) -> Self {
        let clocks = Wish::ALL.map(|_| ManualClock::default());
        let turn = match &behaviour.line {
            Line::Wire(turn) => turn.clone(),
            Line::Dated(turn) => {
                turn(Clock::Manual(clocks[0].clone()).date() + Duration::from_secs(state.age.unwrap_or(1)))
            }
            Line::Refused | Line::Unresolved | Line::NoTls => silent(),
        };
        let raw = RawUpstream::start([turn]).await;
        let url = match behaviour.line {
            Line::Wire(_) | Line::Dated(_) => raw.url().to_owned(),
            Line::Refused => "http://127.0.0.1:1".to_owned(),
            Line::Unresolved => "http://does-not-exist.invalid".to_owned(),
            Line::NoTls => no_tls().await,
        };
        let timeout = if behaviour.meaning == Meaning::Nothing(TIMEOUT) { SLOW } else { HANG }.as_millis();
        let patience = if behaviour.meaning == Meaning::Late { "1ms" } else { "10m" };
        let settings = format!(
            "[upstream]\nconnect_timeout = \"1s\"\nfirst_byte_timeout = \"1s\"\nanswer_timeout = \"{timeout}ms\"\n\
             [cache]\npatience = \"{patience}\""
        );
        let config = config(&url, &url, &settings);
        Self { behaviour, state, raw, config, client, clocks }
    }
}

impl Stage {
    fn before(place: &Place<'_>, wish: Wish) -> Self {
        let clock = place.clocks[wish as usize].clone();
        let client = Arc::clone(&place.client);
        let upstream = Arc::new(Staged { says: Mutex::default(), client, calls: watch::Sender::default() });
        let asked: Arc<dyn Upstream> = Arc::<Staged>::clone(&upstream);
        let gateway = Gateway::before(asked, &place.config, Clock::Manual(clock.clone())).unwrap();
        Self { upstream, gateway, clock }
    }

    fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    async fn get(&self, token: &str, path: &str, wish: Wish) -> Result<Answered, String> {
        let tag_of = |list: &str| {
            let digest = blake3::hash(list.as_bytes()).to_hex();
            format!("\"{}\"", &digest[..32])
        };
        let wished = match wish {
            Wish::Nothing => String::new(),
            Wish::IfNoneMatch => {
                let (old, new) = (tag_of(OLD), tag_of(NEW));
                format!("If-None-Match: {OLD_TAG}, W/{old}, {new}, {OTHER_TAG}\r\n")
            }
            wish => format!("Cache-Control: {}\r\n", wish.as_str()),
        };
        let path = path.replace("PROJECT", PROJECT);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nX-Auth-Token: {token}\r\n{wished}\r\n"
        );
        exchange(&self.gateway, &request).await
    }

    /// Brings a state about.
    async fn is_in(&self, state: &State) -> Result<(), String> {
        let get = async |token, path| self.get(token, path, Wish::Nothing).await.map(drop);
        let proof = told(200, "proof", None, r#"{"products":[]}"#);
        if state.age.is_some() {
            self.upstream.will_say(told(200, "old", state.has_tag.then_some(OLD_TAG), OLD));
            get(OTHER_CALLER, LIST).await?;
        }
        if state.standing == Standing::Lapsed {
            self.upstream.will_say(proof.clone());
            get(CLIENT, PROOF).await?;
        }
        self.seconds_pass(state.age.unwrap_or(1) - 1);
        if state.standing == Standing::Granted {
            self.upstream.will_say(proof);
            get(CLIENT, PROOF).await?;
        }
        let (status, path) = match state.before {
            Before::Nothing => (None, LIST),
            Before::Failure => (Some(500), LIST),
            Before::Negative => (Some(404), LIST),
            Before::Denial => (Some(401), ASIDE),
        };
        if let Some(status) = status {
            self.upstream.will_say(told(status, "before", None, BEFORE));
            get(CLIENT, path).await?;
        }
        self.seconds_pass(1);
        self.upstream.is_idle().await;
        Ok(())
    }

    /// One more request of the client's, once upstream is well again.
    async fn next(&self, behaviour: &Behaviour) -> Result<Answer, String> {
        self.upstream.will_say(told(200, "next", None, NEXT));
        let before = self.upstream.begun();
        let answered = self.get(CLIENT, LIST, Wish::Nothing).await?;
        self.upstream.is_idle().await;
        seen(&answered, behaviour, "next", self.upstream.begun() - before)
    }
}

/// What has come of a cell. What is expected tells only what to wait for.
pub(super) async fn run(place: &Place<'_>, wish: Wish, expected: &Expectation) -> Result<Expectation, String> {
    let Place { behaviour, state, raw, .. } = place;
    let stage = Stage::before(place, wish);
    stage.is_in(state).await?;

    stage.upstream.will_be_asked();
    let (before, requests) = (stage.upstream.begun(), raw.requests());
    let asking = stage.get(CLIENT, LIST, wish);
    let answered = match (behaviour.meaning, expected.now.calls) {
        // It is long in coming: the client has its answer before.
        (Meaning::Late, 1..) if !expected.now.cache_status.contains("fwd-status") && wish != Wish::NoStore => {
            let answered = asking.await;
            raw.asked(requests + 1).await;
            raw.go_on();
            answered
        }
        (Meaning::Late, 1..) => {
            let going_on = async {
                raw.asked(requests + 1).await;
                raw.go_on();
            };
            tokio::join!(asking, going_on).0
        }
        _ => asking.await,
    }?;
    stage.upstream.is_idle().await;
    let calls = stage.upstream.begun() - before;
    let now = seen(&answered, behaviour, "new", calls * behaviour.attempts)?;
    if matches!(behaviour.line, Line::Wire(_) | Line::Dated(_)) {
        let heads = raw.heads().split_off(requests);
        if heads.len() != calls * behaviour.attempts {
            return Err(format!("{} requests have come for {calls} calls", heads.len()));
        }
        let is_conditional = heads.first().is_some_and(|head| head.contains("if-none-match: \"old\"\r\n"));
        if is_conditional != (calls > 0 && state.has_tag && wish != Wish::NoStore) {
            return Err(format!("a conditional request: {is_conditional}"));
        }
    }

    stage.seconds_pass(1);
    let then = stage.next(behaviour).await?;
    let later = match &expected.later {
        None => None,
        // A date has no fractions of a second.
        Some((seconds, _)) => {
            stage.seconds_pass(seconds.saturating_sub(3));
            let still = stage.next(behaviour).await?;
            if *seconds > 3 && !still.cache_status.ends_with("detail=paused") {
                return Err(format!("no longer paused after {} s: {still}", seconds - 2));
            }
            stage.seconds_pass(2);
            Some((*seconds, stage.next(behaviour).await?))
        }
    };
    Ok(Expectation { now, then, later })
}

/// What an answer shows. `of`: whose headers it may have, if it is upstream's own.
fn seen(answered: &Answered, behaviour: &Behaviour, of: &str, calls: usize) -> Result<Answer, String> {
    let wrong = |what: &str| Err(format!("{what}: {answered:?}"));
    let Some(id) = answered.header("x-request-id")? else { return wrong("no X-Request-Id") };
    let is_new_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_new_id && id != format!("id-{of}") {
        return wrong("the X-Request-Id of another answer");
    }
    let session = answered.header("set-cookie")?;
    let is_upstreams = session.is_some();
    if session.is_some_and(|session| session != format!("session={of}")) {
        return wrong("the cookie of another answer");
    }
    if answered.header("x-ratelimit-remaining")? != is_upstreams.then_some(of) {
        return wrong("some headers of upstream's answer, and some not");
    }
    // A 304 is made of an answer: it has nothing of it but what it may have, and its id.
    if is_upstreams == is_new_id && (is_upstreams || answered.status != 304) {
        return wrong("not the X-Request-Id of this answer");
    }
    let body = answered.body.as_slice();
    let body = match body {
        [] => Body::Empty,
        _ if !answered.is_whole => Body::Cut,
        body if body == OLD.as_bytes() => Body::Old,
        body if body == NEXT.as_bytes() => Body::Next,
        body if body == BEFORE.as_bytes() => Body::Before,
        body if body == behaviour.body => Body::New,
        body => Body::Own(own_word(body, id).ok_or_else(|| format!("whose body is it: {answered:?}"))?),
    };
    if body == Body::Cut && !behaviour.body.starts_with(&answered.body) {
        return wrong("not the beginning of upstream's body");
    }
    if !answered.is_whole && body == Body::Empty {
        return wrong("no body");
    }
    let own = matches!(body, Body::Own(_));
    if own && answered.header("content-type")? != Some("application/json") {
        return wrong("not said to be JSON");
    }
    let cache_status = match answered.header("cache-status")? {
        None => String::new(),
        Some(text) => text.strip_prefix("workspace-gateway; ").ok_or("another cache")?.to_owned(),
    };
    let age = answered.header("age")?.map(|age| age.parse().map_err(|_| "an Age that is none")).transpose()?;
    // An error that has just come is of no age, whether it says so or not.
    let is_list = [OLD, NEW, NEXT].iter().any(|list| list.as_bytes() == answered.body) || answered.status == 304;
    let has_age = cache_status.contains("hit") || (is_list && !cache_status.contains("bypass"));
    if !has_age && age.is_some_and(|age: u64| age != 0) {
        return wrong("an Age of its own");
    }
    let age = age.filter(|_| has_age);
    Ok(Answer { status: answered.status, body, cache_status, age, is_upstreams, calls })
}

/// The reason in the gateway's own words, if it is an error of its own in upstream's shape.
fn own_word(body: &[u8], id: &str) -> Option<&'static str> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = json["error_msg"].as_str()?.strip_prefix("workspace-gateway: ")?;
    let words = [
        ("cannot connect", "connect"),
        ("TLS failed", "tls"),
        ("no answer begun in time", "first-byte"),
        ("no whole answer in time", "timeout"),
        ("nothing moved for too long", "idle"),
        ("the answer broke off", "broken"),
        ("only-if-cached", "only-if-cached"),
    ];
    let (_, word) = words.into_iter().find(|(said, _)| message.contains(said))?;
    (json["error_code"] == "APIGW.0201" && json["request_id"] == id).then_some(word)
}

/// Speaks http where https is expected.
async fn no_tls() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = bytes::BytesMut::new();
            let _ = tokio::io::AsyncReadExt::read_buf(&mut stream, &mut hello).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    url
}
