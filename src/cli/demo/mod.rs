//! `demo`: starts the gateway with simulated upstreams, sends a scripted load, and prints a table of the results. It is
//! a client of the gateway and must not use its internals.

mod steps;
mod throttled;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, RETRY_AFTER};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use super::failure;
use super::runtime::block_on;
use super::signals::StopSignals;
use super::simulate::PROJECT;
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::{Config, Mode, Override};
use crate::request::caller::X_AUTH_TOKEN;
use crate::server::Server;
use crate::signing::{self, Payload, Projects};
use crate::simulator::{IssuedKey, RecordedRequest, Simulator};
use crate::stream::BoxError;
use steps::{DemoCaller, SETTINGS, Step, UpstreamState};

const LATENCY: Duration = Duration::from_millis(150);

/// The maximum time for a background call to arrive. A longer time is a failure.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(once: bool, mode: Mode) -> ExitCode {
    block_on(async {
        match run_steps(once, mode).await {
            Ok(code) => code,
            Err(error) => failure(1, &format!("the demo failed: {error}")),
        }
    })
}

async fn run_steps(once: bool, mode: Mode) -> Result<ExitCode, BoxError> {
    let mut signals = StopSignals::new()?;
    let simulator = Simulator::start().await?;
    simulator.delay(LATENCY);
    let keys = [(); 2].map(|()| simulator.access_key(PROJECT));
    let server = Server::start(&config(&simulator, mode, &keys[0])?, Clock::System).await?;
    let setup = DemoSetup {
        client: Client::builder(TokioExecutor::new()).build_http(),
        gateway: format!("http://{}", server.proxy_address()),
        callers: [(); 3].map(|()| simulator.token(PROJECT)),
        keys,
        simulator,
    };

    writeln!(
        io::stdout(),
        "The demo runs two simulated upstream services, which take {LATENCY:?} to answer, and a gateway in front of them.\n\
         The sharer list is fresh for 1.5 s. For another second it is served stale while the gateway refreshes it.\n\
         The column \"upstream calls\" counts all calls since the start.\n"
    )?;
    let as_expected = tokio::select! {
        result = setup.perform_all() => result?,
        () = signals.received() => return Ok(failure(1, &"stopped before the end")),
    };
    if once {
        server.stop().await;
        return Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }

    print_instructions(&server, &setup)?;
    signals.received().await;
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The configuration of `serve`, with ports that the system chooses.
fn config(simulator: &Simulator, mode: Mode, key: &IssuedKey) -> Result<Config, BoxError> {
    let given = |path, value: &str| Override { path, value: value.into(), origin: "demo".to_owned() };
    Ok(Config::from_layers(
        "demo",
        &format!("{SETTINGS}\n[[access_key]]\nid = {:?}\nsecret = {:?}\n", key.id, key.secret),
        &[
            given(&["upstream", "workspace_url"], &simulator.url(Service::Workspace)),
            given(&["upstream", "appstream_url"], &simulator.url(Service::AppStream)),
            given(&["listen", "proxy"], "127.0.0.1:0"),
            given(&["listen", "metrics"], "127.0.0.1:0"),
            given(&["listen", "admin"], "127.0.0.1:0"),
            given(&["mode"], mode.into_str()),
        ],
    )?)
}

struct Reply {
    status: StatusCode,
    from: String,
    products: usize,
}

struct DemoSetup {
    client: Client<HttpConnector, Empty<Bytes>>,
    gateway: String,
    simulator: Simulator,
    callers: [String; 3],
    /// The gateway has only the first key in its settings.
    keys: [IssuedKey; 2],
}

impl DemoSetup {
    async fn perform_all(&self) -> Result<bool, BoxError> {
        let as_expected = self.perform().await?;
        Ok(self.perform_throttled().await? && as_expected)
    }

    /// Runs all steps and prints the table. True if the upstreams received exactly the expected requests.
    async fn perform(&self) -> Result<bool, BoxError> {
        let mut out = io::stdout();
        let mut all_expected = true;
        let mut expected: Vec<(String, DemoCaller)> = Vec::new();
        let mut path = "";
        writeln!(out, "{}", row("query", "what happens", "", "latency", "upstream calls", "answered from"))?;
        for step in steps::all() {
            self.set(step.upstream);
            tokio::time::sleep(Duration::from_millis(step.wait)).await;
            if step.path != path {
                path = step.path;
                writeln!(out, "GET {path}")?;
            }
            let start = Clock::System.timer_now();
            let replies = self.send(&step).await?;
            let took = Clock::System.timer_now().saturating_duration_since(start);
            if let Some(query) = step.upstream_query {
                let target = format!("{}?{query}", step.path.replace("PROJECT", PROJECT));
                expected.push((target, step.caller));
            }
            let are_correct = replies.iter().all(|reply| {
                // Only a 200 has products.
                let is_ok = reply.status == StatusCode::OK;
                reply.status == step.expected_status && is_ok == (reply.products > 0)
            });
            // A call in the background may not have arrived yet.
            let _ = tokio::time::timeout(BACKGROUND_TIMEOUT, self.simulator.wait_for_requests(expected.len())).await;
            let seen = self.simulator.requests_seen();
            let as_expected = are_correct && self.is_as_expected(&seen, &expected);
            let calls = seen.len();
            let status = step.expected_status.as_u16().to_string();
            let latency = format!("{:.1} ms", took.as_secs_f64() * 1e3);
            let row = row(step.query, step.note, &status, &latency, &calls.to_string(), &summary(&replies));
            writeln!(out, "{row}{}", if as_expected { "" } else { "  ← unexpected" })?;
            all_expected &= as_expected;
        }
        let requests: usize = steps::all().iter().map(|step| step.at_once).sum();
        let (calls, expected) = (self.simulator.request_count(), expected.len());
        writeln!(out, "\n{requests} client requests caused {calls} upstream calls ({expected} expected).")?;
        Ok(all_expected)
    }

    fn set(&self, upstream: UpstreamState) {
        match upstream {
            UpstreamState::Unchanged => {}
            UpstreamState::Healthy => {
                self.simulator.fail_with(None);
                self.simulator.throttle(None);
                self.simulator.remove_headers();
                self.simulator.delay(LATENCY);
            }
            UpstreamState::Down => self.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE)),
            UpstreamState::Throttled(seconds) => {
                self.simulator.throttle(Some(0));
                self.simulator.add_header(RETRY_AFTER, HeaderValue::from(seconds));
            }
            UpstreamState::Slow(latency) => self.simulator.delay(latency),
        }
    }

    /// Whether the upstreams received exactly these targets, each with its caller's credential and at the right
    /// service.
    fn is_as_expected(&self, seen: &[RecordedRequest], expected: &[(String, DemoCaller)]) -> bool {
        seen.len() == expected.len()
            && seen.iter().zip(expected).all(|(seen, (target, caller))| {
                let credentials = self.credentials(*caller);
                let shown = match seen.signature() {
                    Some(signature) => Some(signature.access),
                    None => seen.headers.get(X_AUTH_TOKEN).and_then(|token| token.to_str().ok()),
                };
                let service = if target.starts_with("/v1/") { Service::AppStream } else { Service::Workspace };
                seen.service == service
                    && seen.target == *target
                    && shown.is_some_and(|shown| credentials.iter().any(|credential| credential.name() == shown))
            })
    }

    fn credentials(&self, caller: DemoCaller) -> Vec<DemoCredential<'_>> {
        let [first, second, new] = self.callers.each_ref().map(|token| DemoCredential::Token(token));
        let [known, unknown] = self.keys.each_ref().map(DemoCredential::Key);
        match caller {
            DemoCaller::First => vec![first],
            DemoCaller::Second => vec![second],
            DemoCaller::Both => vec![first, second],
            DemoCaller::New => vec![new],
            DemoCaller::Invalid => vec![DemoCredential::Token("not-a-token")],
            DemoCaller::Signer => vec![known],
            DemoCaller::UnknownSigner => vec![unknown],
        }
    }

    async fn send(&self, step: &Step) -> Result<Vec<Reply>, BoxError> {
        let target = format!("{}?{}", step.path.replace("PROJECT", PROJECT), step.query);
        self.send_all(step.caller, vec![target; step.at_once]).await
    }

    /// Sends requests at once, by the callers in turn.
    async fn send_all(&self, caller: DemoCaller, targets: Vec<String>) -> Result<Vec<Reply>, BoxError> {
        let mut requests = JoinSet::new();
        for (target, credential) in targets.into_iter().zip(self.credentials(caller).into_iter().cycle()) {
            let mut request = Request::get(format!("{}{target}", self.gateway)).body(Empty::new())?;
            credential.add_to(&mut request)?;
            let response = self.client.request(request);
            requests.spawn(async move {
                let (head, body) = response.await?.into_parts();
                Ok::<_, BoxError>(reply(&Response::from_parts(head, body.collect().await?.to_bytes())))
            });
        }
        requests.join_all().await.into_iter().collect()
    }
}

