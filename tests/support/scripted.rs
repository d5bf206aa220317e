//! A gateway whose upstream the test plays, for tests on a paused clock. No test belongs here.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;

use super::{Call, Reply, Scripted, config, get_in_process, get_in_process_with, within};

/// A request whose response proves its caller.
const PROOF: &str = "/v2/p/products?limit=1";

pub const EMPTY: &str = r#"{"products":[]}"#;

/// A gateway whose calls wait for the test. `cache.stale_if_slow` is 1 s.
pub struct Bench {
    pub gateway: Arc<Gateway>,
    pub calls: UnboundedReceiver<Call>,
}

impl Bench {
    /// With more settings, and after a proof of each of these callers.
    pub async fn with_granted(text: &str, tokens: &[&'static str]) -> Self {
        let (upstream, calls) = Scripted::new();
        let gateway = Gateway::with_upstream(upstream, &settings(text), Clock::System, Random::System).unwrap();
        let mut bench = Self { gateway, calls };
        for token in tokens {
            bench.complete_call(token, PROOF).await;
        }
        bench
    }

    pub fn begin(&self, token: &'static str, path: &'static str) -> JoinHandle<Reply> {
        let gateway = Arc::clone(&self.gateway);
        tokio::spawn(async move { get_in_process(&gateway, token, path).await })
    }

    pub async fn next_call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// Panics unless the next call is this caller's.
    pub async fn next_call_of(&mut self, token: &str) -> Call {
        let call = self.next_call().await;
        assert_eq!(call.token, token);
        call
    }

    /// A caller gets a list from upstream.
    pub async fn complete_call(&mut self, token: &'static str, path: &'static str) {
        let gateway = Arc::clone(&self.gateway);
        let no_cache = &[("cache-control", "no-cache")];
        let pending = tokio::spawn(async move { get_in_process_with(&gateway, token, path, no_cache).await });
        self.next_call_of(token).await.answer(StatusCode::OK, EMPTY);
        assert_eq!(within(pending).await.unwrap().status(), StatusCode::OK);
    }

    /// On a paused clock, all tasks that can run do so before this returns.
    pub async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    pub async fn assert_no_call(&mut self) {
        self.settle().await;
        assert!(self.calls.try_recv().is_err(), "an additional call");
    }
}

/// The settings of a [`Bench`], with more of them.
pub fn settings(text: &str) -> Config {
    let text = format!("[cache]\nstale_if_slow = \"1s\"\nttl_jitter = \"0%\"\n{text}");
    config("http://127.0.0.1:1", "http://127.0.0.1:1", &text)
}
