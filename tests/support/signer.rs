//! A client that signs requests with an access key, like the SDKs.

use std::time::SystemTime;

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tokio::task::JoinHandle;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::signing::{self, Payload, Projects};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use super::{Http, PROJECT, Reply, World};

/// The `[[access_key]]` entry of an access key in a configuration file, with more settings.
pub fn entry(key: &IssuedKey, more: &str) -> String {
    let token = key.security_token.as_ref().map(|token| format!("security_token = {token:?}\n")).unwrap_or_default();
    format!("[[access_key]]\nid = {:?}\nsecret = {:?}\n{token}{more}\n", key.id, key.secret)
}

/// A request that is signed, and then changed or sent.
#[derive(Clone)]
pub struct Signed {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Signed {
    pub fn get(world: &World, key: &IssuedKey, path: &str) -> Self {
        Self::new(world, key, Method::GET, path, "")
    }

    /// A request that is signed at the world's current time.
    pub fn new(world: &World, key: &IssuedKey, method: Method, path: &str, body: &str) -> Self {
        let url = world.url(path);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let request = Self { method, url, headers, body: body.into() };
        let payload = Payload::of(body.as_bytes());
        request.sign(key, &["content-type"], &payload, date(world))
    }

    /// Signs the request. The signature covers `Host` and these headers.
    pub fn sign(mut self, key: &IssuedKey, covered: &[&str], payload: &Payload, date: SystemTime) -> Self {
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

    /// Sets a header after signing.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    /// Sends it and does not wait for the response.
    pub fn begin(&self, world: &World) -> JoinHandle<Reply> {
        let (this, http) = (self.clone(), world.http.clone());
        tokio::spawn(async move { this.send_with(&http).await })
    }

    pub async fn send(&self, world: &World) -> Reply {
        self.send_with(&world.http).await
    }

    pub async fn send_with(&self, http: &Http) -> Reply {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let headers: Vec<_> = headers.collect();
        http.send(self.method.clone(), &self.url, &headers, self.body.clone()).await
    }
}

pub fn date(world: &World) -> SystemTime {
    Clock::Manual(world.clock.clone()).date()
}

/// Creates access keys and a gateway whose settings are made from them.
pub async fn world_with_keys<const N: usize>(
    create: impl FnOnce(&Simulator) -> [IssuedKey; N],
    settings: impl FnOnce(&[IssuedKey; N]) -> String,
) -> (World, [IssuedKey; N]) {
    let simulator = Simulator::start().await.unwrap();
    let keys = create(&simulator);
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    let settings = settings(&keys);
    (World::with_upstreams(simulator, &workspace, &appstream, &settings).await, keys)
}

/// A gateway with one access key.
pub async fn world_with_key() -> (World, IssuedKey) {
    let (world, [key]) = world_with_keys(|simulator| [simulator.access_key(PROJECT)], |[key]| entry(key, "")).await;
    (world, key)
}

/// Polls all futures concurrently, in this task.
pub async fn join_all<F: Future + Send>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut pending {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if pending.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}
