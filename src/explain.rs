//! Explains what the gateway would do with a request, and why. It runs the same functions as `serve`, but it must not
//! look anything up or send anything.

mod signature;
mod verdict;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use serde::Serialize;

use crate::catalogue::template::PROJECT_ID;
use crate::catalogue::{Forwarded, Operation, Service, Sharing};
use crate::config::ttl;
use crate::request::BypassReason;
use crate::request::caller::Credential;
use crate::request::decide::{
    Action, AuthorizationAction, Bypass, Decision, Facts, Plan, Presentation, Rules, decide, is_for_none,
};
use crate::request::forwarded;
use crate::request::key::RequestKey;
use crate::request::rejection::Rejection;
use crate::request::request_directives::RequestDirectives;
use crate::request::route;
use crate::request::trace::TraceContext;
use crate::request::validate;
use crate::signing::AccessKey;
use crate::signing::ring::SignatureRejection;
use crate::upstream::client::{self, FetchContext};
use signature::{Authentication, Signature};
pub(crate) use verdict::{Verdict, VerdictAction};

/// What an explanation depends on besides the request.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub rules: Rules<'a>,
    /// The address that the gateway listens on for clients.
    pub listen: SocketAddr,
    /// The current date, to verify signatures.
    pub date: SystemTime,
    /// Whether an access key is not used for now, because upstream has refused it too often.
    pub is_suspended: &'a dyn Fn(&AccessKey, Service) -> bool,
}

/// A request to explain. It has no body.
pub(crate) struct ExplainRequest<'a> {
    pub method: Method,
    /// A path, or a URL as a client sends it to an HTTP proxy. Its host becomes `Host` if that header is missing.
    pub url: &'a str,
    pub headers: HeaderMap,
}

/// Parses a header of the form `NAME: VALUE`.
///
/// # Errors
/// What was expected. The text itself is not in the error, because it may have a credential.
pub(crate) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let invalid = || "not a header: expected NAME: VALUE, such as 'X-Language: en-us'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(invalid)?;
    let trimmed = |text: &str| text.trim_matches([' ', '\t']).to_owned();
    Ok((trimmed(name).parse().map_err(|_| invalid())?, trimmed(value).parse().map_err(|_| invalid())?))
}

#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    verdict: Verdict,
    /// The target after a path prefix was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    rewritten_to: Option<String>,
    /// Only if the request is for an operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<OperationExplanation>,
    /// Only if a signature is the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
    /// The upstream URL of a relayed request.
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_to: Option<String>,
}

#[derive(Debug, Serialize)]
struct OperationExplanation {
    name: String,
    service: &'static str,
    template: String,
    project_id: String,
    /// The captured path segments by name.
    segments: BTreeMap<String, String>,
    credential: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyParts>,
    /// Only if a running gateway explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Now>,
    /// All reasons to bypass. The first one is recorded.
    bypass: Vec<BypassExplanation>,
}

#[derive(Debug, Serialize)]
struct KeyParts {
    canonical_query: String,
    keyed_headers: Vec<String>,
    /// The headers that are sent upstream although they are not in the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    forward_headers: Option<String>,
    ttl: String,
    stale_while_revalidate: String,
    stale_if_error: String,
    /// What the body of a 200 must be to prove the caller and to be stored.
    body: String,
    /// Which callers share responses, and why.
    sharing: String,
    /// The request that is sent on a miss.
    upstream_request: Vec<String>,
}

/// What a running gateway knows about the caller and the key, as text.
#[derive(Debug, Serialize)]
pub(crate) struct Now {
    /// The caller's grant state in the scope.
    pub caller: String,
    /// Whether callers share the responses in the scope.
    pub shared: bool,
    /// What is stored under the key.
    pub stored: String,
    /// Whether the second tier would be looked up before a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_tier: Option<String>,
    /// How long a call would wait for upstream's quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
}

#[derive(Debug, Serialize)]
struct BypassExplanation {
    reason: &'static str,
    because: &'static str,
}

impl From<&BypassReason> for BypassExplanation {
    fn from(reason: &BypassReason) -> Self {
        Self { reason: reason.into_str(), because: reason.describe() }
    }
}

