//! What responses say of the limits: the text of a refusal, and headers.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::QuotaState;
use crate::catalogue::{Quota, QuotaPolicy};

/// What responses say of a quota. By default, a refusal names the limit, and there are no headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaAnswers {
    pub text: RefusalText,
    pub debug: DebugHeaders,
    /// `RateLimit` and `RateLimit-Policy` on every response (draft-ietf-httpapi-ratelimit-headers-10).
    pub rate_limit: bool,
    /// `Retry-After` on a refusal, in seconds.
    pub retry_after: bool,
}

/// The body of a 429.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefusalText {
    /// It names the policy and the limit.
    #[default]
    Limit,
    /// It says only that there is a limit.
    Plain,
    /// There is no body.
    Nothing,
}

/// When responses have `X-Apig-RateLimit-*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DebugHeaders {
    #[default]
    Never,
    /// If the request has `X-Apig-Mode: debug`.
    IfAsked,
    Always,
}

/// The text of an `APIGW.0308`.
pub(super) fn text(policy: QuotaPolicy, quota: Quota) -> String {
    let (policy, limit, time) = (name(policy), quota.calls, time(quota.window));
    format!("The throttling threshold has been reached: policy {policy} over ratelimit,limit:{limit},time:{time}")
}

pub(super) fn headers(states: &[QuotaState], refused_by: Option<&QuotaState>, asked: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for QuotaState { policy, quota, remaining, answers, .. } in states {
        let is_shown = answers.debug == DebugHeaders::Always || answers.debug == DebugHeaders::IfAsked && asked;
        if is_shown {
            let value = format!("remain:{remaining},limit:{},time:{}", quota.calls, time(quota.window));
            append(&mut headers, debug_header(*policy), value);
        }
    }
    let mut shown = states.iter().filter(|state| state.answers.rate_limit).peekable();
    if shown.peek().is_some() {
        let (mut policies, mut limits) = (Vec::new(), Vec::new());
        for QuotaState { policy, quota, remaining, reset, .. } in shown {
            let policy = name(*policy);
            policies.push(format!("\"{policy}\";q={};w={}", quota.calls, seconds(quota.window)));
            limits.push(format!("\"{policy}\";r={remaining};t={}", seconds(*reset)));
        }
        append(&mut headers, RATE_LIMIT_POLICY, policies.join(", "));
        append(&mut headers, RATE_LIMIT, limits.join(", "));
    }
    if let Some(refused_by) = refused_by.filter(|state| state.answers.retry_after) {
        append(&mut headers, RETRY_AFTER, seconds(refused_by.reset).to_string());
    }
    headers
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

fn debug_header(policy: QuotaPolicy) -> HeaderName {
    HeaderName::from_static(match policy {
        QuotaPolicy::Api => "x-apig-ratelimit-api",
        QuotaPolicy::User => "x-apig-ratelimit-user",
        QuotaPolicy::App => "x-apig-ratelimit-app",
        QuotaPolicy::Ip => "x-apig-ratelimit-ip",
    })
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // All values are visible ASCII.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}

fn name(policy: QuotaPolicy) -> &'static str {
    policy.into()
}

/// A window in the largest unit that divides it: `5 minute`. A part of a second counts as a second.
fn time(window: Duration) -> String {
    let seconds = seconds(window);
    let units = [(24 * 60 * 60, "day"), (60 * 60, "hour"), (60, "minute")];
    let (length, unit) = units.into_iter().find(|(length, _)| seconds.is_multiple_of(*length)).unwrap_or((1, "second"));
    format!("{} {unit}", seconds / length)
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
