//! The log of received requests, and that of ended ones. One can wait until a log has a number of them.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tokio::sync::watch;

use crate::catalogue::Service;
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::{Authorization, X_SECURITY_TOKEN};
use crate::sync::Mutex;

/// Bounded, because each request has a token of some kilobytes, and `demo` may run for days.
const MAX_REQUESTS: usize = 10_000;

const SECRET_HEADERS: [HeaderName; 3] = [X_AUTH_TOKEN, AUTHORIZATION, X_SECURITY_TOKEN];

/// A request as it was received.
#[derive(Clone)]
pub struct RecordedRequest {
    pub service: Service,
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `Debug` hides the credentials in it.
    pub headers: HeaderMap,
    /// Whether it had a body, or announced one.
    pub has_body: bool,
}

impl RecordedRequest {
    /// The signature, valid or not.
    pub fn signature(&self) -> Option<Authorization<'_>> {
        self.headers.get(AUTHORIZATION).and_then(Authorization::read)
    }
}

impl fmt::Debug for RecordedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut headers = self.headers.clone();
        for (name, value) in &mut headers {
            // `HeaderValue` prints sensitive values as `Sensitive`.
            value.set_sensitive(SECRET_HEADERS.contains(name));
        }
        f.debug_struct("RecordedRequest")
            .field("service", &self.service)
            .field("method", &self.method)
            .field("target", &self.target)
            .field("headers", &headers)
            .field("access_key", &self.signature().map(|signature| signature.access))
            .field("has_body", &self.has_body)
            .finish()
    }
}

/// A request that has a response, or will get none.
#[derive(Clone, Debug)]
pub struct EndedRequest {
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// `None` if the connection was closed without a response, by either side.
    pub status: Option<StatusCode>,
    /// From the head of the request to that of the response.
    pub duration: Duration,
}

pub(super) struct RequestLog<T> {
    requests: Mutex<VecDeque<T>>,
    /// Changed under the lock of `requests`, so that both agree.
    count: watch::Sender<usize>,
}

impl<T> Default for RequestLog<T> {
    fn default() -> Self {
        Self { requests: Mutex::default(), count: watch::Sender::default() }
    }
}

impl<T: Clone> RequestLog<T> {
    pub(super) fn record(&self, request: T) {
        let mut requests = self.requests.lock();
        if requests.len() == MAX_REQUESTS {
            requests.pop_front();
        }
        requests.push_back(request);
        self.count.send_modify(|count| *count += 1);
    }

    pub(super) fn take(&self) -> Vec<T> {
        let mut requests = self.requests.lock();
        self.count.send_replace(0);
        requests.drain(..).collect()
    }

    pub(super) fn requests(&self) -> Vec<T> {
        self.requests.lock().iter().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub(super) async fn wait_for_requests(&self, n: usize) {
        // It fails only if the sender is dropped, and `self` has the sender.
        let _ = self.count.subscribe().wait_for(|&count| count >= n).await;
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request() -> RecordedRequest {
        let mut headers = HeaderMap::new();
        headers.insert(X_AUTH_TOKEN, HeaderValue::from_static("hush-token"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("hush-signature"));
        headers.insert("accept", HeaderValue::from_static("text/plain"));
        let target = "/v1/p/product?a=1".to_owned();
        RecordedRequest { service: Service::AppStream, method: Method::GET, target, headers, has_body: false }
    }

    #[test]
    fn debug_hides_credentials() {
        let shown = format!("{:?}", request());
        assert!(shown.contains("text/plain") && shown.contains("/v1/p/product?a=1"), "{shown}");
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn the_oldest_requests_are_removed_but_still_counted() {
        let log = RequestLog::default();
        for _ in 0..=MAX_REQUESTS {
            log.record(request());
        }
        assert_eq!((log.requests().len(), log.count()), (MAX_REQUESTS, MAX_REQUESTS + 1));
        assert_eq!(log.take().len(), MAX_REQUESTS);
        assert_eq!((log.requests().len(), log.count()), (0, 0));
    }
}
