//! The upstream of the gateways in the table. Its responses are set directly while a cell is set up and after recovery.
//! In between, the HTTP client of the program calls an upstream over a socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use tokio::sync::watch;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::proxy_config::ProxyConfig;
use workspace_gateway::testing::request::hop::Via;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::StreamBody;
use workspace_gateway::testing::upstream::client::{CallLimits, FetchContext, HttpClient};
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamResponse};

use super::behaviours::{Behaviour, MAX_BODY, Meaning, caller_headers};
use crate::support::HANG;

const FIRST_BYTE: &str = "first-byte";
pub(super) const TIMEOUT: &str = "timeout";

/// The timeout for a slow upstream. All other timeouts are longer.
pub(super) const SLOW: Duration = Duration::from_secs(2);

/// One HTTP client for each timeout, because they are expensive to create.
#[derive(Default)]
pub(super) struct Clients(Vec<(&'static str, Arc<HttpClient>)>);

impl Clients {
    pub(super) fn client(&mut self, behaviour: &Behaviour) -> Arc<HttpClient> {
        // The timeout that is expected to expire.
        let timeout = match behaviour.meaning {
            Meaning::NoResponse(reason @ (FIRST_BYTE | TIMEOUT)) => reason,
            _ => "",
        };
        if let Some((_, client)) = self.0.iter().find(|(reason, _)| *reason == timeout) {
            return Arc::clone(client);
        }
        let timeout_if = |is_slow| if is_slow { SLOW } else { HANG };
        let limits = CallLimits {
            connect: Duration::from_secs(1),
            first_byte: timeout_if(timeout == FIRST_BYTE),
            answer: timeout_if(timeout == TIMEOUT),
            idle: timeout_if(!timeout.is_empty()),
            // No connection serves two cells.
            age: Duration::ZERO,
            max_body: MAX_BODY,
        };
        let client = Arc::new(
            HttpClient::new(None, ProxyConfig::default(), limits, Via::new(1), &Clock::System.into(), |_| {}).unwrap(),
        );
        self.0.push((timeout, Arc::clone(&client)));
        client
    }
}

/// An upstream with a set response. Without one, it calls over HTTP.
pub(super) struct StagedUpstream {
    next_response: Mutex<Option<Response<Bytes>>>,
    client: Arc<HttpClient>,
    calls: watch::Sender<Calls>,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    started: usize,
    ended: usize,
}

impl StagedUpstream {
    pub(super) fn new(client: Arc<HttpClient>) -> Self {
        Self { next_response: Mutex::default(), client, calls: watch::Sender::default() }
    }

    pub(super) fn will_respond(&self, response: Response<Bytes>) {
        *self.next_response.lock().unwrap() = Some(response);
    }

    pub(super) fn will_be_called(&self) {
        *self.next_response.lock().unwrap() = None;
    }

    async fn counted<T>(&self, call: impl Future<Output = T>) -> T {
        self.calls.send_modify(|calls| calls.started += 1);
        let response = call.await;
        self.calls.send_modify(|calls| calls.ended += 1);
        response
    }

    /// Returns when no call is running, including background calls.
    pub(super) async fn wait_until_idle(&self) {
        // Lets background tasks start their calls.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        self.calls.subscribe().wait_for(|calls| calls.started == calls.ended).await.unwrap();
        tokio::task::yield_now().await;
    }

    pub(super) fn started(&self) -> usize {
        self.calls.borrow().started
    }
}

impl Upstream for StagedUpstream {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        memory: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let response = self.next_response.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match response {
                Some(response) => Ok(UpstreamResponse::read(response)),
                None => Upstream::fetch_list(&*self.client, key, context, memory).await,
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
        let response = self.next_response.lock().unwrap().clone();
        Box::pin(self.counted(async move {
            match response {
                Some(response) => {
                    Ok(response.map(|bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync()))
                }
                None => Upstream::relay(&*self.client, service, origin, head, body).await,
            }
        }))
    }
}

/// A response without a socket.
pub(super) fn staged_response(status: u16, origin: &str, tag: Option<&str>, body: &'static str) -> Response<Bytes> {
    let mut response = Response::builder().status(status).header("content-type", "application/json");
    for (name, value) in caller_headers(origin).lines().map(|endpoint| endpoint.split_once(": ").unwrap()) {
        response = response.header(name, value);
    }
    if let Some(tag) = tag {
        response = response.header("etag", tag);
    }
    response.body(Bytes::from_static(body.as_bytes())).unwrap()
}
