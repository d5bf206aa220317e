//! What the gateway does with upstream's limits: it learns them from responses, reports changes, and tells clients when
//! to retry. The ledger itself is [`crate::upstream::quota`].

use std::time::Duration;

use http::header::{Entry, RETRY_AFTER};
use http::{HeaderValue, Response};

use super::fetcher::{Fetcher, seconds};
use super::hint::Hint;
use super::observer::Observer;
use crate::cache::backoffs;
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::upstream::gate::Permit;
use crate::upstream::quota::Lesson;

/// Learns from what a response says of limits. Of its body only the beginning of a 429's counts. A changed limit may
/// release lists and relayed requests.
pub(super) fn learn<B: AsRef<[u8]>>(
    fetcher: &Fetcher,
    permit: &Permit,
    response: &Response<B>,
    catalogue: &Catalogue,
    observer: &Observer,
    clock: &Clock,
) {
    let retry_after = backoffs::unbounded_retry_after(response.headers(), clock.date());
    let (status, headers, body) = (response.status(), response.headers(), response.body().as_ref());
    let Lesson { changes, refused_by, news } = permit.learn((status, headers, body), retry_after);
    let (service, operation) = (permit.service(), permit.operation());
    changes.iter().for_each(|change| observer.limit_changed(service, operation, change));
    if !changes.is_empty() {
        fetcher.limits_changed();
    }
    if let Some(policy) = refused_by {
        observer.metrics.quota_refused(policy, "upstream");
    }
    news.into_iter().for_each(|news| fetcher.hints.tell(|| Hint::limit(service, news, catalogue)));
}

/// How long upstream asks to wait, if it is longer than nothing.
pub(super) fn retry_after<B>(response: &Response<B>, clock: &Clock) -> Option<Duration> {
    backoffs::unbounded_retry_after(response.headers(), clock.date()).filter(|span| !span.is_zero())
}

/// Adds to a 429 without `Retry-After` when the limit allows the next call.
pub(super) fn add_retry_after<B>(response: &mut Response<B>, wait: Option<Duration>) {
    if let (Some(wait), Entry::Vacant(field)) = (wait, response.headers_mut().entry(RETRY_AFTER)) {
        field.insert(HeaderValue::from(seconds(wait)));
    }
}
