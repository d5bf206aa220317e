//! An upstream that says what it is told to, when it is told to.
//!
//! Each call waits in the air until it is landed, so calls overlap and their answers come in any
//! order. It decides nothing itself.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, RETRY_AFTER, SET_COOKIE, VARY, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::oneshot;
use workspace_gateway::testing::budget::Account;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::gateway::REQUEST_IDS;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::caller::X_AUTH_TOKEN;
use workspace_gateway::testing::request::condition::Validator;
use workspace_gateway::testing::request::id::RequestIds;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::stream::{StreamBody, stream};
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{CallerRefusal, PendingResponse, Upstream, UpstreamError, UpstreamResponse};

use super::world::{Besides, CALLERS, CallerId, Failure, KEYS, KeyId, RequestId, SECOND, Said, Version, token};

/// The header that tells a client's request from others. Relayed, it goes along.
pub const X_NUMBER: &str = "x-number";

/// Far more requests than a sequence has.
const MOST_REQUESTS: RequestId = 4_096;

/// A call that has reached upstream: whose request has brought it about, and what it asks with whose
/// credential.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Begun {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
    /// Whether the request has come straight from a client, by no other gateway.
    pub is_plain: bool,
    /// Whether it has an unsafe method.
    pub is_unsafe: bool,
    /// The list it asks about: whether that is still the one.
    pub asked: Option<Version>,
}

#[derive(Default)]
pub struct Script(Mutex<Inner>);

/// How a call ends; or the head of a refusal, whose body comes later.
struct Landing {
    said: Said,
    body: Option<oneshot::Receiver<Said>>,
}

/// What a call in the air waits for.
enum Awaited {
    Landing(oneshot::Sender<Landing>),
    Body(oneshot::Sender<Said>),
}

impl Awaited {
    /// Whether nobody listens any more.
    fn is_closed(&self) -> bool {
        match self {
            Self::Landing(landing) => landing.is_closed(),
            Self::Body(body) => body.is_closed(),
        }
    }
}

#[derive(Default)]
struct Inner {
    air: Vec<(RequestId, Awaited)>,
    begun: Vec<Begun>,
    relayed: Vec<Begun>,
}

impl Script {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The calls that have begun since this was asked last, in their order, and what was relayed.
    pub fn news(&self) -> (Vec<Begun>, Vec<Begun>) {
        let mut inner = self.inner();
        (std::mem::take(&mut inner.begun), std::mem::take(&mut inner.relayed))
    }

    /// Lets a call end. Says whether anyone was there to be told.
    pub fn land(&self, id: RequestId, said: Said) -> bool {
        let mut inner = self.inner();
        let Some(place) = inner.air.iter().position(|(call, _)| *call == id) else { return false };
        match inner.air.remove(place).1 {
            Awaited::Landing(landing) => landing.send(Landing { said, body: None }).is_ok(),
            Awaited::Body(body) => body.send(said).is_ok(),
        }
    }

    /// Sends the head of a refusal. The call ends with its body. Says whether anyone was there to be told.
    pub fn land_head(&self, id: RequestId, said: Said) -> bool {
        let mut inner = self.inner();
        let Some((_, awaited)) = inner.air.iter_mut().find(|(call, _)| *call == id) else { return false };
        let (sender, body) = oneshot::channel();
        match std::mem::replace(awaited, Awaited::Body(sender)) {
            Awaited::Landing(landing) => landing.send(Landing { said, body: Some(body) }).is_ok(),
            Awaited::Body(_) => panic!("it has had its head"),
        }
    }

    /// Forgets the calls that nobody listens to any more.
    pub fn forget(&self) {
        self.inner().air.retain(|(_, landing)| !landing.is_closed());
    }
}

