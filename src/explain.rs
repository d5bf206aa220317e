//! What the gateway would do with a request, and why: the very steps of the path, up to the point
//! where something would be looked up or sent.

mod signature;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Serialize;

use crate::catalogue::template::PROJECT_ID;
use crate::catalogue::{Catalogue, Forwarded, Operation, Sharing};
use crate::config::Mode;
use crate::config::prefix::PathPrefix;
use crate::request::BypassReason;
use crate::request::caller::{self, Credential};
use crate::request::forwarded;
use crate::request::hop;
use crate::request::key::Key;
use crate::request::route::{self, Route};
use crate::request::target;
use crate::request::trace::Trace;
use crate::request::wish::Wish;
use crate::signing::ring::{KeyRing, Refusal};
use crate::signing::{Binding, Changes};
use crate::upstream::client::{self, Errand};
use signature::{Presented, Signature};

/// What a gateway goes by.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// What operations there are.
    pub catalogue: &'a Catalogue,
    /// What a client's base URL may have in front of the paths.
    pub path_prefixes: &'a [PathPrefix],
    /// Whose signatures are verified.
    pub keys: &'a KeyRing,
    /// Whether the cache is in use.
    pub mode: Mode,
    /// The present date.
    pub date: SystemTime,
}

/// A request to explain; a GET.
pub struct Asked<'a> {
    /// A path, or a URL; its host counts for a signature, if no header says another.
    pub url: &'a str,
    /// Its headers.
    pub headers: HeaderMap,
}

/// Reads a header written as `NAME: VALUE`.
///
/// # Errors
/// What was expected, without what was given: it may be a credential.
pub fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || "not a header: expected NAME: VALUE, such as 'X-Language: en-us'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    Ok((name.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

/// What would be done with a request.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// In one sentence.
    verdict: String,
    /// The target that is meant, where the base URL has put something in front of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_as: Option<String>,
    /// What would be answered from memory, for one of the operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<AskedOperation>,
    /// What its signature is worth, if that is what shows who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
    /// Where a request that is not answered from memory would go.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_to: Option<String>,
}

#[derive(Debug, Serialize)]
struct AskedOperation {
    name: String,
    service: &'static str,
    /// The paths it has.
    template: String,
    project_id: String,
    /// What the path says for the names in the template.
    segments: BTreeMap<String, String>,
    credential: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyParts>,
    /// What a running gateway knows of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Now>,
    /// Everything that stands in the way of an answer from memory; the first is the one recorded.
    bypass: Vec<Bypass>,
}

#[derive(Debug, Serialize)]
struct KeyParts {
    canonical_query: String,
    keyed_headers: Vec<String>,
    /// What is sent upstream though it is not in the key, if the operation does so.
    #[serde(skip_serializing_if = "Option::is_none")]
    forward_headers: Option<String>,
    ttl: String,
    stale_while_revalidate: String,
    stale_if_error: String,
    /// What a 200 must be, to prove the caller and to be kept.
    body: String,
    /// Between whom answers are shared, and why, if that can't be otherwise.
    sharing: String,
    /// Which is sent unless the request is bypassed.
    upstream_request: Vec<String>,
}

/// What a running gateway knows of a question and of the caller, in words.
#[derive(Debug, Serialize)]
pub struct Now {
    /// How the caller stands in the scope.
    pub caller: String,
    /// Whether callers share answers there.
    pub shared: bool,
    /// What is stored.
    pub stored: String,
}

#[derive(Debug, Serialize)]
struct Bypass {
    reason: &'static str,
    because: &'static str,
}

impl From<&BypassReason> for Bypass {
    fn from(reason: &BypassReason) -> Self {
        Self { reason: reason.as_str(), because: reason.describe() }
    }
}

