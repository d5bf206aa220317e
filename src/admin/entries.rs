//! `/cache/entries`: the entries of the cache, in JSON, with their cache key and state. It must not show a response or
//! a caller.

use std::collections::BTreeMap;
use std::time::Instant;

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::{Page, json as json_page, text};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::store::CacheKey;
use crate::gateway::Gateway;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

#[derive(Serialize)]
struct EntrySummary {
    operation: String,
    project: String,
    /// What the path captures besides the project.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    segments: BTreeMap<String, String>,
    query: String,
    headers: BTreeMap<String, String>,
    sharing: &'static str,
    state: &'static str,
    age_seconds: f64,
    ttl_seconds: f64,
    hits: u64,
    bytes: usize,
}

/// The entries with most hits come first.
pub(super) fn page(gateway: &Gateway, query: &str) -> Page {
    let limit = match limit(query) {
        Ok(limit) => limit,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let mut all: Vec<_> = gateway.entries().collect();
    let total = all.len();
    let rank = |(cache_key, entry): &(std::sync::Arc<CacheKey>, std::sync::Arc<Entry>)| {
        // Entries with equally many hits are sorted by name, so that their order is stable.
        (std::cmp::Reverse(entry.hits()), cache_key.key.scope().path().to_owned(), cache_key.key.query().to_owned())
    };
    if let Some(last) = limit.checked_sub(1).filter(|&last| last < total) {
        all.select_nth_unstable_by_key(last, rank);
    }
    all.truncate(limit);
    all.sort_by_cached_key(rank);
    let now = gateway.now();
    let entries: Vec<EntrySummary> =
        all.iter().map(|(cache_key, entry)| summary(gateway, cache_key, entry, now)).collect();
    json_page(StatusCode::OK, &json!({ "total": total, "entries": entries }))
}

fn summary(gateway: &Gateway, cache_key: &CacheKey, entry: &Entry, now: Instant) -> EntrySummary {
    let (key, scope, freshness_info) = (&cache_key.key, cache_key.key.scope(), entry.freshness_info());
    let segments = scope.operation().template.captures(scope.path()).filter(|(name, _)| *name != "project_id");
    let (age, ttl) = (freshness_info.age(now).as_secs_f64(), freshness_info.lifetime.ttl.as_secs_f64());
    EntrySummary {
        operation: scope.operation().name.to_string(),
        project: scope.project_in_short(),
        segments: segments.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        query: key.query().to_owned(),
        headers: key
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        sharing: if cache_key.owner.is_none() { "project" } else { "caller" },
        state: match freshness_info.freshness(now) {
            _ if gateway.is_invalidated(cache_key, entry) => "invalidated",
            Freshness::Fresh { .. } => "fresh",
            Freshness::WhileRevalidate => "revalidate",
            Freshness::IfError => "if-error",
            Freshness::Gone => "gone",
        },
        age_seconds: age,
        ttl_seconds: ttl - age,
        hits: entry.hits(),
        bytes: entry.size(),
    }
}

fn limit(query: &str) -> Result<usize, String> {
    let mut limit = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let given = value.parse().ok().filter(|given| (1..=MAX_LIMIT).contains(given));
        match (name.as_ref(), given, limit) {
            ("limit", Some(given), None) => limit = Some(given),
            _ => {
                let name = name.escape_debug();
                return Err(format!("{name} = {value:?} is not allowed: expected limit once, from 1 to {MAX_LIMIT}"));
            }
        }
    }
    Ok(limit.unwrap_or(DEFAULT_LIMIT))
}
