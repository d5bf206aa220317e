//! One cell of the table: a gateway, the events before, one request, and what follows.
//!
//! The responses before and after that request are set without a socket. The behaviour itself comes over a socket, to
//! the HTTP client of the program. The client writes and reads the bytes of HTTP through a pipe.

use std::sync::Arc;
use std::time::Duration;

use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::upstream::Upstream;
use workspace_gateway::testing::upstream::client::HttpClient;

use super::behaviours::{BEFORE, Behaviour, Endpoint, Meaning, NEW, NEXT, OLD, OTHER_TAG};
use super::observed::observe;
use super::rules::{Expectation, Response};
use super::staged_upstream::{SLOW, StagedUpstream, TIMEOUT, staged_response};
use super::states::{Before, GrantState, RequestDirectives, State};
use crate::support::raw_upstream::{RawUpstream, silent};
use crate::support::wire::{WireResponse, exchange};
use crate::support::{PROJECT, config, get_in_process};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
/// Shorter than each `Retry-After` of the table, so that the gateway follows none by waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(29);

/// Proves a caller in the scope of the list.
const PROOF: &str = "/v2/PROJECT/products?limit=0";
/// Another key in that scope.
const ASIDE: &str = "/v2/PROJECT/products?limit=1";

const CLIENT: &str = "the-client";
const OTHER_CALLER: &str = "another-caller";

const OLD_TAG: &str = "\"old\"";

/// A gateway with a staged upstream and a clock.
struct Cell {
    upstream: Arc<StagedUpstream>,
    gateway: Arc<Gateway>,
    clock: ManualClock,
}

/// Upstream at its address, for all request directives in one state.
pub(super) struct Row<'b> {
    behaviour: &'b Behaviour,
    state: &'b State,
    raw: RawUpstream,
    config: Config,
    client: Arc<HttpClient>,
    /// One clock for each request directive: all of them start at the date that upstream counts from.
    clocks: [ManualClock; RequestDirectives::ALL.len()],
}

impl<'b> Row<'b> {
    pub(super) async fn new(behaviour: &'b Behaviour, state: &'b State, client: Arc<HttpClient>) -> Self {
        let clocks = RequestDirectives::ALL.map(|_| ManualClock::default());
        let reaction = match &behaviour.endpoint {
            Endpoint::Wire(reaction) => reaction.clone(),
            Endpoint::Dated(reaction) => {
                reaction(Clock::Manual(clocks[0].clone()).date() + Duration::from_secs(state.age.unwrap_or(1)))
            }
            Endpoint::Refused | Endpoint::Unresolved | Endpoint::NoTls => silent(),
        };
        let raw = RawUpstream::start([reaction]).await;
        let url = match behaviour.endpoint {
            Endpoint::Wire(_) | Endpoint::Dated(_) => raw.url().to_owned(),
            Endpoint::Refused => "http://127.0.0.1:1".to_owned(),
            Endpoint::Unresolved => "http://does-not-exist.invalid".to_owned(),
            Endpoint::NoTls => no_tls().await,
        };
        let is_timeout = behaviour.meaning == Meaning::NoResponse(TIMEOUT);
        let timeout = if is_timeout { SLOW } else { ANSWER_TIMEOUT }.as_millis();
        let stale_if_slow = if behaviour.meaning == Meaning::Late { "1ms" } else { "10m" };
        let settings = format!(
            "[upstream]\nconnect_timeout = \"1s\"\nfirst_byte_timeout = \"1s\"\nanswer_timeout = \"{timeout}ms\"\n\
             [cache]\nstale_if_slow = \"{stale_if_slow}\""
        );
        let config = config(&url, &url, &settings);
        Self { behaviour, state, raw, config, client, clocks }
    }
}

impl Cell {
    fn new(row: &Row<'_>, directives: RequestDirectives) -> Self {
        let clock = row.clocks[directives as usize].clone();
        let upstream = Arc::new(StagedUpstream::new(Arc::clone(&row.client)));
        let called: Arc<dyn Upstream> = Arc::<StagedUpstream>::clone(&upstream);
        let gateway =
            Gateway::with_upstream(called, &row.config, Clock::Manual(clock.clone()), Random::System).unwrap();
        Self { upstream, gateway, clock }
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Requests the list as a client.
    async fn get(&self, directives: RequestDirectives) -> Result<WireResponse, String> {
        let tag_of = |list: &str| {
            let digest = blake3::hash(list.as_bytes()).to_hex();
            format!("\"{}\"", &digest[..32])
        };
        let header = match directives {
            RequestDirectives::None => String::new(),
            RequestDirectives::IfNoneMatch => {
                let (old, new) = (tag_of(OLD), tag_of(NEW));
                format!("If-None-Match: {OLD_TAG}, W/{old}, {new}, {OTHER_TAG}\r\n")
            }
            directives => format!("Cache-Control: {}\r\n", directives.as_str()),
        };
        let path = LIST.replace("PROJECT", PROJECT);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nX-Auth-Token: {CLIENT}\r\n{header}\r\n"
        );
        exchange(&self.gateway, &request).await
    }