/// Explains a request. A running gateway adds what it knows of the question now.
///
/// # Errors
/// If the URL can't be read as one.
pub fn explain(
    rules: Rules<'_>,
    asked: Asked<'_>,
    look: impl FnOnce(Key, &Credential) -> Option<Now>,
) -> Result<Explanation, String> {
    let Rules { catalogue, path_prefixes, keys, mode, date } = rules;
    let typed: Uri = asked.url.parse().ok().filter(|uri: &Uri| uri.path().starts_with('/')).ok_or_else(|| {
        format!("{:?} is not allowed: expected a path or a URL, such as /v2/PROJECT/products", asked.url)
    })?;
    let mut headers = asked.headers;
    let has_body = declares_body(&headers);
    let removed = hop::strip(&mut headers);
    if let (Some(host), false) = (typed.authority(), headers.contains_key(HOST)) {
        headers.insert(HOST, HeaderValue::from_str(host.as_str()).map_err(|error| error.to_string())?);
    }
    let rebased = target::rebased(&typed, path_prefixes, catalogue);
    let as_typed = rebased.is_none();
    let uri = rebased.unwrap_or_else(|| typed.clone());
    let project = route::project(catalogue, uri.path());
    let Presented { credential, refusal, signature } = signature::identify(keys, &headers, &typed, project, date);
    let changes = Changes { path: !as_typed, removed };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let answered_here = |verdict: String, operation| Explanation {
        verdict,
        taken_as: None,
        operation,
        signature: None,
        forwarded_to: None,
    };
    // Whatever goes upstream as it is, a signature that can't be valid there does not.
    let forwarded = |service, verdict, operation| {
        let origin = catalogue.origin(service);
        let is_signed = matches!(credential, Ok(Credential::Signed(_)));
        let binding = Binding::of(&headers, origin.authority().as_str(), &changes);
        if binding == Binding::Bound && !is_signed && !caller::has_token(&headers) {
            let verdict = "answered 401 here: the AK/SK signature is not over upstream's Host and path, and its key \
                           is not configured here"
                .to_owned();
            return answered_here(verdict, operation);
        }
        let verdict = if is_signed { format!("{verdict}; signed anew for upstream's Host") } else { verdict };
        Explanation { forwarded_to: Some(format!("{origin}{target}")), ..answered_here(verdict, operation) }
    };

    let explanation = match route::find(catalogue, &Method::GET, uri.path()) {
        Route::Unknown => answered_here("answered 404 here: the path belongs to neither service".to_owned(), None),
        _ if let Some(refusal) = refusal => {
            let status = if refusal == Refusal::Project { 403 } else { 401 };
            answered_here(format!("answered {status} here, and not sent on: {}", refusal.describe()), None)
        }
        Route::PassThrough(service) => {
            forwarded(service, format!("passed through to {}, streamed, never kept", service.as_str()), None)
        }
        Route::Operation(operation, place) => {
            let key = Key::read(catalogue, operation, place, uri.query(), &headers, has_body);
            let mode = (mode == Mode::Bypass).then_some(BypassReason::Mode);
            let wish = Wish::read(&headers).err();
            let reasons = [mode, credential.as_ref().err().copied(), wish, key.as_ref().err().copied()];
            let reasons: Vec<BypassReason> = reasons.into_iter().flatten().collect();
            let parts = key
                .as_ref()
                .ok()
                .map(|key| key_parts(key, operation, credential.as_ref().ok(), &headers, date))
                .transpose()?;
            let now = credential.as_ref().ok().zip(key.ok()).and_then(|(credential, key)| look(key, credential));
            let asked = AskedOperation {
                name: operation.name.to_string(),
                service: operation.service.as_str(),
                template: operation.template.to_string(),
                project_id: operation.template.project_id(place.path()).to_owned(),
                segments: operation.template.captures(place.path()).map(owned).collect(),
                credential: match &credential {
                    Ok(Credential::Token(_)) => "X-Auth-Token (not shown)".to_owned(),
                    Ok(Credential::Signed(signed)) => format!("access key {} (signature verified)", signed.key.id()),
                    Err(_) => "none that counts".to_owned(),
                },
                key: parts,
                now,
                bypass: reasons.iter().map(Bypass::from).collect(),
            };
            match reasons.first() {
                None => answered_here(
                    "answered from memory while fresh, once upstream has answered this caller well in this scope; \
                     otherwise asked of upstream"
                        .to_owned(),
                    Some(asked),
                ),
                Some(reason) => {
                    let only_a_token_is_missing = reasons == [BypassReason::NoCredential];
                    let hope = if only_a_token_is_missing {
                        ". With a token that upstream has answered well: from memory"
                    } else {
                        ""
                    };
                    let verdict = format!("forwarded as it is and not kept: {}{hope}", reason.describe());
                    forwarded(operation.service, verdict, Some(asked))
                }
            }
        }
    };
    let taken_as = (!as_typed).then(|| target.to_owned());
    Ok(Explanation { taken_as, signature, ..explanation })
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn declares_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0")
}

