//! `/explain`: what the gateway would do with a request, and what it has in memory for it now. Nothing here calls
//! upstream.

mod verdict;

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use super::{Page, json, text};
use crate::cache::freshness::Freshness;
use crate::cache::grants::GrantState;
use crate::catalogue::{Quota, QuotaPolicy};
use crate::explain::{self, Context, ExplainRequest, Now};
use crate::gateway::{EngineInspection, Gateway, Hold, HoldCause, Inspection};
use crate::request::validate::MAX_FIELDS;

/// `parameters` are those of the query, or of a form in the body.
pub(super) fn page(gateway: &Gateway, parameters: &str) -> Page {
    let explained = request(parameters).and_then(|(method, url, headers)| {
        let active = gateway.active();
        let listen = active.settings().listen.proxy.0;
        let is_suspended = |key: &_, service| gateway.is_suspended(key, service);
        let context =
            Context { rules: gateway.rules(&active), listen, date: gateway.date(), is_suspended: &is_suspended };
        let longest = active.settings().upstream.answer_timeout.0;
        explain::explain(context, ExplainRequest { method, url: &url, headers }, |key, credential, directives| {
            let known = gateway.inspect(key, credential, directives.unwrap_or_default());
            Some((describe(&known, longest), directives.map(|it| verdict::verdict(&known, it.only_if_cached, longest))))
        })
    });
    match explained {
        Ok(explanation) => json(StatusCode::OK, &explanation),
        Err(message) => text(StatusCode::BAD_REQUEST, message),
    }
}

fn seconds(left: Duration) -> String {
    humantime::format_duration(Duration::from_secs(left.as_secs())).to_string()
}

/// What is in memory, in sentences.
fn describe(known: &Inspection, answer_timeout: Duration) -> Now {
    let caller = match &known.grant_state {
        GrantState::Granted => "granted: a recent upstream call has proved this caller".to_owned(),
        GrantState::Lapsed { .. } => {
            "not granted any more: the gateway calls upstream for this caller alone; if the call fails outside the \
             gateway, the caller gets what was fetched before its grant lapsed"
                .to_owned()
        }
        GrantState::Unknown => "not granted: the gateway calls upstream for this caller alone".to_owned(),
        GrantState::Denied { left, .. } => {
            format!("denied: the gateway repeats upstream's 401 or 403 for another {}", seconds(*left))
        }
    };
    let is_granted = matches!(known.grant_state, GrantState::Granted);
    let stored = match (known.entry, known.uncacheable) {
        (Some(Freshness::Fresh { left }), _) => format!("a response, fresh for another {}", seconds(left)),
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) if known.is_backing_off => {
            "a stale response, served at once: the gateway backs off after a failure of upstream".to_owned()
        }
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) if known.hold.is_some() && !is_granted => {
            "a stale response, only for callers with a grant".to_owned()
        }
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) if known.hold.is_some() => {
            "a stale response, served at once: a call would wait for a quota of upstream".to_owned()
        }
        (Some(Freshness::WhileRevalidate), None) => {
            "a stale response, served at once and refreshed in the background".to_owned()
        }
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) => {
            "a stale response, served only if upstream fails or is slow".to_owned()
        }
        (None, _) if known.needs_confirmation => {
            "an invalidated response, served only after upstream has confirmed it".to_owned()
        }
        (_, Some(reason)) => format!("nothing: responses cannot be stored ({})", reason.into_str()),
        (Some(Freshness::Gone) | None, None) => "nothing".to_owned(),
    };
    let is_stored =
        matches!(known.entry, Some(Freshness::Fresh { .. } | Freshness::WhileRevalidate | Freshness::IfError));
    let waits = !(is_stored && is_granted);
    let quota = known.hold.as_ref().map(|hold| wait_for_quota(hold, waits.then_some(answer_timeout)));
    let second_tier = second_tier_of(known);
    Now { caller, shared: known.is_shared, stored, second_tier, quota }
}

/// What the request says is not known here. The verdict beside it tells whether the request is relayed.
const LOOKED_UP: &str = "looked up before a call to upstream, but not if the request is relayed or has no-cache, max-age=0 or only-if-cached";

/// Whether the second tier would be looked up. `None` without a fleet.
fn second_tier_of(known: &Inspection) -> Option<String> {
    let is_granted = matches!(known.grant_state, GrantState::Granted);
    let is_fresh = is_granted && matches!(known.entry, Some(Freshness::Fresh { .. }));
    known.engine.map(|engine| match known.uncacheable {
        Some(_) => "not looked up: responses for this key cannot be stored".to_owned(),
        None => second_tier(engine, known.is_shared, is_granted, is_fresh),
    })
}

/// Whether the second tier would be looked up, and why not, in a sentence. `is_fresh`: the caller gets a fresh response from
/// memory.
fn second_tier(engine: EngineInspection, is_shared: bool, is_granted: bool, is_fresh: bool) -> String {
    let why = match engine {
        _ if !is_shared => "it has no responses for one caller alone".to_owned(),
        EngineInspection { shares_grants: false, .. } if !is_granted => {
            "upstream must first accept this caller at this gateway".to_owned()
        }
        _ if is_fresh => "the response is in memory".to_owned(),
        EngineInspection { is_in_use: false, state, .. } => format!("the engine is not in use ({state})"),
        EngineInspection { is_told: false, .. } => {
            "the engine has not received the last purges, invalidations or private scopes".to_owned()
        }
        _ => return LOOKED_UP.to_owned(),
    };
    format!("not looked up: {why}")
}

