//! The small domain of the model: five callers, three scopes, four keys, and what upstream would answer to each caller
//! at every moment.
//!
//! It is small so that requests meet. The state of upstream is kept here with its complete history. It does not depend
//! on the gateway: served bodies are judged by it.

use std::fmt;

/// Milliseconds since a sequence began.
pub type Ms = u64;

pub const SECOND: Ms = 1000;

/// Indexes of callers, scopes and keys. Requests are numbered in order through a sequence.
pub type CallerId = usize;
pub type ScopeId = usize;
pub type KeyId = usize;
pub type RequestId = u32;

pub const CALLERS: usize = 5;

pub struct Scope {
    pub operation: &'static str,
    pub project: &'static str,
    /// Whether the configuration lets callers share responses.
    pub is_shared: bool,
}

/// Any two differ in the operation or in the project, so that a purge of either selects two of them.
pub const SCOPES: [Scope; 3] = [
    Scope { operation: "ListProducts", project: "p1", is_shared: true },
    Scope { operation: "ListProducts", project: "p2", is_shared: true },
    Scope { operation: "ListProduct", project: "p1", is_shared: false },
];

/// The scope and the target of each key.
pub const KEYS: [(ScopeId, &str); 4] =
    [(0, "/v2/p1/products"), (0, "/v2/p1/products?os_type=Linux"), (1, "/v2/p2/products"), (2, "/v1/p1/product")];

pub fn scope_of(key: KeyId) -> ScopeId {
    KEYS[key].0
}

/// There is one service for each operation.
pub const SERVICES: usize = 2;

pub fn service_of_scope(scope: ScopeId) -> usize {
    usize::from(scope == 2)
}

pub fn service_of(key: KeyId) -> usize {
    service_of_scope(scope_of(key))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheRequest {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
    /// Whether the method is unsafe. Such a request is relayed.
    pub is_unsafe: bool,
    /// Whether it comes directly from a client, not through another gateway.
    pub is_direct: bool,
    pub spelling: Spelling,
    pub directives: RequestDirectives,
    /// The list that the client has, sent in `If-None-Match`.
    pub if_none_match: Option<Version>,
}

/// How a client writes its token. Upstream reads all of these as the token of the same caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spelling {
    Plain,
    /// HTTP/1.1 trims blanks around a value (RFC 9110 §5.5).
    BlankBefore,
    BlankAfter,
    BlanksAround,
    /// HTTP/2 rejects them (RFC 9113 §8.2.1).
    BlanksInHttp2,
    /// In two fields.
    Twice,
    /// Together with the token of another caller, in a field of the same name, or spelled with `_`.
    WithAnother,
    WithAnotherUnderscored,
}

impl Spelling {
    const ALL: [Self; 12] = [
        Self::Plain,
        Self::BlankBefore,
        Self::BlankAfter,
        Self::BlanksAround,
        Self::Plain,
        Self::BlanksInHttp2,
        Self::BlankBefore,
        Self::Twice,
        Self::BlankAfter,
        Self::WithAnother,
        Self::BlanksAround,
        Self::WithAnotherUnderscored,
    ];

    /// A spelling for each request.
    pub fn of(id: RequestId) -> Self {
        Self::ALL[id as usize % Self::ALL.len()]
    }

    /// Whether two servers could read it in two ways.
    pub fn is_ambiguous(self) -> bool {
        matches!(self, Self::BlanksInHttp2 | Self::Twice | Self::WithAnother | Self::WithAnotherUnderscored)
    }

    pub fn version(self) -> http::Version {
        if self == Self::BlanksInHttp2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 }
    }

    /// The header fields with the token.
    pub fn fields(self, caller: CallerId) -> Vec<(&'static str, String)> {
        let (own, another) = (token(caller), token((caller + 1) % CALLERS));
        let field = |value| ("x-auth-token", value);
        match self {
            Self::Plain => vec![field(own)],
            Self::BlankBefore => vec![field(format!(" {own}"))],
            Self::BlankAfter => vec![field(format!("{own}\t"))],
            Self::BlanksAround | Self::BlanksInHttp2 => vec![field(format!("\t  {own} \t "))],
            Self::Twice => vec![field(own.clone()), field(own)],
            Self::WithAnother => vec![field(own), field(another)],
            Self::WithAnotherUnderscored => vec![field(own), ("x_auth_token", another)],
        }
    }
}

