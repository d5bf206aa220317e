//! An upstream that says what it is told to, when it is told to.
//!
//! Each call waits in the air until it is landed, so calls overlap and their answers come in any
//! order. It decides nothing itself, but for what is relayed: that is answered at once by the truth.

use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use http::header::VIA;
use http::request::Parts;
use http::{HeaderValue, Response};
use http_body_util::Full;
use tokio::sync::oneshot;
use workspace_gateway::catalogue::Origin;
use workspace_gateway::request::caller::X_AUTH_TOKEN;
use workspace_gateway::request::key::Key;
use workspace_gateway::stream::{StreamBody, stream};
use workspace_gateway::upstream::client::Errand;
use workspace_gateway::upstream::{Answering, Upstream, UpstreamError};

use super::world::{CALLERS, CallerId, Failure, KEYS, KeyId, RequestId, Said, Truth, token};

/// A call that has reached upstream: whose request leads it, and what it asks with whose credential.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Begun {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
}

pub struct Script(Mutex<Inner>);

struct Inner {
    truth: Truth,
    air: Vec<(RequestId, oneshot::Sender<Said>)>,
    begun: Vec<Begun>,
    relayed: Vec<Begun>,
}

impl Script {
    pub fn new(truth: Truth) -> Self {
        Self(Mutex::new(Inner { truth, air: Vec::new(), begun: Vec::new(), relayed: Vec::new() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What is relayed from now on is answered by this.
    pub fn set_truth(&self, truth: &Truth) {
        self.inner().truth = truth.clone();
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
}

impl Upstream for Script {
    fn ask<'a>(&'a self, key: &'a Key, errand: Errand) -> Answering<'a, Bytes> {
        let begun = Begun {
            id: request_id(&errand.via),
            caller: caller(&errand.token),
            key: key_id(&key.uri().unwrap().path_and_query().unwrap().to_string()),
        };
        let (landing, landed) = oneshot::channel();
        let mut inner = self.inner();
        inner.begun.push(begun);
        inner.air.push((begun.id, landing));
        drop(inner);
        Box::pin(async move {
            match landed.await.expect("every call is landed") {
                Said::Whole { status, body, no_store } => {
                    let mut response =
                        Response::builder().status(status).header("set-cookie", format!("l={}", begun.id));
                    if no_store {
                        response = response.header("cache-control", "no-store");
                    }
                    Ok(response.body(Bytes::from(body)).unwrap())
                }
                Said::Failed(Failure::Connect) => Err(UpstreamError::Connect("upstream".to_owned())),
                Said::Failed(Failure::Timeout) => Err(UpstreamError::Timeout),
                Said::Failed(Failure::TooLarge) => Err(UpstreamError::TooLarge),
            }
        })
    }

    fn relay<'a>(&'a self, _origin: &'a Origin, head: &'a Parts, _body: StreamBody) -> Answering<'a, StreamBody> {
        Box::pin(async move {
            let begun = Begun {
                id: request_id(&head.headers[VIA]),
                caller: caller(&head.headers[X_AUTH_TOKEN]),
                key: key_id(&head.uri.path_and_query().unwrap().to_string()),
            };
            let mut inner = self.inner();
            inner.relayed.push(begun);
            let Said::Whole { status, body, .. } = inner.truth.answer(begun.caller, begun.key) else {
                unreachable!("the truth is whole")
            };
            Ok(Response::builder().status(status).body(stream(Full::new(Bytes::from(body)))).unwrap())
        })
    }
}

/// A client writes the number of its request into `Via`, the one thing besides its credential that goes
/// upstream with its question. That is how a call is known to be led by it.
pub fn via(id: RequestId) -> String {
    format!("1.1 workspace-gateway-{id:08x}")
}

fn request_id(via: &HeaderValue) -> RequestId {
    let number = via.to_str().ok().and_then(|trail| trail.strip_prefix("1.1 workspace-gateway-")?.get(..8));
    RequestId::from_str_radix(number.expect("the client's own part comes first"), 16).unwrap()
}

fn caller(credential: &HeaderValue) -> CallerId {
    (0..CALLERS).find(|&caller| credential == token(caller).as_str()).expect("one of the callers")
}

fn key_id(target: &str) -> KeyId {
    KEYS.iter().position(|(_, known)| *known == target).expect("one of the keys")
}