#[derive(Clone, Copy)]
enum DemoCredential<'a> {
    Token(&'a str),
    Key(&'a IssuedKey),
}

impl DemoCredential<'_> {
    /// The part of the credential that upstream can compare: the token or the id of the key.
    fn name(&self) -> &str {
        match self {
            Self::Token(token) => token,
            Self::Key(key) => &key.id,
        }
    }

    fn add_to(self, request: &mut Request<Empty<Bytes>>) -> Result<(), BoxError> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let headers = request.headers_mut();
        match self {
            Self::Token(token) => drop(headers.insert(X_AUTH_TOKEN, HeaderValue::from_str(token)?)),
            Self::Key(key) => {
                let host = uri.authority().map_or("", Authority::as_str);
                headers.insert(HOST, HeaderValue::from_str(host)?);
                let key = signing::AccessKey::new(key.id.clone(), key.secret.as_bytes(), None, Projects::Any);
                key.sign(&method, (&uri).into(), headers, [], &Payload::of(b""), Clock::System.date())?;
            }
        }
        Ok(())
    }
}

fn reply(response: &Response<Bytes>) -> Reply {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let status = header("cache-status");
    let from = if status.contains("detail=revalidating") {
        "memory (stale, refreshing)"
    } else if status.contains("detail=backoff") {
        "memory (stale, backing off)"
    } else if status.contains("detail=stale-if-slow") {
        "memory (stale, upstream is slow)"
    } else if status.contains("fwd=stale") && response.headers().get("age").is_some_and(|age| age != "0") {
        "memory (stale, upstream failed)"
    } else if status.contains("; hit") {
        "memory"
    } else if status.contains("; collapsed") {
        "coalesced"
    } else if status.is_empty() {
        "refused by the gateway"
    } else {
        "upstream"
    };
    let body = serde_json::from_slice::<serde_json::Value>(response.body()).unwrap_or_default();
    let products = body["products"].as_array().map_or(0, Vec::len);
    Reply { status: response.status(), from: from.to_owned(), products }
}