/// The request directives of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestDirectives {
    None,
    NoCache,
    MaxAge(Ms),
    MinFresh(Ms),
    OnlyIfCached,
    NoStore,
}

impl RequestDirectives {
    /// The header field. Some directives have several spellings.
    fn header(self, id: RequestId) -> Option<(&'static str, String)> {
        let control = |text: String| Some(("cache-control", text));
        match self {
            Self::None => None,
            Self::NoCache => match id % 3 {
                0 => Some(("pragma", "no-cache".to_owned())),
                1 => control("max-age=0".to_owned()),
                _ => control("no-cache".to_owned()),
            },
            Self::MaxAge(ms) => control(format!("max-age={}", ms / SECOND)),
            Self::MinFresh(ms) => control(format!("min-fresh={}", ms / SECOND)),
            Self::OnlyIfCached => control("only-if-cached".to_owned()),
            Self::NoStore => control("no-store".to_owned()),
        }
    }
}

impl CacheRequest {
    /// The header fields for the request directives and for `If-None-Match`.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let list = |version: Version| match self.id % 2 {
            0 => version.to_tag(),
            _ => format!("{}, W/{}", r#""another""#, version.to_tag()),
        };
        let if_none_match = self.if_none_match.map(|version| ("if-none-match", list(version)));
        self.directives.header(self.id).into_iter().chain(if_none_match)
    }
}

pub fn token(caller: CallerId) -> String {
    format!("token-{caller}")
}

/// Identifies a product list: there is one for each catalogue and view. Upstream gives some of them an `ETag`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Version {
    pub catalogue: u8,
    pub view: u8,
}

