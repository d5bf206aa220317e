//! Reads what a response of upstream says of its limits. It is pure: what a limit means for later calls must not be
//! decided here.
//!
//! There are three sources: the text of an `APIGW.0308` refusal, the `X-Apig-RateLimit-…` fields of the API gateway, and
//! `RateLimit-Policy` with `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11). What cannot be read is left out.
//! `Retry-After` is read elsewhere.

use std::time::Duration;

use http::HeaderMap;
use http::header::AGE;
use serde::Deserialize;
use sfv::{BareItem, Item, List, ListEntry, Parameters, Parser};
use strum::VariantArray;

use crate::catalogue::error_code;
use crate::catalogue::{Quota, QuotaPolicy};

/// The most limits that are read from one response.
const MAX_LIMITS: usize = 8;

/// In bytes. A longer body or field is not read at all: if it were cut, a number could lose its last digits.
const MAX_LENGTH: usize = 4096;

/// The error code of a call that exceeds a limit.
const THROTTLED: &str = "APIGW.0308";

/// The fields of the API gateway, and what each counts.
const APIG_FIELDS: [(&str, QuotaPolicy); 5] = [
    ("x-apig-ratelimit-api", QuotaPolicy::Api),
    ("x-apig-ratelimit-user", QuotaPolicy::User),
    ("x-apig-ratelimit-app", QuotaPolicy::App),
    ("x-apig-ratelimit-ip", QuotaPolicy::Ip),
    ("x-apig-ratelimit-api-allenv", QuotaPolicy::Api),
];

/// What a response says of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldLimit {
    /// Whether the text of a refusal names it.
    pub has_refused: bool,
    /// `None` if upstream counts something else, or does not say what it counts.
    pub policy: Option<QuotaPolicy>,
    /// `None` if it is not said, or cannot be a quota, such as 0 calls. The window may have any length.
    pub quota: Option<Quota>,
    /// How many calls are left in the window.
    pub remaining: Option<u32>,
    /// The time in which no more than the remaining calls are accepted, from the response on.
    pub reset: Option<Duration>,
}

/// Everything that a response says of limits, at most [`MAX_LIMITS`]. The body must be empty unless it is that of a 429.
pub fn told_limits(headers: &HeaderMap, body: &[u8]) -> Vec<ToldLimit> {
    let mut limits = in_refusal(body);
    limits.extend(in_apig_fields(headers).take(MAX_LIMITS));
    limits.extend(in_ietf_fields(headers));
    limits.truncate(MAX_LIMITS);
    limits
}

/// The limits in the text of a refusal: `…: policy user over ratelimit,limit:200,time:5 minute`.
fn in_refusal(body: &[u8]) -> Vec<ToldLimit> {
    #[derive(Deserialize)]
    struct Refusal {
        error_code: String,
        error_msg: String,
    }
    if body.is_empty() || body.len() > MAX_LENGTH {
        return Vec::new();
    }
    let refusal = error_code::read_object::<Refusal>(body).filter(|refusal| refusal.error_code == THROTTLED);
    let Some(Refusal { error_msg: text, .. }) = refusal else { return Vec::new() };
    let limit = |text: &str| {
        let (name, numbers) = text.split_once(" over ratelimit")?;
        let limit =
            ToldLimit { has_refused: true, policy: policy(name.trim()), quota: None, remaining: None, reset: None };
        // A refusal says which limit was exceeded, even if its numbers cannot be read.
        Some(read_numbers(limit.policy, numbers).map_or(limit, |read| ToldLimit { has_refused: true, ..read }))
    };
    text.split("policy ").skip(1).filter_map(limit).take(MAX_LIMITS).collect()
}

/// The limits in `X-Apig-RateLimit-…` fields: `remain:9,limit:10,time:10 second`.
fn in_apig_fields(headers: &HeaderMap) -> impl Iterator<Item = ToldLimit> {
    let lines = APIG_FIELDS.into_iter().flat_map(|(field, policy)| {
        headers.get_all(field).into_iter().filter_map(move |line| Some((policy, line.to_str().ok()?)))
    });
    let lines = lines.filter(|(_, line)| line.len() <= MAX_LENGTH);
    lines.filter_map(|(policy, line)| read_numbers(Some(policy), line))
}

/// Reads a text such as `remain:9,limit:10,time:10 second`. `None` if it has neither `limit` nor `remain`.
fn read_numbers(policy: Option<QuotaPolicy>, text: &str) -> Option<ToldLimit> {
    let (mut limit, mut window, mut remaining) = (None, None, None);
    for (name, value) in text.split(',').filter_map(|part| part.split_once(':')) {
        let found = match name.trim() {
            "limit" => &mut limit,
            "time" => &mut window,
            "remain" => &mut remaining,
            _ => continue,
        };
        found.get_or_insert(value.trim());
    }
    limit.or(remaining)?;
    let whole_number = |text: &str| leading_number(text).filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number);
    Some(ToldLimit {
        has_refused: false,
        policy,
        quota: quota(limit.and_then(whole_number), window.and_then(read_window)),
        remaining: remaining.and_then(whole_number),
        reset: None,
    })
}

