//! Purge, explain and mode: for a person or script on this machine.
//!
//! A browser on this machine must not be made to drive it: requests that name another host than
//! this machine, or that a web page has sent, are refused.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::json;

use super::{Page, json as json_page, not_allowed, not_found, text};
use crate::cache::freshness::Freshness;
use crate::cache::grants::Standing;
use crate::cache::store::Selection;
use crate::catalogue::Catalogue;
use crate::config::Mode;
use crate::explain::{self, Asked, Now, Rules};
use crate::gateway::{Gateway, Inspection};
use crate::request::caller::Credential;
use crate::stream::BoxError;

/// What the operator can do.
pub struct Operator {
    gateway: Arc<Gateway>,
}

impl Operator {
    /// To this gateway.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    /// Answers a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Page
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        if !is_from_here(request.headers()) {
            return text(StatusCode::FORBIDDEN, "refused: expected a Host of this machine and no Origin");
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        match (request.uri().path(), request.method()) {
            ("/cache/purge", &Method::POST) => self.purge(&query),
            ("/cache/purge", _) => not_allowed("POST"),
            ("/explain", &Method::GET) => self.explain(&query),
            ("/explain", _) => not_allowed("GET"),
            ("/mode", &Method::GET) => self.mode(),
            ("/mode", &Method::PUT) => self.set_mode(request.into_body()).await,
            ("/mode", _) => not_allowed("GET, PUT"),
            _ => not_found("/cache/purge, /explain or /mode"),
        }
    }

    fn purge(&self, query: &str) -> Page {
        match selection(query, self.gateway.live().catalogue()) {
            Ok(selection) => {
                let purged = self.gateway.purge(&selection);
                tracing::info!(
                    operation = selection.operation,
                    project_id = selection.project_id,
                    purged,
                    "cache purged"
                );
                json_page(StatusCode::OK, &json!({ "purged": purged }))
            }
            Err(message) => text(StatusCode::BAD_REQUEST, message),
        }
    }

    fn explain(&self, query: &str) -> Page {
        let explained = asked(query).and_then(|(url, headers)| {
            let live = self.gateway.live();
            let rules = Rules {
                catalogue: live.catalogue(),
                path_prefixes: live.path_prefixes(),
                keys: live.keys(),
                mode: self.gateway.mode(),
                date: self.gateway.date(),
            };
            let look = |key, credential: &Credential| Some(in_words(&self.gateway.inspect(key, credential)));
            explain::explain(rules, Asked { url: &url, headers }, look)
        });
        match explained {
            Ok(explanation) => json_page(StatusCode::OK, &explanation),
            Err(message) => text(StatusCode::BAD_REQUEST, message),
        }
    }

    fn mode(&self) -> Page {
        json_page(StatusCode::OK, &json!({ "mode": self.gateway.mode() }))
    }

    async fn set_mode<B>(&self, body: B) -> Page
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        // The longest mode has six letters.
        let body = Limited::new(body, 64).collect().await.map(http_body_util::Collected::to_bytes);
        let given = body.ok().map(|body| String::from_utf8_lossy(&body).trim().to_owned()).unwrap_or_default();
        match given.parse::<Mode>() {
            Ok(mode) => {
                self.gateway.set_mode(mode);
                tracing::info!(mode = mode.as_str(), "mode set");
                self.mode()
            }
            Err(message) => text(StatusCode::BAD_REQUEST, message),
        }
    }
}