impl Version {
    pub fn list(self, key: KeyId) -> String {
        format!(r#"{{"products":["key {key} catalogue {} view {}"]}}"#, self.catalogue, self.view)
    }

    /// The `ETag`, if upstream sends one.
    pub fn etag(self, key: KeyId) -> Option<Self> {
        (self.catalogue != 2 && scope_of(key) != 1).then_some(self)
    }

    pub fn to_tag(self) -> String {
        format!(r#""c{}v{}""#, self.catalogue, self.view)
    }

    pub fn from_tag(etag: &str) -> Option<Self> {
        let (catalogue, view) = etag.strip_prefix("\"c")?.strip_suffix('"')?.split_once('v')?;
        Some(Self { catalogue: catalogue.parse().ok()?, view: view.parse().ok()? })
    }
}

/// How a call to upstream ends.
#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamResult {
    /// A complete response.
    Complete { status: u16, body: String, etag: Option<Version>, extra_header: ExtraHeader },
    /// 304: the list of the request is still current, or, if it names another list, that one.
    NotModified(Option<Version>),
    /// No complete response.
    Failed(Failure),
}

/// An extra header field of a complete response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExtraHeader {
    None,
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Vary` with the token field.
    Vary,
    /// `Retry-After`. `None` is a value that cannot be parsed.
    RetryAfter(Option<Ms>),
    /// A refusal without `X-Request-Id`: not upstream's own.
    Intermediary,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    Connect,
    /// The name is not resolved.
    Unreachable,
    /// A failure inside the gateway.
    Local,
    Timeout,
    /// The response with this status is larger than the limit.
    TooLarge(u16),
    /// A 401 or 403 with an incomplete body.
    Refused(u16),
}

impl UpstreamResult {
    pub fn complete(status: u16, body: impl Into<String>) -> Self {
        Self::Complete { status, body: body.into(), etag: None, extra_header: ExtraHeader::None }
    }

    pub fn with(self, extra_header: ExtraHeader) -> Self {
        match self {
            Self::Complete { status, body, etag, .. } => Self::Complete { status, body, etag, extra_header },
            other => other,
        }
    }

    pub fn too_large(self) -> Self {
        match self {
            Self::Complete { status: 401 | 403, .. } => self.without_end(),
            Self::Complete { status, .. } => Self::Failed(Failure::TooLarge(status)),
            other => other,
        }
    }

    /// Makes the body of an error too long to be remembered.
    pub fn lengthened(self) -> Self {
        match self {
            Self::Complete { status, body, etag, extra_header } if status != 200 => {
                Self::Complete { status, body: body + &" ".repeat(9_000), etag, extra_header }
            }
            short => short,
        }
    }

    /// The product list of this result, if it is one, for a call with this validator. A product list proves the caller.
    pub fn list(&self, key: KeyId, validator: Option<Version>) -> Option<String> {
        match self {
            Self::Complete { status: 200, body, .. } if is_list(body) => Some(body.clone()),
            Self::NotModified(named) => {
                let validator = validator.filter(|validator| named.is_none_or(|named| named == *validator))?;
                Some(validator.list(key))
            }
            _ => None,
        }
    }

    /// Whether it says that an unsafe method has changed something: neither the status nor the body is an error.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Complete { status: 200..=399, body, .. } => !body.contains("error_code"),
            Self::Complete { .. } | Self::Failed(_) => false,
            Self::NotModified(_) => true,
        }
    }

    /// The status, if it is a denial.
    pub fn denial(&self) -> Option<u16> {
        match self {
            Self::Complete { status: status @ (401 | 403), .. } | Self::Failed(Failure::Refused(status)) => {
                Some(*status)
            }
            _ => None,
        }
    }

    /// Whether a denial comes from something between the gateway and upstream.
    pub fn is_of_intermediary(&self) -> bool {
        matches!(self, Self::Complete { extra_header: ExtraHeader::Intermediary, .. })
    }

    /// The same denial with an incomplete body.
    pub fn without_end(self) -> Self {
        self.denial().map_or(self, |status| Self::Failed(Failure::Refused(status)))
    }

    /// The same denial with the body of another one.
    pub fn with_body_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::Complete { status, etag, extra_header, .. }, Self::Complete { body, .. }) => {
                Self::Complete { status, body, etag, extra_header }
            }
            (result, _) => result,
        }
    }

    /// Whether a denial rejects the credential itself, in all scopes of the service.
    pub fn denies_credential(&self) -> bool {
        match self {
            Self::Complete { status: 401, body, .. } => !body.contains(r#""error_code":"WKS."#),
            Self::Failed(failure) => *failure == Failure::Refused(401),
            _ => false,
        }
    }

    /// Whether upstream has answered, and not with a failure.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Complete { status, .. } => *status < 500,
            Self::NotModified(_) => true,
            Self::Failed(failure) => matches!(failure, Failure::Refused(_)),
        }
    }

    pub fn is_server_error(&self) -> bool {
        matches!(self, Self::Complete { status: 500..=507 | 509..=599, .. })
    }

    /// Whether it says only that upstream fails, and nothing about the credential or the key. A 304 is a failure for a
    /// call without that validator.
    pub fn is_failure(&self, validator: Option<Version>) -> bool {
        match self {
            Self::Complete { status, .. } => matches!(status, 500..=507 | 509..=599 | 429),
            Self::NotModified(_) => self.list(0, validator).is_none(),
            Self::Failed(failure) => !matches!(failure, Failure::TooLarge(_) | Failure::Refused(_)),
        }
    }
}

/// Whether a body is one of the product lists of this domain.
pub fn is_list(body: &str) -> bool {
    body.starts_with(r#"{"products":["#)
}

/// The state of upstream at one moment.
#[derive(Clone, Debug)]
pub struct UpstreamState {
    is_valid: [bool; CALLERS],
    is_permitted: [[bool; SCOPES.len()]; CALLERS],
    catalogue: u8,
    views_differ: [bool; SCOPES.len()],
}

/// A change of the state of upstream.
#[derive(Clone, Debug)]
pub enum Change {
    /// A token is revoked or expires.
    Revoke(CallerId),
    /// The token is valid again.
    Restore(CallerId),
    /// A caller loses the permission for a scope.
    Forbid(CallerId, ScopeId),
    /// The caller has the permission again.
    Permit(CallerId, ScopeId),
    /// The catalogue of products changes.
    Catalogue(u8),
    /// Whether callers see different products.
    Views(ScopeId, bool),
}

impl UpstreamState {
    /// All callers have access to the first scope. The last caller has no access to the other project; the one before
    /// has access to the first scope only.
    pub fn new(views_differ: bool) -> Self {
        let mut is_permitted = [[true; SCOPES.len()]; CALLERS];
        is_permitted[CALLERS - 1][1] = false;
        is_permitted[CALLERS - 2] = [true, false, false];
        Self { is_valid: [true; CALLERS], is_permitted, catalogue: 0, views_differ: [views_differ, false, true] }
    }

    fn change(&mut self, change: &Change) {
        match *change {
            Change::Revoke(caller) => self.is_valid[caller] = false,
            Change::Restore(caller) => self.is_valid[caller] = true,
            Change::Forbid(caller, scope) => self.is_permitted[caller][scope] = false,
            Change::Permit(caller, scope) => self.is_permitted[caller][scope] = true,
            Change::Catalogue(catalogue) => self.catalogue = catalogue,
            Change::Views(scope, differ) => self.views_differ[scope] = differ,
        }
    }

    /// Whether the credential of a caller is accepted in a scope.
    pub fn proves(&self, caller: CallerId, scope: ScopeId) -> bool {
        self.is_valid[caller] && self.is_permitted[caller][scope]
    }

    /// The list that a caller would get. There are two views where views differ.
    pub fn version(&self, caller: CallerId, key: KeyId) -> Version {
        let view = if self.views_differ[scope_of(key)] && caller % 2 == 1 { 1 } else { 0 };
        Version { catalogue: self.catalogue, view }
    }

    /// The regular response to a call, which may be conditional.
    pub fn answer(&self, caller: CallerId, key: KeyId, validator: Option<Version>) -> UpstreamResult {
        if !self.is_valid[caller] {
            return UpstreamResult::complete(
                401,
                format!(r#"{{"error_code":"APIGW.0307","error_msg":"token of {caller}"}}"#),
            );
        }
        if !self.is_permitted[caller][scope_of(key)] {
            return UpstreamResult::complete(
                403,
                format!(r#"{{"error_code":"WKS.0403","error_msg":"policy of {caller}"}}"#),
            );
        }
        let version = self.version(caller, key);
        if validator == Some(version) {
            // A 304 should have the `ETag`, but does not always.
            return UpstreamResult::NotModified(Some(version).filter(|version| version.catalogue == 0));
        }
        UpstreamResult::Complete {
            status: 200,
            body: version.list(key),
            etag: version.etag(key),
            extra_header: ExtraHeader::None,
        }
    }
}

/// All states of upstream with the times of their changes.
pub struct History(Vec<(Ms, UpstreamState)>);

impl History {
    pub fn new(truth: UpstreamState) -> Self {
        Self(vec![(0, truth)])
    }

    pub fn now(&self) -> &UpstreamState {
        &self.0.last().expect("there is a state from the beginning").1
    }

    pub fn change(&mut self, at: Ms, change: &Change) {
        let mut truth = self.now().clone();
        truth.change(change);
        self.0.push((at, truth));
    }

    /// All states that were current at some moment from `from` on.
    pub fn since(&self, from: Ms) -> impl Iterator<Item = &UpstreamState> {
        // A state ends when the next one begins.
        let ends = self.0.iter().skip(1).map(|(at, _)| *at).chain([Ms::MAX]);
        self.0.iter().zip(ends).filter(move |(_, end)| *end > from).map(|((_, truth), _)| truth)
    }
}

/// Milliseconds, displayed in seconds: `12.345`.
pub struct Seconds(pub Ms);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