    /// Brings the gateway into a state.
    async fn set_up(&self, state: &State) {
        let proof = staged_response(200, "proof", None, r#"{"products":[]}"#);
        if state.age.is_some() {
            self.upstream.will_respond(staged_response(200, "old", state.has_tag.then_some(OLD_TAG), OLD));
            get_in_process(&self.gateway, OTHER_CALLER, LIST).await;
        }
        if state.grant_state == GrantState::Lapsed {
            self.upstream.will_respond(proof.clone());
            get_in_process(&self.gateway, CLIENT, PROOF).await;
        }
        self.advance(state.age.unwrap_or(1) - 1);
        if state.grant_state == GrantState::Granted {
            self.upstream.will_respond(proof);
            get_in_process(&self.gateway, CLIENT, PROOF).await;
        }
        let (status, path) = match state.before {
            Before::None => (None, LIST),
            Before::Failure => (Some(500), LIST),
            Before::Negative => (Some(404), LIST),
            Before::Denial => (Some(401), ASIDE),
        };
        if let Some(status) = status {
            self.upstream.will_respond(staged_response(status, "before", None, BEFORE));
            get_in_process(&self.gateway, CLIENT, path).await;
        }
        self.advance(1);
        self.upstream.wait_until_idle().await;
    }

    /// Another request of the client, after upstream has recovered.
    async fn next_response(&self, behaviour: &Behaviour) -> Result<Response, String> {
        self.upstream.will_respond(staged_response(200, "next", None, NEXT));
        let before = self.upstream.started();
        let response = self.get(RequestDirectives::None).await?;
        self.upstream.wait_until_idle().await;
        observe(&response, behaviour, "next", self.upstream.started() - before)
    }
}

/// Runs a cell. `expected` is used only to decide what to wait for.
pub(super) async fn run(
    row: &Row<'_>,
    directives: RequestDirectives,
    expected: &Expectation,
) -> Result<Expectation, String> {
    let Row { behaviour, state, raw, .. } = row;
    let cell = Cell::new(row, directives);
    cell.set_up(state).await;

    cell.upstream.will_be_called();
    let (before, requests) = (cell.upstream.started(), raw.requests());
    let pending = cell.get(directives);
    let response = match (behaviour.meaning, expected.now.calls) {
        // The client gets its response before upstream sends it.
        (Meaning::Late, 1..)
            if !expected.now.cache_status.contains("fwd-status") && directives != RequestDirectives::NoStore =>
        {
            let response = pending.await;
            raw.wait_for_requests(requests + 1).await;
            raw.resume();
            response
        }
        (Meaning::Late, 1..) => {
            let resuming = async {
                raw.wait_for_requests(requests + 1).await;
                raw.resume();
            };
            tokio::join!(pending, resuming).0
        }
        _ => pending.await,
    }?;
    cell.upstream.wait_until_idle().await;
    let calls = cell.upstream.started() - before;
    let now = observe(&response, behaviour, "new", calls * behaviour.attempts)?;
    if matches!(behaviour.endpoint, Endpoint::Wire(_) | Endpoint::Dated(_)) {
        let heads = raw.heads().split_off(requests);
        if heads.len() != calls * behaviour.attempts {
            return Err(format!("got {} requests for {calls} calls", heads.len()));
        }
        let is_conditional = heads.first().is_some_and(|head| head.contains("if-none-match: \"old\"\r\n"));
        if is_conditional != (calls > 0 && state.has_tag && directives != RequestDirectives::NoStore) {
            return Err(format!("the request is conditional: {is_conditional}"));
        }
    }

    cell.advance(1);
    let then = cell.next_response(behaviour).await?;
    let later = match &expected.later {
        None => None,
        // A date has a resolution of one second.
        Some((seconds, _)) => {
            cell.advance(seconds.saturating_sub(3));
            let during_backoff = cell.next_response(behaviour).await?;
            if *seconds > 3 && !during_backoff.cache_status.ends_with("detail=backoff") {
                return Err(format!("no backoff after {} s: {during_backoff}", seconds - 2));
            }
            cell.advance(2);
            Some((*seconds, cell.next_response(behaviour).await?))
        }
    };
    Ok(Expectation { now, then, later })
}

/// A server without TLS.
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