/// How long a call would wait for a limit of upstream, and why, in sentences. `longest`: how long a request waits for it at
/// most. `None` if it is answered at once, from what is stored.
fn wait_for_quota(hold: &Hold, longest: Option<Duration>) -> String {
    let counted = match hold.policy {
        QuotaPolicy::Api => "of this API",
        QuotaPolicy::User => "of this user",
        QuotaPolicy::App => "of this application",
        QuotaPolicy::Ip => "from the address of the gateway",
    };
    let limit = match hold.cause {
        HoldCause::Limit(Quota { calls, window }) => {
            let (s, window) = (if calls == 1 { "" } else { "s" }, humantime::format_duration(window));
            format!("upstream accepts {calls} call{s} {counted} in {window}")
        }
        HoldCause::Asked => "upstream has asked this caller to wait".to_owned(),
        HoldCause::Met => format!("upstream has just refused this caller because of its limit for calls {counted}"),
    };
    // Tenths of a second, rounded down.
    let tenths = u64::try_from(hold.left.as_millis() / 100).unwrap_or(u64::MAX);
    let wait = match tenths {
        0 => "less than 100ms".to_owned(),
        _ => format!("at least {}", humantime::format_duration(Duration::from_millis(tenths.saturating_mul(100)))),
    };
    let end = longest.filter(|longest| hold.left > *longest).map_or_else(String::new, |longest| {
        let longest = humantime::format_duration(longest);
        format!("; a request waits for at most {longest} (upstream.answer_timeout), and then gets a 429")
    });
    format!("a call would wait for {wait}, because {limit}{end}")
}

const EXPLAIN_USAGE: &str = "expected url once, method at most once (GET is the default), and header=NAME: VALUE any \
                             number of times, percent-encoded: curl --data-urlencode 'url=/v2/PROJECT/products' \
                             --data-urlencode 'header=X-Language: en-us' …";

/// The request that the parameters describe. An error has no part of them, because they may have a credential.
fn request(parameters: &str) -> Result<(Method, String, HeaderMap), String> {
    let (mut method, mut url, mut headers) = (None, None, HeaderMap::new());
    for (name, value) in form_urlencoded::parse(parameters.as_bytes()) {
        match name.as_ref() {
            "method" if method.is_none() => method = Some(value.parse::<Method>().map_err(|_| EXPLAIN_USAGE)?),
            "url" if url.is_none() => url = Some(value.into_owned()),
            // One more than a request may have, so that the rejection can be shown.
            "header" if headers.len() <= MAX_FIELDS => {
                let (name, value) = explain::header(&value)?;
                headers.append(name, value);
            }
            _ => return Err(EXPLAIN_USAGE.to_owned()),
        }
    }
    Ok((method.unwrap_or(Method::GET), url.ok_or(EXPLAIN_USAGE)?, headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_wait_is_not_told_longer_than_it_is() {
        let hold = |left| {
            let (policy, cause) = (QuotaPolicy::User, HoldCause::Asked);
            Hold { policy, cause, until: Clock::System.now(), left: Duration::from_millis(left) }
        };
        for (left, expected) in
            [(9_999, "at least 9s 900ms"), (10_000, "at least 10s"), (120, "at least 100ms"), (70, "less than 100ms")]
        {
            let text = wait_for_quota(&hold(left), None);
            assert!(text.starts_with(&format!("a call would wait for {expected}, because")), "{text}");
        }
    }

    #[test]
    fn the_second_tier_is_looked_up_only_if_that_may_help() {
        let engine = EngineInspection { state: "in-use", is_in_use: true, is_told: true, shares_grants: true };
        let lost = EngineInspection { state: "silent", is_in_use: false, is_told: false, ..engine };
        let without_grants = EngineInspection { shares_grants: false, ..engine };
        let behind = EngineInspection { is_told: false, ..engine };
        for (engine, shared, granted, fresh, expected) in [
            (engine, true, true, false, LOOKED_UP),
            (engine, true, true, true, "not looked up: the response is in memory"),
            // Another gateway may have a proof of the caller.
            (engine, true, false, false, LOOKED_UP),
            (
                without_grants,
                true,
                false,
                false,
                "not looked up: upstream must first accept this caller at this gateway",
            ),
            (engine, false, true, false, "not looked up: it has no responses for one caller alone"),
            (lost, true, true, false, "not looked up: the engine is not in use (silent)"),
            (
                behind,
                true,
                true,
                false,
                "not looked up: the engine has not received the last purges, invalidations or private scopes",
            ),
        ] {
            assert_eq!(second_tier(engine, shared, granted, fresh), expected);
        }
    }

    #[test]
    fn the_reason_of_a_wait_names_what_is_known() {
        let second = Duration::from_secs(1);
        let limit = HoldCause::Limit(Quota { calls: 200, window: 300 * second });
        let cases = [
            (QuotaPolicy::User, limit, 5, "upstream accepts 200 calls of this user in 5m"),
            (QuotaPolicy::App, limit, 5, "upstream accepts 200 calls of this application in 5m"),
            (QuotaPolicy::User, HoldCause::Asked, 5, "upstream has asked this caller to wait"),
            (
                QuotaPolicy::Api,
                HoldCause::Met,
                5,
                "upstream has just refused this caller because of its limit for calls of this API",
            ),
            (
                QuotaPolicy::User,
                HoldCause::Asked,
                40,
                "upstream has asked this caller to wait; a request waits for at most 35s (upstream.answer_timeout), and \
                 then gets a 429",
            ),
        ];
        for (policy, cause, left, why) in cases {
            let hold = Hold { policy, cause, until: Clock::System.now(), left: left * second };
            let expected = format!("a call would wait for at least {left}s, because {why}");
            assert_eq!(wait_for_quota(&hold, Some(35 * second)), expected);
        }
    }
}