/// A row of the table. Most rows have at most 120 columns.
fn row(query: &str, note: &str, status: &str, latency: &str, calls: &str, from: &str) -> String {
    format!("  {query:<33} {note:<28} {status:>3} {latency:>9} {calls:>14}  {from}")
}

/// The source of a response, or for several responses the number from each source.
fn summary(replies: &[Reply]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for reply in replies {
        match counts.iter_mut().find(|(from, _)| *from == reply.from) {
            Some((_, count)) => *count += 1,
            None => counts.push((&reply.from, 1)),
        }
    }
    counts.sort_unstable();
    match counts.as_slice() {
        [(from, 1)] => (*from).to_owned(),
        counts => counts.iter().map(|(from, count)| format!("{count} {from}")).collect::<Vec<_>>().join(", "),
    }
}

fn print_instructions(server: &Server, setup: &DemoSetup) -> io::Result<()> {
    let (proxy, metrics, admin) = (server.proxy_address(), server.metrics_address(), server.admin_address());
    // Short, to be easy to paste. Real tokens have thousands of characters.
    let token = setup.simulator.token_of_length(PROJECT, 32);
    let IssuedKey { id, secret, .. } = &setup.keys[0];
    writeln!(
        io::stdout(),
        "
Status page: http://{admin}/

The gateway is still running. Try these commands. The simulated services answer the three product lists, and echo requests
for other paths. The sharer list is fresh for 1.5 s, the others for 5 minutes.

  curl -i -H 'X-Auth-Token: {token}' 'http://{proxy}/v2/{PROJECT}/products?limit=2'
  curl -i -H 'X-Auth-Token: {token}' 'http://{proxy}/v2/{PROJECT}/products?offset=0&limit=2'
  curl -i -H 'X-Auth-Token: wrong' 'http://{proxy}/v2/{PROJECT}/products?limit=2'
  curl -s http://{metrics}/metrics | grep ^workspace_gateway_requests_total
  curl --data-urlencode 'url=/v2/{PROJECT}/products?limit=2' \\
       --data-urlencode 'header=X-Auth-Token: {token}' http://{admin}/explain
  curl -X POST 'http://{admin}/cache/purge?operation=ListProducts'
  curl -X PUT -d bypass http://{admin}/mode     # switch back: -d cache

For an SDK: endpoint http://{proxy}, project {PROJECT},
access key {id}, secret {secret} (both exist only in this demo).

Press Ctrl-C to stop."
    )
}
