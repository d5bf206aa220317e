//! Upstream as the gateways of the table meet it: told what to say while a cell is set up and when it is
//! well again, and in between over a socket, asked by the program's own HTTP client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use tokio::sync::watch;
use workspace_gateway::testing::budget::Account;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::proxy_config::ProxyConfig;
use workspace_gateway::testing::request::hop::Via;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::{CallLimits, FetchContext, HttpClient};
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamResponse};

use super::behaviours::{Behaviour, MAX_BODY, Meaning, personal};
use crate::support::HANG;

/// What is said of an upstream that is too slow.
const FIRST_BYTE: &str = "first-byte";
pub(super) const TIMEOUT: &str = "timeout";

/// How long a slow upstream is waited for. Nothing else is waited for that long by anyone.
pub(super) const SLOW: Duration = Duration::from_secs(2);

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
        let limits = CallLimits {
            connect: Duration::from_secs(1),
            first_byte: slow_if(pace == FIRST_BYTE),
            answer: slow_if(pace == TIMEOUT),
            idle: slow_if(!pace.is_empty()),
            // No connection serves two cells.
            age: Duration::ZERO,
            max_body: MAX_BODY,
        };
        let client = Arc::new(
            HttpClient::new(None, ProxyConfig::default(), limits, Via::new(1), Clock::System, |_| {}).unwrap(),
        );
        self.0.push((pace, Arc::clone(&client)));
        client
    }
}

/// An upstream that says what it is told to, or is asked over HTTP.
pub(super) struct Staged {
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
    pub(super) fn new(client: Arc<HttpClient>) -> Self {
        Self { says: Mutex::default(), client, calls: watch::Sender::default() }
    }

    pub(super) fn will_say(&self, answer: Response<Bytes>) {
        *self.says.lock().unwrap() = Some(answer);
    }

    pub(super) fn will_be_asked(&self) {
        *self.says.lock().unwrap() = None;
    }

    async fn counted<T>(&self, call: impl Future<Output = T>) -> T {
        self.calls.send_modify(|calls| calls.begun += 1);
        let answer = call.await;
        self.calls.send_modify(|calls| calls.ended += 1);
        answer
    }

    /// Returns once nothing is under way, neither in the background.
    pub(super) async fn is_idle(&self) {
        // What has been begun in the background gets a chance to ask.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        self.calls.subscribe().wait_for(|calls| calls.begun == calls.ended).await.unwrap();
        tokio::task::yield_now().await;
    }

    pub(super) fn begun(&self) -> usize {
        self.calls.borrow().begun
    }
}

impl Upstream for Staged {
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        account: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let said = self.says.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match said {
                Some(answer) => Ok(UpstreamResponse::read(answer)),
                None => Upstream::ask(&*self.client, key, context, account).await,
            }
        }))
    }

    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let said = self.says.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match said {
                Some(answer) => Ok(answer.map(|bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync())),
                None => Upstream::relay(&*self.client, service, origin, head, body).await,
            }
        }))
    }
}

/// An answer that is told without a socket.
pub(super) fn told(status: u16, of: &str, tag: Option<&str>, body: &'static str) -> Response<Bytes> {
    let mut answer = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in personal(of).lines().map(|line| line.split_once(": ").unwrap()) {
        answer = answer.header(name, value);
    }
    if let Some(tag) = tag {
        answer = answer.header("etag", tag);
    }
    answer.body(Bytes::from_static(body.as_bytes())).unwrap()
}
