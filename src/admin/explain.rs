//! What would be done with a request, and what the gateway knows of it at present.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::{Page, json, text};
use crate::cache::freshness::Freshness;
use crate::cache::grants::GrantState;
use crate::explain::{self, Context, ExplainRequest, Now};
use crate::gateway::{Gateway, Inspection};
use crate::request::caller::Credential;

/// Explains what is asked in a query.
pub(super) fn page(gateway: &Gateway, query: &str) -> Page {
    let explained = asked(query).and_then(|(url, headers)| {
        let active = gateway.active();
        let listen = active.settings().listen.proxy.0;
        let context = Context { rules: gateway.rules(&active), listen, date: gateway.date() };
        let look = |key, credential: &Credential| Some(in_words(&gateway.inspect(key, credential)));
        explain::explain(context, ExplainRequest { url: &url, headers }, look)
    });
    match explained {
        Ok(explanation) => json(StatusCode::OK, &explanation),
        Err(message) => text(StatusCode::BAD_REQUEST, message),
    }
}

/// What the gateway knows, to be read by a person.
fn in_words(known: &Inspection) -> Now {
    let seconds = |left: Duration| humantime::format_duration(Duration::from_secs(left.as_secs())).to_string();
    let caller = match &known.grant_state {
        _ if known.is_suspended => {
            "held: upstream has refused its access key several times in a row, so that it is not used for now"
                .to_owned()
        }
        GrantState::Granted => "granted: upstream has answered it well lately".to_owned(),
        GrantState::Grace { .. } => {
            "not granted any more: asks alone; if that fails outside the gateway, it gets what was asked for before its \
             grant ended".to_owned()
        }
        GrantState::Unknown => "not granted: asks alone, and is told what upstream answers".to_owned(),
        GrantState::Denied { left, .. } => {
            format!("denied: upstream's refusal is repeated for another {}", seconds(*left))
        }
    };
    let stored = match (known.entry, known.uncacheable) {
        (Some(Freshness::Fresh { left }), _) => format!("an answer, fresh for another {}", seconds(left)),
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) if known.is_backing_off => {
            "a stale answer, given at once: upstream has failed, and is left alone for a while".to_owned()
        }
        (Some(Freshness::WhileRevalidate), None) => {
            "a stale answer, given at once while it is asked for again".to_owned()
        }
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) => {
            "a stale answer, given only if upstream fails or is slow".to_owned()
        }
        (None, _) if known.needs_confirmation => {
            "an invalidated answer, given only after upstream has confirmed it".to_owned()
        }
        (_, Some(reason)) => format!("nothing: answers cannot be kept ({})", reason.into_str()),
        (Some(Freshness::Gone) | None, None) => "nothing".to_owned(),
    };
    Now { caller, shared: known.is_shared, stored }
}

const EXPLAIN_USAGE: &str = "expected url once and header=NAME: VALUE any number of times, percent-encoded: curl -G \
                             --data-urlencode 'url=/v2/PROJECT/products' --data-urlencode 'header=X-Language: en-us' …";

/// The request that a query asks to explain.
fn asked(query: &str) -> Result<(String, HeaderMap), String> {
    let (mut url, mut headers) = (None, HeaderMap::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "url" if url.is_none() => url = Some(value.into_owned()),
            "header" => {
                let (name, value) = explain::header(&value)?;
                headers.append(name, value);
            }
            _ => return Err(EXPLAIN_USAGE.to_owned()),
        }
    }
    Ok((url.ok_or(EXPLAIN_USAGE)?, headers))
}