impl Upstream for Script {
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let target = key.uri().unwrap().path_and_query().unwrap().to_string();
        let id = number_of(&context.request_id);
        // A gateway before this one is named first, this one always.
        let is_plain = !context.via.to_str().unwrap().contains(',');
        let asked = context.validator.map(|validator| version(&validator));
        let (caller, key, is_unsafe) = (caller(context.credential.token().unwrap()), key_id(&target), false);
        let begun = Begun { id, caller, key, is_plain, is_unsafe, asked };
        let (landing, landed) = oneshot::channel();
        let mut inner = self.inner();
        inner.begun.push(begun);
        inner.air.push((id, Awaited::Landing(landing)));
        drop(inner);
        Box::pin(async move {
            let Landing { said, body } = landed.await.expect("every call is landed");
            match (said, body) {
                (said, Some(body)) => Ok(UpstreamResponse::Refused(in_two_parts(id, said, body))),
                (Said::Failed(Failure::Refused(status)), None) => Ok(UpstreamResponse::Refused(endless(status))),
                (said, None) => answer(id, said).map(UpstreamResponse::read),
            }
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        head: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let id = head.headers[X_NUMBER].to_str().unwrap().parse().unwrap();
        let target = head.uri.path_and_query().unwrap().to_string();
        let is_plain = !head.headers.contains_key(VIA);
        let caller = caller(&head.headers[X_AUTH_TOKEN]);
        let is_unsafe = !head.method.is_safe();
        let begun = Begun { id, caller, key: key_id(&target), is_plain, is_unsafe, asked: None };
        let (landing, landed) = oneshot::channel();
        let mut inner = self.inner();
        inner.relayed.push(begun);
        inner.air.push((id, Awaited::Landing(landing)));
        drop(inner);
        Box::pin(async move {
            let whole = answer(id, landed.await.expect("every call is landed").said)?;
            Ok(whole.map(|body| stream(Full::new(body))))
        })
    }
}

fn answer(id: RequestId, said: Said) -> Result<Response<Bytes>, UpstreamError> {
    let (status, body, tag, besides) = match said {
        Said::Whole { status, body, tag, besides } => (status, body, tag, besides),
        Said::NotModified(tag) => (304, String::new(), tag, Besides::Nothing),
        Said::Failed(Failure::Connect) => return Err(UpstreamError::Connect("upstream".to_owned())),
        Said::Failed(Failure::Unreachable) => return Err(UpstreamError::Unreachable("upstream".to_owned())),
        Said::Failed(Failure::Local) => return Err(UpstreamError::Local("no descriptor".to_owned())),
        Said::Failed(Failure::Timeout) => return Err(UpstreamError::Timeout),
        Said::Failed(Failure::Refused(_)) => unreachable!("what is relayed is streamed"),
        Said::Failed(Failure::TooLarge(status)) => {
            return Err(UpstreamError::TooLarge(StatusCode::from_u16(status).unwrap()));
        }
    };
    let mut response = Response::builder().status(status).header(SET_COOKIE, format!("leader={id}"));
    if let Some(tag) = tag {
        response = response.header(ETAG, tag.to_tag());
    }
    response = match besides {
        Besides::Nothing => response,
        Besides::NoStore => response.header(CACHE_CONTROL, "no-store"),
        Besides::Vary => response.header(VARY, "accept, X-Auth-Token"),
        Besides::RetryAfter(Some(ms)) => response.header(RETRY_AFTER, ms / SECOND),
        Besides::RetryAfter(None) => response.header(RETRY_AFTER, "soon"),
    };
    Ok(response.body(Bytes::from(body)).unwrap())
}

/// A refusal whose body does not end.
fn endless(status: u16) -> CallerRefusal {
    let (head, ()) = Response::builder().status(status).body(()).unwrap().into_parts();
    CallerRefusal { head, body: Box::pin(std::future::ready(None)) }
}

/// A refusal whose body comes later, if it comes.
fn in_two_parts(id: RequestId, said: Said, body: oneshot::Receiver<Said>) -> CallerRefusal {
    let head = match said {
        Said::Failed(Failure::Refused(status)) => endless(status).head,
        said => answer(id, said).expect("a refusal has a head").into_parts().0,
    };
    let body = async move {
        match body.await.expect("every call is landed") {
            Said::Whole { body, .. } => Some(Bytes::from(body)),
            Said::NotModified(_) | Said::Failed(_) => None,
        }
    };
    CallerRefusal { head, body: Box::pin(body) }
}

/// A request has to look as if it had come by another gateway, or not.
pub fn trail(is_plain: bool) -> HeaderMap {
    let via = HeaderValue::from_static("1.1 workspace-gateway-0000002a");
    if is_plain { HeaderMap::new() } else { HeaderMap::from_iter([(VIA, via)]) }
}

/// Ids whose order is known here, which nobody else could tell.
pub fn random() -> Random {
    Random::seeded([0x5e; 32])
}

/// The ids that the gateway gives to requests.
pub fn request_ids() -> RequestIds {
    RequestIds::new(random().key(REQUEST_IDS).unwrap())
}

/// The gateway numbers its requests as they come; so do the clients. That is how it is known who leads a
/// call, of which nothing else need tell.
fn number_of(request_id: &str) -> RequestId {
    static NUMBERS: OnceLock<HashMap<String, RequestId>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let ids = request_ids();
        (0..MOST_REQUESTS).map(|number| (ids.next().as_str().to_owned(), number)).collect()
    });
    numbers[request_id]
}

fn version(validator: &Validator) -> Version {
    let Validator::EntityTag(tag) = validator else { panic!("nothing here has a date of its own") };
    Version::from_tag(tag.to_str().unwrap()).expect("one of the tags")
}

/// Blanks around a token are no part of it, here as everywhere.
fn caller(credential: &HeaderValue) -> CallerId {
    let credential = credential.to_str().unwrap().trim();
    (0..CALLERS).find(|&caller| credential == token(caller)).expect("one of the callers")
}

fn key_id(target: &str) -> KeyId {
    KEYS.iter().position(|(_, known)| *known == target).expect("one of the keys")
}
