//! One cell of the table: a gateway of its own, what has happened to it before, one request, and what
//! comes of it.
//!
//! What happened before and what comes afterwards is told to the gateway without a socket; the
//! behaviour itself is met over one, by the program's own HTTP client. The client's side is the bytes
//! of HTTP, through a pipe.

use std::sync::Arc;
use std::time::Duration;

use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::upstream::Upstream;
use workspace_gateway::testing::upstream::client::HttpClient;

use super::behaviours::{BEFORE, Behaviour, Line, Meaning, NEW, NEXT, OLD, OTHER_TAG};
use super::rules::{Answer, Expectation};
use super::seen::seen;
use super::staged::{SLOW, Staged, TIMEOUT, told};
use super::states::{Before, GrantState, RequestDirectives, State};
use crate::support::raw::{RawUpstream, silent};
use crate::support::wire::{Answered, exchange};
use crate::support::{HANG, PROJECT, ask, config};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
/// Proves a caller in the scope of the list.
const PROOF: &str = "/v2/PROJECT/products?limit=0";
/// Another question in it.
const ASIDE: &str = "/v2/PROJECT/products?limit=1";

const CLIENT: &str = "the-client";
const OTHER_CALLER: &str = "another-caller";

const OLD_TAG: &str = "\"old\"";

/// A gateway before a staged upstream, and time.
struct Stage {
    upstream: Arc<Staged>,
    gateway: Arc<Gateway>,
    clock: ManualClock,
}

/// Upstream at its address, for all wishes in one state.
pub(super) struct Place<'b> {
    behaviour: &'b Behaviour,
    state: &'b State,
    raw: RawUpstream,
    config: Config,
    client: Arc<HttpClient>,
    /// One for each wish, so that all of them begin at the date that upstream counts from.
    clocks: [ManualClock; RequestDirectives::ALL.len()],
}

impl<'b> Place<'b> {
    pub(super) async fn of(behaviour: &'b Behaviour, state: &'b State, client: Arc<HttpClient>) -> Self {
        let clocks = RequestDirectives::ALL.map(|_| ManualClock::default());
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
        let stale_if_slow = if behaviour.meaning == Meaning::Late { "1ms" } else { "10m" };
        let settings = format!(
            "[upstream]\nconnect_timeout = \"1s\"\nfirst_byte_timeout = \"1s\"\nanswer_timeout = \"{timeout}ms\"\n\
             [cache]\nstale_if_slow = \"{stale_if_slow}\""
        );
        let config = config(&url, &url, &settings);
        Self { behaviour, state, raw, config, client, clocks }
    }
}

impl Stage {
    fn before(place: &Place<'_>, wish: RequestDirectives) -> Self {
        let clock = place.clocks[wish as usize].clone();
        let upstream = Arc::new(Staged::new(Arc::clone(&place.client)));
        let asked: Arc<dyn Upstream> = Arc::<Staged>::clone(&upstream);
        let gateway = Gateway::before(asked, &place.config, Clock::Manual(clock.clone()), Random::System).unwrap();
        Self { upstream, gateway, clock }
    }

    fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Asks for the list, as a client does.
    async fn get(&self, wish: RequestDirectives) -> Result<Answered, String> {
        let tag_of = |list: &str| {
            let digest = blake3::hash(list.as_bytes()).to_hex();
            format!("\"{}\"", &digest[..32])
        };
        let wished = match wish {
            RequestDirectives::Nothing => String::new(),
            RequestDirectives::IfNoneMatch => {
                let (old, new) = (tag_of(OLD), tag_of(NEW));
                format!("If-None-Match: {OLD_TAG}, W/{old}, {new}, {OTHER_TAG}\r\n")
            }
            wish => format!("Cache-Control: {}\r\n", wish.as_str()),
        };
        let path = LIST.replace("PROJECT", PROJECT);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nX-Auth-Token: {CLIENT}\r\n{wished}\r\n"
        );
        exchange(&self.gateway, &request).await
    }

    /// Brings a state about.
    async fn is_in(&self, state: &State) {
        let proof = told(200, "proof", None, r#"{"products":[]}"#);
        if state.age.is_some() {
            self.upstream.will_say(told(200, "old", state.has_tag.then_some(OLD_TAG), OLD));
            ask(&self.gateway, OTHER_CALLER, LIST).await;
        }
        if state.standing == GrantState::Grace {
            self.upstream.will_say(proof.clone());
            ask(&self.gateway, CLIENT, PROOF).await;
        }
        self.seconds_pass(state.age.unwrap_or(1) - 1);
        if state.standing == GrantState::Granted {
            self.upstream.will_say(proof);
            ask(&self.gateway, CLIENT, PROOF).await;
        }
        let (status, path) = match state.before {
            Before::Nothing => (None, LIST),
            Before::Failure => (Some(500), LIST),
            Before::Negative => (Some(404), LIST),
            Before::Denial => (Some(401), ASIDE),
        };
        if let Some(status) = status {
            self.upstream.will_say(told(status, "before", None, BEFORE));
            ask(&self.gateway, CLIENT, path).await;
        }
        self.seconds_pass(1);
        self.upstream.is_idle().await;
    }

    /// One more request of the client's, once upstream is well again.
    async fn next(&self, behaviour: &Behaviour) -> Result<Answer, String> {
        self.upstream.will_say(told(200, "next", None, NEXT));
        let before = self.upstream.begun();
        let answered = self.get(RequestDirectives::Nothing).await?;
        self.upstream.is_idle().await;
        seen(&answered, behaviour, "next", self.upstream.begun() - before)
    }
}

/// What has come of a cell. What is expected tells only what to wait for.
pub(super) async fn run(
    place: &Place<'_>,
    wish: RequestDirectives,
    expected: &Expectation,
) -> Result<Expectation, String> {
    let Place { behaviour, state, raw, .. } = place;
    let stage = Stage::before(place, wish);
    stage.is_in(state).await;

    stage.upstream.will_be_asked();
    let (before, requests) = (stage.upstream.begun(), raw.requests());
    let asking = stage.get(wish);
    let answered = match (behaviour.meaning, expected.now.calls) {
        // It is long in coming: the client has its answer before.
        (Meaning::Late, 1..)
            if !expected.now.cache_status.contains("fwd-status") && wish != RequestDirectives::NoStore =>
        {
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
        if is_conditional != (calls > 0 && state.has_tag && wish != RequestDirectives::NoStore) {
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
            if *seconds > 3 && !still.cache_status.ends_with("detail=backoff") {
                return Err(format!("no longer paused after {} s: {still}", seconds - 2));
            }
            stage.seconds_pass(2);
            Some((*seconds, stage.next(behaviour).await?))
        }
    };
    Ok(Expectation { now, then, later })
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
