//! `demo`: both upstream services simulated, the gateway before them, a short scripted load, and a
//! table of what came of it.

mod scenes;

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
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::config::{Config, Mode, Override};
use crate::request::caller::X_AUTH_TOKEN;
use crate::server::Server;
use crate::signing::{self, Payload, Projects};
use crate::simulator::{IssuedKey, Seen, Simulator};
use crate::stream::BoxError;
use scenes::{SETTINGS, Scene, Weather, Who};

const PROJECT: &str = "00000000000000000000000000000001";
const LATENCY: Duration = Duration::from_millis(150);

/// How long a call in the background may take to arrive. Reaching it is a failure.
const HANG: Duration = Duration::from_secs(5);

pub(super) fn run(once: bool, mode: Mode) -> ExitCode {
    block_on(async {
        match play(once, mode).await {
            Ok(code) => code,
            Err(error) => failure(1, &format!("the demo failed: {error}")),
        }
    })
}

async fn play(once: bool, mode: Mode) -> Result<ExitCode, BoxError> {
    let mut signals = StopSignals::new()?;
    let simulator = Simulator::start().await?;
    simulator.delay(LATENCY);
    let keys = [(); 2].map(|()| simulator.access_key(PROJECT));
    let server = Server::start(&config(&simulator, mode, &keys[0])?, Clock::System).await?;
    let stage = DemoSetup {
        client: Client::builder(TokioExecutor::new()).build_http(),
        gateway: format!("http://{}", server.proxy_address()),
        callers: [(); 3].map(|()| simulator.token(PROJECT)),
        keys,
        simulator,
    };

    writeln!(
        io::stdout(),
        "Two simulated services that take {LATENCY:?} to answer, and a gateway before them. The sharer list is fresh for 1.5 s,\n\
         and stale for another second without waiting.\n"
    )?;
    let as_expected = tokio::select! {
        performed = stage.perform() => performed?,
        () = signals.received() => return Ok(failure(1, &"stopped before the end")),
    };
    if once {
        server.stop().await;
        return Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }

    invite(&server, &stage)?;
    signals.received().await;
    server.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The gateway as `serve` would run it, on ports the system chooses.
fn config(simulator: &Simulator, mode: Mode, key: &IssuedKey) -> Result<Config, BoxError> {
    let given = |path, value: &str| Override { path, value: value.to_owned(), origin: "demo".to_owned() };
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

/// What came of one request.
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
    /// The first is known to the gateway.
    keys: [IssuedKey; 2],
}

impl DemoSetup {
    /// Plays all scenes and prints the table. Says whether upstream saw what it should have seen.
    async fn perform(&self) -> Result<bool, BoxError> {
        let mut out = io::stdout();
        let mut all_expected = true;
        let mut expected: Vec<(String, Who)> = Vec::new();
        let mut path = "";
        writeln!(out, "{}", row("query", "", "", "latency", "upstream calls", "answered from"))?;
        for scene in scenes::all() {
            self.set(scene.weather);
            tokio::time::sleep(Duration::from_millis(scene.later)).await;
            if scene.path != path {
                path = scene.path;
                writeln!(out, "GET {path}")?;
            }
            let begun = Clock::System.timer_now();
            let replies = self.ask(&scene).await?;
            let took = Clock::System.timer_now().saturating_duration_since(begun);
            if let Some(query) = scene.asks {
                let target = format!("{}?{query}", scene.path.replace("PROJECT", PROJECT));
                expected.push((target, scene.who));
            }
            let honest = replies.iter().all(|reply| {
                // Whoever is answered well is shown products, and whoever upstream refuses is not.
                let answered_well = reply.status == StatusCode::OK;
                reply.status == scene.expected_status && answered_well == (reply.products > 0)
            });
            // What is asked in the background may still be on its way.
            let _ = tokio::time::timeout(HANG, self.simulator.arrived(expected.len())).await;
            let seen = self.simulator.requests_seen();
            let as_expected = honest && self.saw(&seen, &expected);
            let calls = seen.len();
            let status = scene.expected_status.as_u16().to_string();
            let latency = format!("{:.1} ms", took.as_secs_f64() * 1e3);
            let row = row(scene.query, scene.note, &status, &latency, &calls.to_string(), &summary(&replies));
            writeln!(out, "{row}{}", if as_expected { "" } else { "  ← unexpected" })?;
            all_expected &= as_expected;
        }
        let asked: usize = scenes::all().iter().map(|scene| scene.at_once).sum();
        let (calls, expected) = (self.simulator.request_count(), expected.len());
        writeln!(out, "\n{asked} requests, {calls} upstream calls; {expected} were expected.")?;
        Ok(all_expected)
    }

    fn set(&self, weather: Weather) {
        match weather {
            Weather::Same => {}
            Weather::Fine => {
                self.simulator.fail_with(None);
                self.simulator.throttle(None);
                self.simulator.remove_headers();
                self.simulator.delay(LATENCY);
            }
            Weather::Down => self.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE)),
            Weather::Throttled(seconds) => {
                self.simulator.throttle(Some(0));
                self.simulator.add_header(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Weather::Slow(latency) => self.simulator.delay(latency),
        }
    }

    /// Whether upstream saw just these targets, each with its caller's credential and at the service it
    /// belongs to.
    fn saw(&self, seen: &[Seen], expected: &[(String, Who)]) -> bool {
        seen.len() == expected.len()
            && seen.iter().zip(expected).all(|(seen, (target, who))| {
                let credentials = self.credentials(*who);
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

    fn credentials(&self, who: Who) -> Vec<DemoCredential<'_>> {
        let [first, second, newcomer] = self.callers.each_ref().map(|token| DemoCredential::Token(token));
        let [known, unknown] = self.keys.each_ref().map(DemoCredential::Key);
        match who {
            Who::First => vec![first],
            Who::Second => vec![second],
            Who::Both => vec![first, second],
            Who::Newcomer => vec![newcomer],
            Who::Stranger => vec![DemoCredential::Token("not-a-token")],
            Who::Signer => vec![known],
            Who::UnknownSigner => vec![unknown],
        }
    }

    async fn ask(&self, scene: &Scene) -> Result<Vec<Reply>, BoxError> {
        let mut asking = JoinSet::new();
        for credential in self.credentials(scene.who).into_iter().cycle().take(scene.at_once) {
            let target = format!("{}?{}", scene.path.replace("PROJECT", PROJECT), scene.query);
            let mut request = Request::get(format!("{}{target}", self.gateway)).body(Empty::new())?;
            credential.present_in(&mut request)?;
            let answering = self.client.request(request);
            asking.spawn(async move {
                let (head, body) = answering.await?.into_parts();
                Ok::<_, BoxError>(reply(&Response::from_parts(head, body.collect().await?.to_bytes())))
            });
        }
        asking.join_all().await.into_iter().collect()
    }
}

/// What a caller presents.
#[derive(Clone, Copy)]
enum DemoCredential<'a> {
    Token(&'a str),
    Key(&'a IssuedKey),
}

impl DemoCredential<'_> {
    /// What upstream sees of it.
    fn name(&self) -> &str {
        match self {
            Self::Token(token) => token,
            Self::Key(key) => &key.id,
        }
    }

    fn present_in(self, request: &mut Request<Empty<Bytes>>) -> Result<(), BoxError> {
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
    let said = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let status = said("cache-status");
    let from = if status.contains("detail=revalidating") {
        "memory, stale: asked for again"
    } else if status.contains("detail=backoff") {
        "memory, stale: has failed just now"
    } else if status.contains("detail=stale-if-slow") {
        "memory, stale: upstream is slow"
    } else if status.contains("fwd=stale") && response.headers().get("age").is_some_and(|age| age != "0") {
        "memory, stale: upstream has failed"
    } else if status.contains("; hit") {
        "memory"
    } else if status.contains("; collapsed") {
        "coalesced"
    } else if status.is_empty() {
        "nobody: refused here"
    } else {
        "upstream"
    };
    let body = serde_json::from_slice::<serde_json::Value>(response.body()).unwrap_or_default();
    let products = body["products"].as_array().map_or(0, Vec::len);
    Reply { status: response.status(), from: from.to_owned(), products }
}

/// A row of the table, hardly ever more than 120 columns wide.
fn row(query: &str, note: &str, status: &str, latency: &str, calls: &str, from: &str) -> String {
    format!("  {query:<33} {note:<28} {status:>3} {latency:>9} {calls:>14}  {from}")
}

/// "upstream", or for many at once how many came from where.
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

fn invite(server: &Server, stage: &DemoSetup) -> io::Result<()> {
    let (proxy, metrics, admin) = (server.proxy_address(), server.metrics_address(), server.admin_address());
    // Short, so that it can be read and pasted; real ones have thousands of characters.
    let token = stage.simulator.token_of_length(PROJECT, 32);
    let IssuedKey { id, secret, .. } = &stage.keys[0];
    writeln!(
        io::stdout(),
        "
Try it (the services answer the three product lists; to any other path they echo what they are sent. The sharer
list is fresh for 1.5 s here, the others for 5 min):

  curl -i -H 'X-Auth-Token: {token}' 'http://{proxy}/v2/{PROJECT}/products?limit=2'
  curl -i -H 'X-Auth-Token: {token}' 'http://{proxy}/v2/{PROJECT}/products?offset=0&limit=2'
  curl -i -H 'X-Auth-Token: wrong' 'http://{proxy}/v2/{PROJECT}/products?limit=2'
  http://{admin}/     # the status page, for a browser
  curl -s http://{metrics}/metrics | grep workspace_gateway_requests_total
  curl -G --data-urlencode 'url=/v2/{PROJECT}/products?limit=2' \\
       --data-urlencode 'header=X-Auth-Token: {token}' http://{admin}/explain
  curl -X POST 'http://{admin}/cache/purge?operation=ListProducts'
  curl -X PUT -d bypass http://{admin}/mode     # and back: -d cache

For an SDK: endpoint http://{proxy}, project {PROJECT},
access key {id}, secret {secret} (both made up for this demo).

Ctrl-C ends it."
    )
}
