//! An upstream that says what it is told to, when it is told to.
//!
//! Each call waits in the air until it is landed, so calls overlap and their answers come in any
//! order. It decides nothing itself.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, RETRY_AFTER, SET_COOKIE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::oneshot;
use workspace_gateway::catalogue::{Origin, Service};
use workspace_gateway::request::caller::X_AUTH_TOKEN;
use workspace_gateway::request::condition::Validator;
use workspace_gateway::request::key::Key;
use workspace_gateway::stream::{StreamBody, stream};
use workspace_gateway::upstream::client::Errand;
use workspace_gateway::upstream::{Answering, Upstream, UpstreamError};

use super::world::{Besides, CALLERS, CallerId, Failure, KEYS, KeyId, RequestId, SECOND, Said, Version, token};

/// The header that tells a client's request from others. Relayed, it goes along.
pub const X_NUMBER: &str = "x-number";

/// A call that has reached upstream: whose request has brought it about, and what it asks with whose
/// credential.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Begun {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
    /// Whether the request has come straight from a client, by no other gateway.
    pub is_plain: bool,
    /// The list it asks about: whether that is still the one.
    pub asked: Option<Version>,
}

#[derive(Default)]
pub struct Script(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    air: Vec<(RequestId, oneshot::Sender<Said>)>,
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
        let place = inner.air.iter().position(|(call, _)| *call == id).expect("it is in the air");
        inner.air.remove(place).1.send(said).is_ok()
    }

    /// Forgets the calls that nobody listens to any more.
    pub fn forget(&self) {
        self.inner().air.retain(|(_, landing)| !landing.is_closed());
    }
}

impl Upstream for Script {
    fn ask<'a>(&'a self, key: &'a Key, errand: Errand) -> Answering<'a, Bytes> {
        let target = key.uri().unwrap().path_and_query().unwrap().to_string();
        let id = number_of(&errand.request_id);
        // A gateway before this one is named first, this one always.
        let is_plain = !errand.via.to_str().unwrap().contains(',');
        let asked = errand.validator.map(|validator| version(&validator));
        let begun =
            Begun { id, caller: caller(errand.credential.token().unwrap()), key: key_id(&target), is_plain, asked };
        let (landing, landed) = oneshot::channel();
        let mut inner = self.inner();
        inner.begun.push(begun);
        inner.air.push((id, landing));
        drop(inner);
        Box::pin(async move { answer(id, landed.await.expect("every call is landed")) })
    }

    fn relay<'a>(&'a self, _: Service, _: &'a Origin, head: &'a Parts, _: StreamBody) -> Answering<'a, StreamBody> {
        let id = head.headers[X_NUMBER].to_str().unwrap().parse().unwrap();
        let target = head.uri.path_and_query().unwrap().to_string();
        let is_plain = !head.headers.contains_key(VIA);
        let caller = caller(&head.headers[X_AUTH_TOKEN]);
        let begun = Begun { id, caller, key: key_id(&target), is_plain, asked: None };
        let (landing, landed) = oneshot::channel();
        let mut inner = self.inner();
        inner.relayed.push(begun);
        inner.air.push((id, landing));
        drop(inner);
        Box::pin(async move {
            let whole = answer(id, landed.await.expect("every call is landed"))?;
            Ok(whole.map(|body| stream(Full::new(body))))
        })
    }
}

fn answer(id: RequestId, said: Said) -> Result<Response<Bytes>, UpstreamError> {
    let (status, body, tag, besides) = match said {
        Said::Whole { status, body, tag, besides } => (status, body, tag, besides),
        Said::NotModified(tag) => (304, String::new(), tag, Besides::Nothing),
        Said::Failed(Failure::Connect) => return Err(UpstreamError::Connect("upstream".to_owned())),
        Said::Failed(Failure::Timeout) => return Err(UpstreamError::Timeout),
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
        Besides::RetryAfter(Some(ms)) => response.header(RETRY_AFTER, ms / SECOND),
        Besides::RetryAfter(None) => response.header(RETRY_AFTER, "soon"),
    };
    Ok(response.body(Bytes::from(body)).unwrap())
}

/// A request has to look as if it had come by another gateway, or not.
pub fn trail(is_plain: bool) -> HeaderMap {
    let via = HeaderValue::from_static("1.1 workspace-gateway-0000002a");
    if is_plain { HeaderMap::new() } else { HeaderMap::from_iter([(VIA, via)]) }
}

/// The gateway numbers its requests as they come; so do the clients. That is how it is known who leads a
/// call, of which nothing else need tell.
fn number_of(request_id: &str) -> RequestId {
    RequestId::from_str_radix(&request_id[24..], 16).unwrap()
}

fn version(validator: &Validator) -> Version {
    let Validator::EntityTag(tag) = validator else { panic!("nothing here has a date of its own") };
    Version::from_tag(tag.to_str().unwrap()).expect("one of the tags")
}

fn caller(credential: &HeaderValue) -> CallerId {
    (0..CALLERS).find(|&caller| credential == token(caller).as_str()).expect("one of the callers")
}

fn key_id(target: &str) -> KeyId {
    KEYS.iter().position(|(_, known)| *known == target).expect("one of the keys")
}