/// Explains a request: decides as `serve` does, and describes the decision. A running gateway adds with `look` what it
/// knows about the caller and the key at present. If the request is looked up, with these directives, it adds the
/// verdict, too.
///
/// # Errors
/// If the URL is invalid.
pub(crate) fn explain(
    context: Context<'_>,
    explained: ExplainRequest<'_>,
    look: impl FnOnce(RequestKey, &Credential, Option<RequestDirectives>) -> Option<(Now, Option<Verdict>)>,
) -> Result<Explanation, String> {
    let Context { rules, date, is_suspended, .. } = context;
    let (mut head, facts) = request(&explained, context.listen)?;
    let decision =
        validate::normalize(&mut head).map_err(Rejection::Invalid).and_then(|()| decide(&mut head, facts, rules));
    let near = Some(rules.catalogue).filter(|_| is_for_none(&decision));
    let near = near.and_then(|catalogue| catalogue.near_miss(&head.method, head.uri.path()));
    let almost = near.map(|near| format!(". It is {near}")).unwrap_or_default();
    let plan = match decision {
        Ok(Decision::Proceed(plan)) => plan,
        Ok(Decision::AnswerOptions) => {
            let verdict = Verdict::answered("answered 200 here, with the methods that the gateway relays");
            return Ok(Explanation::of(verdict));
        }
        Err(rejection) => return Ok(Explanation::rejected(rejection, &almost)),
    };
    let Plan { service, presentation: Presentation { credential, received_uri, authorization }, action } = plan;
    let project = route::project(rules.catalogue, head.uri.path());
    let Authentication { credential, refusal, signature } =
        signature::authenticate(credential, &head, &received_uri, project, date, |key| is_suspended(key, service));
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let rewritten_to = (head.uri.path() != received_uri.path()).then(|| target.to_owned());
    let explanation = |verdict| Explanation { signature, rewritten_to, ..Explanation::of(verdict) };
    if let Some(refusal) = refusal {
        let status = if refusal == SignatureRejection::Project { 403 } else { 401 };
        let sentence = format!("answered {status} here, and not sent upstream: {}", refusal.describe());
        return Ok(explanation(Verdict::refused(status, refusal.into_str(), sentence)));
    }
    let operation = match &action {
        Action::LookUp { key, .. } => {
            Some(explain_operation(key.operation(), Some(key), &credential, &[], &head, date)?)
        }
        Action::Bypass(Bypass { operation, reason, others, key, .. }) => {
            let reasons = [&[*reason], &others[..]].concat();
            Some(explain_operation(operation, key.as_ref(), &credential, &reasons, &head, date)?)
        }
        Action::PassThrough => None,
    };
    let (mut verdict, key, directives) = match action {
        Action::LookUp { key, directives } => (Verdict::looked_up(directives), Some(key), Some(directives)),
        _ if authorization == AuthorizationAction::Bound => {
            let sentence = "answered 401 here: the AK/SK signature does not cover upstream's Host and path, and its key \
                            is not configured here";
            (Verdict::refused(401, "signature-bound-here", sentence.to_owned()), None, None)
        }
        Action::Bypass(bypass) => {
            let only_a_token_is_missing = bypass.reason == BypassReason::NoCredential && bypass.others.is_empty();
            let with_token = if only_a_token_is_missing {
                ". With a token that upstream accepts, it is looked up in the cache"
            } else {
                ""
            };
            let reason = bypass.reason;
            let sentence = format!("relayed unchanged and not stored: {}{with_token}", reason.describe());
            (Verdict::relayed(reason.into_str(), sentence), bypass.key, None)
        }
        Action::PassThrough => {
            let service = service.as_str();
            let sentence = format!("relayed to {service}: not an operation, so streamed and never stored{almost}");
            (Verdict::relayed("pass-through", sentence), None, None)
        }
    };
    let looked = credential.as_ref().zip(key).and_then(|(credential, key)| look(key, credential, directives));
    let (now, verdict_now) = looked.unzip();
    if let Some(verdict_now) = verdict_now.flatten() {
        verdict = verdict_now;
    }
    if verdict.is_relayed() && authorization == AuthorizationAction::Renewed {
        verdict.sentence += "; signed anew for upstream's Host";
    }
    let forwarded_to = verdict.is_relayed().then(|| format!("{}{target}", rules.catalogue.origin(service)));
    let operation = operation.map(|operation| OperationExplanation { now, ..operation });
    Ok(Explanation { operation, forwarded_to, ..explanation(verdict) })
}

/// The request as a client would send it: with a path, or with a URL as to an HTTP proxy.
fn request(explained: &ExplainRequest<'_>, listen: SocketAddr) -> Result<(Parts, Facts), String> {
    let url: Uri = explained.url.parse().ok().filter(|uri: &Uri| uri.path().starts_with('/')).ok_or_else(|| {
        // What precedes an `@` may be a password.
        let shown = explained.url.rsplit_once('@').map_or(explained.url, |(_, host)| host);
        format!("{shown:?} is not allowed: expected a path or a URL, such as /v2/PROJECT/products")
    })?;
    let (mut head, ()) = Request::new(()).into_parts();
    head.method.clone_from(&explained.method);
    head.headers.clone_from(&explained.headers);
    let mut local = listen;
    match (url.authority(), head.headers.contains_key(HOST)) {
        (Some(host), false) => {
            let host = HeaderValue::from_str(host.as_str()).map_err(|error| error.to_string())?;
            head.headers.insert(HOST, host);
        }
        // A path has no host. HTTP/1.0 allows a request without `Host`.
        (None, false) => head.version = Version::HTTP_10,
        _ => {}
    }
    // A gateway that listens on all addresses of a machine is reached by each of them. One that listens on port 0 is
    // reached by a port that is not in its settings.
    if let Some(address) = url.host().and_then(|host| host.trim_matches(['[', ']']).parse().ok())
        && listen.ip().is_unspecified()
    {
        local.set_ip(address);
    }
    if listen.port() == 0 {
        local.set_port(url.port_u16().unwrap_or(80));
    }
    head.uri = url;
    let facts = Facts { local, has_body: declares_body(&head.headers) };
    Ok((head, facts))
}