fn key_parts(
    key: &Key,
    operation: &Arc<Operation>,
    credential: Option<&Credential>,
    headers: &HeaderMap,
    date: SystemTime,
) -> Result<KeyParts, String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let placeholder = HeaderValue::from_static("-");
    let credential = credential.cloned().unwrap_or(Credential::Token(placeholder.clone()));
    let errand = Errand {
        credential,
        date,
        request_id: "-".to_owned(),
        via: placeholder,
        validator: None,
        trace: Trace::read(headers).and_then(|trace| trace.continued(0)),
        forwarded: forwarded::select(operation, headers),
    };
    let request = client::question(key, errand).map_err(|error| error.to_string())?;
    let mut upstream_request = vec![format!("GET {}", request.uri())];
    // These differ by caller, by request and by process.
    upstream_request.extend(request.headers().iter().map(|(name, value)| match name.as_str() {
        "x-auth-token" | "x-security-token" => format!("{name}: (the caller's, not shown)"),
        "authorization" => format!("{name}: (signed anew with the caller's access key)"),
        "x-request-id" => format!("{name}: (32 hex digits)"),
        "traceparent" => format!("{name}: {}", text(value).replace("-0000000000000000-", "-(16 hex digits)-")),
        "via" => format!("{name}: 1.1 workspace-gateway-(this process)"),
        _ => format!("{name}: {}", text(value)),
    }));
    Ok(KeyParts {
        canonical_query: key.query().to_owned(),
        keyed_headers: key.headers().iter().map(|(name, value)| format!("{name}: {}", text(value))).collect(),
        forward_headers: match &operation.forwarded {
            Forwarded::All => Some("*".to_owned()),
            Forwarded::Named(names) if names.is_empty() => None,
            Forwarded::Named(names) => Some(names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")),
        },
        ttl: humantime::format_duration(operation.ttl).to_string(),
        stale_while_revalidate: humantime::format_duration(operation.stale_while_revalidate).to_string(),
        stale_if_error: humantime::format_duration(operation.stale_if_error).to_string(),
        body: operation.body.to_string(),
        sharing: match (operation.sharing, operation.unshareable()) {
            (Sharing::Project, _) => "between all callers that upstream has answered well in this scope".to_owned(),
            (Sharing::Caller, None) => "none: each caller has answers of its own (sharing = \"caller\")".to_owned(),
            (Sharing::Caller, Some(because)) => {
                format!("none: each caller has answers of its own, because {}", because.describe())
            }
        },
        upstream_request,
    })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verdict          {}", self.verdict)?;
        if let Some(target) = &self.taken_as {
            writeln!(f, "taken as         {target}")?;
        }
        if let Some(signature) = &self.signature {
            writeln!(f, "signature        {} ({})", signature.result, signature.because)?;
            for (label, line) in signature.lines() {
                writeln!(f, "{label:<17}{line}")?;
            }
        }
        if let Some(operation) = &self.operation {
            writeln!(f, "operation        {} of {}", operation.name, operation.service)?;
            write!(f, "scope            {}", operation.name)?;
            if !operation.project_id.is_empty() {
                write!(f, " in project {}", operation.project_id)?;
            }
            for (name, value) in operation.segments.iter().filter(|(name, _)| *name != PROJECT_ID) {
                write!(f, ", {name} = {value}")?;
            }
            writeln!(f)?;
            writeln!(f, "credential       {}", operation.credential)?;
            for bypass in &operation.bypass {
                writeln!(f, "bypass           {} ({})", bypass.reason, bypass.because)?;
            }
            if let Some(key) = &operation.key {
                let shown = |text: &str| if text.is_empty() { "(empty)".to_owned() } else { text.to_owned() };
                writeln!(f, "canonical query  {}", shown(&key.canonical_query))?;
                writeln!(f, "keyed headers    {}", shown(&key.keyed_headers.join(", ")))?;
                if let Some(names) = &key.forward_headers {
                    writeln!(f, "sent along       {names} (not in the key)")?;
                }
                writeln!(f, "ttl              {}", key.ttl)?;
                writeln!(f, "body             {}", key.body)?;
                writeln!(f, "sharing          {}", key.sharing)?;
                let reasons: Vec<_> = operation.bypass.iter().map(|bypass| bypass.reason).collect();
                let label = match reasons.as_slice() {
                    [] => "asked upstream",
                    ["no-credential"] => "with a token",
                    // What is forwarded as it is, is not asked in our words.
                    _ => "",
                };
                for (index, line) in key.upstream_request.iter().enumerate().filter(|_| !label.is_empty()) {
                    writeln!(f, "{:<17}{line}", if index == 0 { label } else { "" })?;
                }
            }
        }
        if let Some(url) = &self.forwarded_to {
            writeln!(f, "forwarded to     {url}")?;
        }
        Ok(())
    }
}
