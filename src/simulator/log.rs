//! What the simulator has been asked, and waking those who wait for it to be asked.

use std::collections::VecDeque;
use std::fmt;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method};
use tokio::sync::watch;

use crate::catalogue::Service;
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::{Authorization, X_SECURITY_TOKEN};
use crate::sync::Mutex;

/// Each holds a token of some kilobytes, and `demo` may run for days.
const REMEMBERED: usize = 10_000;

const SECRETS: [HeaderName; 3] = [X_AUTH_TOKEN, AUTHORIZATION, X_SECURITY_TOKEN];

/// A request as it arrived.
#[derive(Clone)]
pub struct Seen {
    /// The service it came to.
    pub service: Service,
    /// Its method.
    pub method: Method,
    /// Its path and query, as received.
    pub target: String,
    /// Its headers; `Debug` leaves the credentials out.
    pub headers: HeaderMap,
    /// Whether it had a body, or at least announced one.
    pub has_body: bool,
}

impl Seen {
    /// The signature that was presented, good or not, with the id of its key and the headers it covers.
    pub fn signature(&self) -> Option<Authorization<'_>> {
        self.headers.get(AUTHORIZATION).and_then(Authorization::read)
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut headers = self.headers.clone();
        for (name, value) in &mut headers {
            // `HeaderValue` prints itself as `Sensitive` then.
            value.set_sensitive(SECRETS.contains(name));
        }
        f.debug_struct("Seen")
            .field("service", &self.service)
            .field("method", &self.method)
            .field("target", &self.target)
            .field("headers", &headers)
            .field("access_key", &self.signature().map(|signature| signature.access))
            .field("has_body", &self.has_body)
            .finish()
    }
}

/// Requests in order of arrival.
#[derive(Default)]
pub(super) struct RequestLog {
    seen: Mutex<VecDeque<Seen>>,
    /// Changed under the lock of `seen`, so that neither is ahead of the other.
    count: watch::Sender<usize>,
}

impl RequestLog {
    pub(super) fn record(&self, request: Seen) {
        let mut seen = self.seen.lock();
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(request);
        self.count.send_modify(|count| *count += 1);
    }

    pub(super) fn clear(&self) {
        let mut seen = self.seen.lock();
        seen.clear();
        self.count.send_replace(0);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().iter().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub(super) async fn arrived(&self, n: usize) {
        // It fails only when the sender is gone, and the sender is borrowed here.
        let _ = self.count.subscribe().wait_for(|&count| count >= n).await;
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request() -> Seen {
        let mut headers = HeaderMap::new();
        headers.insert(X_AUTH_TOKEN, HeaderValue::from_static("hush-token"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("hush-signature"));
        headers.insert("accept", HeaderValue::from_static("text/plain"));
        let target = "/v1/p/product?a=1".to_owned();
        Seen { service: Service::AppStream, method: Method::GET, target, headers, has_body: false }
    }

    #[test]
    fn debug_shows_everything_but_credentials() {
        let shown = format!("{:?}", request());
        assert!(shown.contains("text/plain") && shown.contains("/v1/p/product?a=1"), "{shown}");
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn the_oldest_are_forgotten_but_counted() {
        let log = RequestLog::default();
        for _ in 0..=REMEMBERED {
            log.record(request());
        }
        assert_eq!((log.seen().len(), log.count()), (REMEMBERED, REMEMBERED + 1));
        log.clear();
        assert_eq!((log.seen().len(), log.count()), (0, 0));
    }
}