fn explain_operation(
    operation: &Arc<Operation>,
    key: Option<&RequestKey>,
    credential: &Option<Credential>,
    reasons: &[BypassReason],
    head: &Parts,
    date: SystemTime,
) -> Result<OperationExplanation, String> {
    let path = head.uri.path();
    Ok(OperationExplanation {
        name: operation.name.to_string(),
        service: operation.service.as_str(),
        template: operation.template.to_string(),
        project_id: operation.template.project_id(path).to_owned(),
        segments: operation.template.captures(path).map(owned).collect(),
        credential: match credential {
            Some(Credential::Token(_)) => "X-Auth-Token (not shown)".to_owned(),
            Some(Credential::Signed(signed)) => format!("access key {} (signature verified)", signed.key.id()),
            None => "none that can be used".to_owned(),
        },
        key: key.map(|key| key_parts(key, operation, credential.as_ref(), &head.headers, date)).transpose()?,
        now: None,
        bypass: reasons.iter().map(BypassExplanation::from).collect(),
    })
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn is_zero(length: &HeaderValue) -> bool {
    !length.is_empty() && length.as_bytes().iter().all(|&digit| digit == b'0')
}

fn declares_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(|length| !is_zero(length))
}

fn key_parts(
    key: &RequestKey,
    operation: &Arc<Operation>,
    credential: Option<&Credential>,
    headers: &HeaderMap,
    date: SystemTime,
) -> Result<KeyParts, String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let placeholder = HeaderValue::from_static("-");
    let credential = credential.cloned().unwrap_or(Credential::Token(placeholder.clone()));
    let context = FetchContext {
        credential,
        date,
        request_id: "-".to_owned(),
        via: placeholder,
        validator: None,
        trace: TraceContext::read(headers).and_then(|trace| trace.with_span(0).traceparent()),
        forwarded: forwarded::select(operation, headers),
    };
    let request = client::product_list_request(key, context).map_err(|error| error.to_string())?;
    let mut upstream_request = vec![format!("GET {}", request.uri())];
    // Credentials are not shown. Values that differ by request or by process have placeholders.
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
        ttl: ttl::describe(operation),
        stale_while_revalidate: humantime::format_duration(operation.stale_while_revalidate).to_string(),
        stale_if_error: humantime::format_duration(operation.stale_if_error).to_string(),
        body: operation.body.to_string(),
        sharing: match (operation.sharing, operation.unshareable()) {
            (Sharing::Project, _) => "between all callers with a grant in this scope".to_owned(),
            (Sharing::Caller, None) => "none: each caller has its own responses (sharing = \"caller\")".to_owned(),
            (Sharing::Caller, Some(because)) => {
                format!("none: each caller has its own responses, because {}", because.describe())
            }
        },
        upstream_request,
    })
}

impl Explanation {
    fn of(verdict: Verdict) -> Self {
        Self { verdict, rewritten_to: None, operation: None, signature: None, forwarded_to: None }
    }

    fn rejected(rejection: Rejection, almost: &str) -> Self {
        let (status, reason) = (rejection.status().as_u16(), rejection.as_str());
        let sentence =
            format!("answered {status} here, and not sent upstream: {reason}: {}{almost}", rejection.describe());
        Self::of(Verdict::refused(status, reason, sentence))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "verdict          {}", self.verdict)?;
        if let Some(target) = &self.rewritten_to {
            writeln!(f, "rewritten to     {target}")?;
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
                    writeln!(f, "forward headers  {names} (not in the key)")?;
                }
                writeln!(f, "ttl              {}", key.ttl)?;
                writeln!(f, "body             {}", key.body)?;
                writeln!(f, "sharing          {}", key.sharing)?;
                let reasons: Vec<_> = operation.bypass.iter().map(|bypass| bypass.reason).collect();
                let label = match reasons.as_slice() {
                    [] => "upstream request",
                    ["no-credential"] => "with a token",
                    // A bypassed request is relayed unchanged, so the request built from the key is not sent.
                    _ => "",
                };
                for (index, line) in key.upstream_request.iter().enumerate().filter(|_| !label.is_empty()) {
                    writeln!(f, "{:<17}{line}", if index == 0 { label } else { "" })?;
                }
            }
        }
        if let Some(url) = &self.forwarded_to {
            writeln!(f, "relayed to       {url}")?;
        }
        Ok(())
    }
}
