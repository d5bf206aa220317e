//! The simulator's quotas: what they count of a request, and their part of the simulator's interface.
//!
//! - An API is an operation, whatever the project and query, or else a method and a path with its ids replaced.
//! - A user is a credential, unless [`Simulator::set_user`] names it. An application is a credential.
//! - All requests come from one address.
//!
//! Quotas are checked after the credential. A request whose credential is rejected counts for its API and the address,
//! until these have reached their limits. It gets its 401 or 403 in any case, even if the record of the quota has it as
//! refused. Injected failures, and requests for paths that the service does not have, do not count.

use std::collections::HashMap;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderName, Method};

use super::Simulator;
use super::behaviour::credential;
use super::quotas::{EnforcedQuota, QuotaCall, QuotaRecord, QuotaVerdict, Quotas};
use crate::catalogue::{QuotaPolicy, Service};
use crate::request::route::Route;

const X_APIG_MODE: HeaderName = HeaderName::from_static("x-apig-mode");

#[derive(Default)]
pub(super) struct Enforcement {
    quotas: Quotas,
    /// The user of a credential, if it is not one of its own.
    users: HashMap<String, String>,
}

impl Enforcement {
    /// Counts a request. `is_known`: its credential was accepted.
    pub(super) fn call(
        &mut self,
        service: Service,
        route: &Route<'_>,
        head: &Parts,
        is_known: bool,
        now: Instant,
    ) -> QuotaVerdict {
        if self.quotas.is_empty() {
            return QuotaVerdict::default();
        }
        let app = credential(&head.headers).filter(|_| is_known);
        let user = app.map(|credential| self.users.get(credential).map_or(credential, String::as_str));
        let api = api_name(route, &head.method, head.uri.path());
        let mut verdict = self.quotas.call(&QuotaCall { service, api: &api, user, app }, now);
        if !is_known {
            verdict.refused_by = None;
        }
        verdict
    }
}

/// Whether a request asks for `X-Apig-RateLimit-*`.
pub(super) fn asks_for_limits(head: &Parts) -> bool {
    head.headers.get(X_APIG_MODE).is_some_and(|mode| mode == "debug")
}

/// `ListProducts`, or `GET /v2/{id}/desktops/{id}`. The segment after the version is an id, and each later one with a
/// digit.
fn api_name(route: &Route<'_>, method: &Method, path: &str) -> String {
    if let Route::Operation(operation, _) = route {
        return operation.name.as_ref().to_owned();
    }
    let segments = path.split('/').enumerate().map(|(index, segment)| {
        let is_id = index == 2 || index > 2 && segment.bytes().any(|byte| byte.is_ascii_digit());
        if is_id { "{id}" } else { segment }
    });
    format!("{method} {}", segments.collect::<Vec<_>>().join("/"))
}

impl Simulator {
    /// Begins or changes the quota of this policy and service. The next requests are counted, and get 429 if the quota
    /// is exceeded. The time is that of the simulator's clock ([`set_clock`](Self::set_clock)).
    ///
    /// # Panics
    /// If the quota accepts no call, or has no window.
    pub fn set_quota(&self, quota: EnforcedQuota) {
        self.shared.state.enforcement.lock().quotas.set(quota);
    }

    /// Ends all quotas and forgets their records.
    pub fn clear_quotas(&self) {
        self.shared.state.enforcement.lock().quotas.clear();
    }

    /// Others use up to this many calls of the quotas of this policy for this service: only what remains. `name` is the
    /// API, the user or the application, which is the id of a credential if it has no other name. It is not used for
    /// `ip`.
    pub fn use_quota(&self, service: Service, policy: QuotaPolicy, name: &str, calls: u32) {
        let mut enforcement = self.shared.state.enforcement.lock();
        enforcement.quotas.use_quota(service, policy, name, calls, self.shared.state.now());
    }

    /// What the quota of this policy and service has accepted and refused since it began.
    pub fn quota_record(&self, service: Option<Service>, policy: QuotaPolicy) -> Option<QuotaRecord> {
        self.shared.state.enforcement.lock().quotas.record(service, policy).cloned()
    }

    /// The next requests with this credential are this user's. Credentials of one user count together.
    pub fn set_user(&self, credential: &str, user: &str) {
        self.shared.state.enforcement.lock().users.insert(credential.to_owned(), user.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_in_a_path_do_not_name_an_api() {
        for (path, expected) in [
            ("/v2/p/desktops", "GET /v2/{id}/desktops"),
            ("/v2/0a1b/desktops/2f-9/tags", "GET /v2/{id}/desktops/{id}/tags"),
            ("/v1/p", "GET /v1/{id}"),
            ("/", "GET /"),
        ] {
            assert_eq!(api_name(&Route::Unknown, &Method::GET, path), expected);
        }
    }
}
