//! A client that signs, as the SDKs do.

use std::time::SystemTime;

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use workspace_gateway::clock::Clock;
use workspace_gateway::signing::{self, Payload, Projects};
use workspace_gateway::simulator::AccessKey;

use super::{Reply, World};

/// The entry of a configuration file that makes an access key known to a gateway.
pub fn entry(key: &AccessKey, more: &str) -> String {
    let token = key.security_token.as_ref().map(|token| format!("security_token = {token:?}\n")).unwrap_or_default();
    format!("[[access_key]]\nid = {:?}\nsecret = {:?}\n{token}{more}\n", key.id, key.secret)
}

/// A request to be signed, and changed or sent after that.
#[derive(Clone)]
pub struct Signed {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Signed {
    /// Signs a GET of a path on a world's gateway, now.
    pub fn get(world: &World, key: &AccessKey, path: &str) -> Self {
        Self::new(world, key, Method::GET, path, "")
    }

    /// Signs any request to a world's gateway, now.
    pub fn new(world: &World, key: &AccessKey, method: Method, path: &str, body: &str) -> Self {
        let url = world.url(path);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let request = Self { method, url, headers, body: body.into() };
        let payload = Payload::of(body.as_bytes());
        request.sign(key, &["content-type"], &payload, date(world))
    }

    /// Signs it, `Host` and these headers included.
    pub fn sign(mut self, key: &AccessKey, covered: &[&str], payload: &Payload, date: SystemTime) -> Self {
        let uri: Uri = self.url.parse().unwrap();
        if !self.headers.contains_key(HOST) {
            self.headers.insert(HOST, HeaderValue::from_str(uri.authority().unwrap().as_str()).unwrap());
        }
        let token = key.security_token.as_ref().map(|token| HeaderValue::from_str(token).unwrap());
        let key = signing::AccessKey::new(key.id.clone(), key.secret.as_bytes(), token, Projects::Any);
        let covered = covered.iter().copied();
        key.sign(&self.method, (&uri).into(), &mut self.headers, covered, payload, date).unwrap();
        self
    }

    /// The same with another header than was signed, or one more.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    /// Sends it.
    pub async fn send(&self, world: &World) -> Reply {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let headers: Vec<_> = headers.collect();
        world.http.send(self.method.clone(), &self.url, &headers, self.body.clone()).await
    }
}

/// The date in a world.
pub fn date(world: &World) -> SystemTime {
    Clock::Manual(world.clock.clone()).date()
}