/// Reads a window such as `5 minute`. Other text may follow.
fn read_window(text: &str) -> Option<Duration> {
    let (number, rest) = leading_number(text)?;
    let rest = rest.trim_start();
    let unit = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
    let seconds = match unit {
        "second" | "seconds" => 1,
        "minute" | "minutes" => 60,
        "hour" | "hours" => 60 * 60,
        "day" | "days" => 24 * 60 * 60,
        _ => return None,
    };
    Some(Duration::from_secs(u64::from(number) * seconds))
}

/// The digits at the beginning, as a number, and the rest.
fn leading_number(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((digits.parse().ok()?, rest))
}

fn quota(calls: Option<u32>, window: Option<Duration>) -> Option<Quota> {
    let quota = Quota { calls: calls?, window: window? };
    (quota.calls > 0 && !quota.window.is_zero()).then_some(quota)
}

/// The policy with this name in refusals and fields.
fn policy(name: &str) -> Option<QuotaPolicy> {
    let name = name.strip_suffix("-allenv").filter(|name| *name == "api").unwrap_or(name);
    QuotaPolicy::VARIANTS.iter().copied().find(|policy| policy.into_str() == name)
}

/// The limits in `RateLimit-Policy: "burst";q=100;w=60` and `RateLimit: "burst";r=50;t=30`, joined by name.
fn in_ietf_fields(headers: &HeaderMap) -> impl Iterator<Item = ToldLimit> {
    // Without a limit if the policy does not count calls.
    let mut named: Vec<(String, Option<ToldLimit>)> = Vec::new();
    for (name, parameters) in items(headers, "ratelimit-policy") {
        let Some(calls) = integer(&parameters, "q") else { continue };
        if named.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let window = integer(&parameters, "w").and_then(seconds);
        let limit = ToldLimit {
            has_refused: false,
            policy: policy(&name),
            quota: quota(u32::try_from(calls).ok(), window),
            remaining: None,
            reset: None,
        };
        named.push((name, Some(limit).filter(|_| counts_calls(&parameters))));
    }
    // §7.3: what comes from a cache says nothing of the calls that are left now.
    let is_from_cache = headers.get(AGE).is_some_and(|age| age.as_bytes().iter().any(|digit| *digit != b'0'));
    let current = if is_from_cache { Vec::new() } else { items(headers, "ratelimit") };
    for (name, parameters) in current {
        let Some(remaining) = integer(&parameters, "r") else { continue };
        let (remaining, reset) = (u32::try_from(remaining).ok(), integer(&parameters, "t").and_then(seconds));
        match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, Some(limit))) if limit.remaining.is_none() => (limit.remaining, limit.reset) = (remaining, reset),
            Some(_) => {}
            None => {
                let limit = ToldLimit { has_refused: false, policy: policy(&name), quota: None, remaining, reset };
                named.push((name, Some(limit)));
            }
        }
    }
    named.into_iter().filter_map(|(_, limit)| limit)
}

/// The first [`MAX_LIMITS`] items of a list whose items are strings. None if a part of the list is malformed: the draft
/// has such a field ignored (§7).
fn items(headers: &HeaderMap, field: &str) -> Vec<(String, Parameters)> {
    let mut list: Vec<u8> = Vec::new();
    for line in headers.get_all(field) {
        // RFC 9651 §4.2: the lines of a field are one list.
        list.extend(if list.is_empty() { "" } else { "," }.bytes().chain(line.as_bytes().iter().copied()));
        if list.len() > MAX_LENGTH {
            return Vec::new();
        }
    }
    let item = |entry| match entry {
        ListEntry::Item(Item { bare_item: BareItem::String(name), params }) => Some((name.into(), params)),
        _ => None,
    };
    let list = Parser::new(&list).parse::<List>().unwrap_or_default();
    list.into_iter().filter_map(item).take(MAX_LIMITS).collect()
}

/// Whether the unit of a policy is calls (§3.1.2). It may also be bytes or concurrent calls.
fn counts_calls(parameters: &Parameters) -> bool {
    match parameters.get("qu") {
        None => true,
        Some(BareItem::String(unit)) => unit.as_str() == "requests",
        Some(_) => false,
    }
}

fn integer(parameters: &Parameters, name: &str) -> Option<i64> {
    match parameters.get(name) {
        Some(BareItem::Integer(number)) => Some(i64::from(*number)),
        _ => None,
    }
}

fn seconds(number: i64) -> Option<Duration> {
    u32::try_from(number).ok().map(|number| Duration::from_secs(number.into()))
}

#[cfg(test)]
mod tests;
