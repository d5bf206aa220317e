//! An upstream without sockets, and signed requests that are passed to a gateway directly. So the runtime's clock can be
//! paused: hours pass at once, and all times are exact.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::signing::{AccessKey, Payload, Projects};
use workspace_gateway::testing::stream::{StreamBody, stream};
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

use super::{PROJECT, Reply, handle};

/// The `[[access_key]]` entry of the key that [`send_signed`] uses.
pub const ACCESS_KEY: &str = "[[access_key]]\nid = \"AK\"\nsecret = \"s\"\n";

/// A call for a list that upstream has received.
#[derive(Clone, Debug)]
pub struct ListCall {
    pub at: Instant,
    /// The token, or the id of the access key.
    pub credential: String,
    pub is_signed: bool,
    /// With `PROJECT` in place of the project.
    pub target: String,
    pub is_conditional: bool,
}

/// What an upstream answers to calls for lists.
pub trait Answers: Send + Sync + 'static {
    fn answer(&self, call: ListCall) -> impl Future<Output = Result<Response<Bytes>, UpstreamError>> + Send;

    /// What the next relayed request gets.
    fn answer_relayed(&self) -> impl Future<Output = Response<Bytes>> + Send {
        async { Response::new(Bytes::from_static(b"{}")) }
    }
}

/// An upstream in this process.
pub struct InProcess<A>(pub Arc<A>);

impl<A: Answers> Upstream for InProcess<A> {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let target = key.uri().unwrap().path_and_query().unwrap().as_str().replace(PROJECT, "PROJECT");
        let signed = context.credential.signed().map(|signed| signed.key.id());
        let credential = signed.or_else(|| context.credential.token()?.to_str().ok()).unwrap().to_owned();
        let (is_signed, is_conditional) = (signed.is_some(), context.validator.is_some());
        let call = ListCall { at: Clock::System.now(), credential, is_signed, target, is_conditional };
        Box::pin(async move { self.0.answer(call).await.map(UpstreamResponse::read) })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        Box::pin(async { Ok(self.0.answer_relayed().await.map(|body| stream(Full::new(body)))) })
    }
}

/// Sends a request that is signed with [`ACCESS_KEY`], and maybe has another header.
pub async fn send_signed(gateway: &Arc<Gateway>, method: Method, target: &str, header: Option<(&str, &str)>) -> Reply {
    let key = AccessKey::new("AK".to_owned(), b"s", None, Projects::Any);
    let uri: Uri = format!("http://gateway{}", target.replace("PROJECT", PROJECT)).parse().unwrap();
    let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("gateway"))]);
    key.sign(&method, (&uri).into(), &mut headers, [], &Payload::of(b""), Clock::System.date()).unwrap();
    let request = Request::builder().method(method).uri(uri.path_and_query().unwrap().as_str());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    let request = header.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    handle(gateway, request).await
}