/// What the gateway knows, to be read by a person.
fn in_words(known: &Inspection) -> Now {
    let seconds = |left: Duration| humantime::format_duration(Duration::from_secs(left.as_secs())).to_string();
    let caller = match &known.standing {
        _ if known.is_held => {
            "held: upstream has refused its access key several times in a row, so that it is not used for now"
                .to_owned()
        }
        Standing::Granted => "granted: upstream has answered it well lately".to_owned(),
        Standing::Lapsed => {
            "not granted any more: asks alone; stale answers if that fails, but for a refusal".to_owned()
        }
        Standing::Unproved => "not granted: asks alone, and is told what upstream answers".to_owned(),
        Standing::Denied { left, .. } => {
            format!("denied: upstream's refusal is repeated for another {}", seconds(*left))
        }
    };
    let stored = match (known.entry, known.uncacheable) {
        (Some(Freshness::Fresh { left }), _) => format!("an answer, fresh for another {}", seconds(left)),
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) if known.is_paused => {
            "a stale answer, given at once: upstream has failed, and is left alone for a while".to_owned()
        }
        (Some(Freshness::WhileRevalidate), None) => {
            "a stale answer, given at once while it is asked for again".to_owned()
        }
        (Some(Freshness::WhileRevalidate | Freshness::IfError), _) => {
            "a stale answer, given only if upstream fails or is slow".to_owned()
        }
        (_, Some(reason)) => format!("nothing: answers cannot be kept ({})", reason.as_str()),
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

/// Everything has to be asked for by name: a purge whose condition was misspelt must not empty the
/// cache.
fn selection(query: &str, catalogue: &Catalogue) -> Result<Selection, String> {
    let names = || catalogue.operations().iter().map(|operation| &*operation.name);
    let mut selection = Selection::default();
    let mut all = false;
    let mut seen = HashSet::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !seen.insert(name.clone()) {
            return Err(format!("{name} is there more than once: expected one value for each"));
        }
        match (name.as_ref(), value.as_ref()) {
            ("all", "true") => all = true,
            ("operation", name) if names().any(|known| known == name) => {
                selection.operation = Some(name.to_owned());
            }
            ("operation", name) => {
                let known: Vec<_> = names().collect();
                return Err(format!("operation = {name:?} is not an operation: expected one of {}", known.join(", ")));
            }
            ("project", "") => return Err("project is empty: expected a project id".to_owned()),
            ("project", id) => selection.project_id = Some(id.to_owned()),
            (name, value) => {
                return Err(format!("{name} = {value:?} is not allowed: expected operation, project or all=true"));
            }
        }
    }
    match (all, selection == Selection::default()) {
        (true, false) => Err("all=true goes with neither operation nor project".to_owned()),
        (false, true) => Err("expected operation=NAME, project=ID, both, or all=true".to_owned()),
        _ => Ok(selection),
    }
}

fn is_from_here(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Authority>().ok());
    let is_this_machine = host.is_some_and(|authority| {
        let host = authority.host();
        host.eq_ignore_ascii_case("localhost")
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    is_this_machine && !headers.contains_key(ORIGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_names_what_it_removes() {
        let of = |operation: Option<&str>, project_id: Option<&str>| Selection {
            operation: operation.map(str::to_owned),
            project_id: project_id.map(str::to_owned),
        };
        let catalogue = Catalogue::for_tests(Vec::new());
        let selection = |query| selection(query, &catalogue);
        assert_eq!(selection("all=true"), Ok(of(None, None)));
        assert_eq!(selection("operation=ListProduct"), Ok(of(Some("ListProduct"), None)));
        assert_eq!(selection("project=p&operation=ListProduct"), Ok(of(Some("ListProduct"), Some("p"))));
        for wrong in
            ["", "all=false", "all=true&project=p", "operation=List", "projct=p", "project=", "project=a&project=b"]
        {
            assert!(selection(wrong).unwrap_err().contains("expected") || wrong.contains('&'), "{wrong}");
        }
    }

    #[test]
    fn only_this_machine_and_no_web_page() {
        let from = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            is_from_here(&headers)
        };
        for host in ["127.0.0.1:9091", "localhost", "[::1]:9091", "127.8.8.8"] {
            assert!(from(host, None), "{host}");
            assert!(!from(host, Some("http://localhost")), "{host}");
        }
        for host in ["evil.example:9091", "10.0.0.1", "localhost.evil.example", ""] {
            assert!(!from(host, None), "{host}");
        }
        assert!(!is_from_here(&HeaderMap::new()));
    }
}
