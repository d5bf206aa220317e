//! The small world of the model: five callers, three scopes, four questions, and what upstream would
//! answer to whom at every moment of it.
//!
//! Small, so that requests meet. What upstream holds to be true is kept here with its whole past, and
//! nothing in it knows of the gateway: it is what a body that was served is judged by in the end.

use std::fmt;

/// Milliseconds since a sequence began.
pub type Ms = u64;

pub const SECOND: Ms = 1000;

/// Numbers of callers, scopes and keys; those of requests go on counting through a sequence.
pub type CallerId = usize;
pub type ScopeId = usize;
pub type KeyId = usize;
pub type RequestId = u32;

pub const CALLERS: usize = 5;

/// An operation in a project.
pub struct Scope {
    pub operation: &'static str,
    pub project: &'static str,
    /// Whether callers share its answers, by configuration.
    pub is_shared: bool,
}

/// Any two differ in the operation or in the project, so that a purge of either takes two of them.
pub const SCOPES: [Scope; 3] = [
    Scope { operation: "ListProducts", project: "p1", is_shared: true },
    Scope { operation: "ListProducts", project: "p2", is_shared: true },
    Scope { operation: "ListProduct", project: "p1", is_shared: false },
];

/// What can be asked: a scope, and the target to ask it at.
pub const KEYS: [(ScopeId, &str); 4] =
    [(0, "/v2/p1/products"), (0, "/v2/p1/products?os_type=Linux"), (1, "/v2/p2/products"), (2, "/v1/p1/product")];

pub fn scope_of(key: KeyId) -> ScopeId {
    KEYS[key].0
}

/// How many services there are: one for each operation.
pub const SERVICES: usize = 2;

pub fn service_of_scope(scope: ScopeId) -> usize {
    usize::from(scope == 2)
}

pub fn service_of(key: KeyId) -> usize {
    service_of_scope(scope_of(key))
}

/// A request of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheRequest {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
    /// Whether it has an unsafe method, and so goes on as it is.
    pub is_unsafe: bool,
    /// Whether it comes straight from a client, by no other gateway.
    pub is_plain: bool,
    pub spelling: Spelling,
    pub wish: RequestDirectives,
    /// The list that the client has already, and need not be sent again.
    pub has: Option<Version>,
}

/// How a client writes its token. To upstream, which looks for a token where it can, all of these are one caller's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spelling {
    Plain,
    /// In HTTP/1 with blanks, which are no part of it.
    BlankBefore,
    BlankAfter,
    BlanksAround,
    /// In HTTP/2 with blanks, which must not be.
    BlanksInHttp2,
    /// In two fields.
    Twice,
    /// With another caller's in a field of the same name, or nearly so.
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

    /// One for each request, whoever sends it.
    pub fn of(id: RequestId) -> Self {
        Self::ALL[id as usize % Self::ALL.len()]
    }

    /// Whether it may be read in more than one way.
    pub fn is_ambiguous(self) -> bool {
        matches!(self, Self::BlanksInHttp2 | Self::Twice | Self::WithAnother | Self::WithAnotherUnderscored)
    }

    /// The version of HTTP that it is a spelling in.
    pub fn version(self) -> http::Version {
        if self == Self::BlanksInHttp2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 }
    }

    /// Names and values of the fields of a caller's request.
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

/// What a client wishes for besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestDirectives {
    Nothing,
    /// Nothing from memory.
    NoCache,
    /// Nothing older.
    MaxAge(Ms),
    /// Nothing that is fresh for less.
    MinFresh(Ms),
    /// Only from memory.
    OnlyIfCached,
    /// Nothing that is kept.
    NoStore,
}

impl RequestDirectives {
    /// Name and value of the header that says so. There are several ways to say some.
    fn header(self, id: RequestId) -> Option<(&'static str, String)> {
        let control = |text: String| Some(("cache-control", text));
        match self {
            Self::Nothing => None,
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
    /// Names and values of the headers that say what the client wishes for.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let has = self.has.map(|has| ("if-none-match", format!("{}, W/{}", r#""another""#, has.to_tag())));
        self.wish.header(self.id).into_iter().chain(has)
    }
}

/// The credential a caller presents.
pub fn token(caller: CallerId) -> String {
    format!("token-{caller}")
}

/// Which list it is: there is one for each catalogue and view. Upstream tags some of them (`ETag`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Version {
    pub catalogue: u8,
    pub view: u8,
}

impl Version {
    pub fn list(self, key: KeyId) -> String {
        format!(r#"{{"products":["key {key} catalogue {} view {}"]}}"#, self.catalogue, self.view)
    }

    /// Upstream's tag of it, where it gives one.
    pub fn tagged(self, key: KeyId) -> Option<Self> {
        (self.catalogue != 2 && scope_of(key) != 1).then_some(self)
    }

    pub fn to_tag(self) -> String {
        format!(r#""c{}v{}""#, self.catalogue, self.view)
    }

    pub fn from_tag(tag: &str) -> Option<Self> {
        let (catalogue, view) = tag.strip_prefix("\"c")?.strip_suffix('"')?.split_once('v')?;
        Some(Self { catalogue: catalogue.parse().ok()?, view: view.parse().ok()? })
    }
}

/// What upstream says to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A whole answer.
    Whole { status: u16, body: String, tag: Option<Version>, besides: Besides },
    /// 304: the one asked about is still the one, or another that it names.
    NotModified(Option<Version>),
    /// None.
    Failed(Failure),
}

/// What a whole answer's head says besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Besides {
    Nothing,
    /// That it is not to be kept.
    NoStore,
    /// That it varies on the credential.
    Vary,
    /// When to ask again; or nothing that can be read.
    RetryAfter(Option<Ms>),
}

/// Why there is no whole answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    /// The connection is refused.
    Connect,
    /// The name is not resolved.
    Unreachable,
    /// The gateway itself can't make the call.
    Local,
    Timeout,
    /// It was too large to be read whole; this was its status.
    TooLarge(u16),
    /// It was refused with this status, and the body that says why did not end.
    Refused(u16),
}

impl Said {
    pub fn whole(status: u16, body: impl Into<String>) -> Self {
        Self::Whole { status, body: body.into(), tag: None, besides: Besides::Nothing }
    }

    /// The same, with more in its head.
    pub fn with(self, besides: Besides) -> Self {
        match self {
            Self::Whole { status, body, tag, .. } => Self::Whole { status, body, tag, besides },
            other => other,
        }
    }

    /// The same, but too large.
    pub fn too_large(self) -> Self {
        match self {
            Self::Whole { status: 401 | 403, .. } => self.without_end(),
            Self::Whole { status, .. } => Self::Failed(Failure::TooLarge(status)),
            other => other,
        }
    }

    /// The same in many words, if it is a refusal.
    pub fn wordy(self) -> Self {
        match self {
            Self::Whole { status, body, tag, besides } if status != 200 => {
                Self::Whole { status, body: body + &" ".repeat(9_000), tag, besides }
            }
            short => short,
        }
    }

    /// The list that it amounts to, said to a call that has asked about one or not. With one it proves the
    /// caller it was said to.
    pub fn list(&self, key: KeyId, asked: Option<Version>) -> Option<String> {
        match self {
            Self::Whole { status: 200, body, .. } if is_list(body) => Some(body.clone()),
            Self::NotModified(named) => {
                let asked = asked.filter(|asked| named.is_none_or(|named| named == *asked))?;
                Some(asked.list(key))
            }
            _ => None,
        }
    }

    /// Whether it says of a request with an unsafe method that something has been changed: it is no error, in status
    /// or body.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Whole { status: 200..=399, body, .. } => !body.contains("error_code"),
            Self::Whole { .. } | Self::Failed(_) => false,
            Self::NotModified(_) => true,
        }
    }

    /// The status, if it refuses the caller.
    pub fn denial(&self) -> Option<u16> {
        match self {
            Self::Whole { status: status @ (401 | 403), .. } | Self::Failed(Failure::Refused(status)) => Some(*status),
            _ => None,
        }
    }

    /// The same refusal, with a body that does not end.
    pub fn without_end(self) -> Self {
        self.denial().map_or(self, |status| Self::Failed(Failure::Refused(status)))
    }

    /// The same refusal in the words of another one, which has the same head.
    pub fn with_body_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::Whole { status, tag, besides, .. }, Self::Whole { body, .. }) => {
                Self::Whole { status, body, tag, besides }
            }
            (said, _) => said,
        }
    }

    /// Whether a denial is about the credential, wherever it is used in that service.
    pub fn denies_credential(&self) -> bool {
        match self {
            Self::Whole { status: 401, body, .. } => !body.contains(r#""error_code":"WKS."#),
            Self::Failed(failure) => *failure == Failure::Refused(401),
            _ => false,
        }
    }

    /// Whether upstream has answered, other than with a failure.
    pub fn has_answered(&self) -> bool {
        match self {
            Self::Whole { status, .. } => *status < 500,
            Self::NotModified(_) => true,
            Self::Failed(failure) => matches!(failure, Failure::Refused(_)),
        }
    }

    pub fn is_server_error(&self) -> bool {
        matches!(self, Self::Whole { status: 500..=507 | 509..=599, .. })
    }

    /// Whether it says nothing of the credential or the question, only that upstream is not well. A call
    /// that has asked about another list, or about none, can make nothing of a 304.
    pub fn is_failure(&self, asked: Option<Version>) -> bool {
        match self {
            Self::Whole { status, .. } => matches!(status, 500..=507 | 509..=599 | 429),
            Self::NotModified(_) => self.list(0, asked).is_none(),
            Self::Failed(failure) => !matches!(failure, Failure::TooLarge(_) | Failure::Refused(_)),
        }
    }
}

/// Whether a body is one of this world's product lists.
pub fn is_list(body: &str) -> bool {
    body.starts_with(r#"{"products":["#)
}

/// What upstream holds to be true at a moment.
#[derive(Clone, Debug)]
pub struct Truth {
    is_valid: [bool; CALLERS],
    is_permitted: [[bool; SCOPES.len()]; CALLERS],
    catalogue: u8,
    views_differ: [bool; SCOPES.len()],
}

/// How the truth changes.
#[derive(Clone, Debug)]
pub enum Change {
    /// A token is revoked or expires.
    Revoke(CallerId),
    /// It is valid, again.
    Restore(CallerId),
    /// A caller loses a permission.
    Forbid(CallerId, ScopeId),
    /// It has the permission, again.
    Permit(CallerId, ScopeId),
    /// The products are those of this catalogue.
    Catalogue(u8),
    /// Whether callers are shown different products.
    Views(ScopeId, bool),
}

impl Truth {
    /// Everyone is known in the first scope. The last caller's token is of no other project, and the one
    /// before has no other permission.
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

    /// Whether a caller's credential is good for a scope.
    pub fn proves(&self, caller: CallerId, scope: ScopeId) -> bool {
        self.is_valid[caller] && self.is_permitted[caller][scope]
    }

    /// The products that a caller would be shown. There are two views where views differ.
    pub fn version(&self, caller: CallerId, key: KeyId) -> Version {
        let view = if self.views_differ[scope_of(key)] && caller % 2 == 1 { 1 } else { 0 };
        Version { catalogue: self.catalogue, view }
    }

    /// The answer to a question, by one who perhaps has a list already.
    pub fn answer(&self, caller: CallerId, key: KeyId, asked: Option<Version>) -> Said {
        if !self.is_valid[caller] {
            return Said::whole(401, format!(r#"{{"error_code":"APIGW.0307","error_msg":"token of {caller}"}}"#));
        }
        if !self.is_permitted[caller][scope_of(key)] {
            return Said::whole(403, format!(r#"{{"error_code":"WKS.0403","error_msg":"policy of {caller}"}}"#));
        }
        let version = self.version(caller, key);
        if asked == Some(version) {
            // It should name it, and doesn't always.
            return Said::NotModified(Some(version).filter(|version| version.catalogue == 0));
        }
        Said::Whole { status: 200, body: version.list(key), tag: version.tagged(key), besides: Besides::Nothing }
    }
}

/// The truth, and all that it has been.
pub struct History(Vec<(Ms, Truth)>);

impl History {
    pub fn new(truth: Truth) -> Self {
        Self(vec![(0, truth)])
    }

    /// The truth at present.
    pub fn now(&self) -> &Truth {
        &self.0.last().expect("there is a truth from the beginning").1
    }

    pub fn change(&mut self, at: Ms, change: &Change) {
        let mut truth = self.now().clone();
        truth.change(change);
        self.0.push((at, truth));
    }

    /// Everything that was true at some moment from `from` on.
    pub fn since(&self, from: Ms) -> impl Iterator<Item = &Truth> {
        // What was true when the next began is no longer.
        let ends = self.0.iter().skip(1).map(|(at, _)| *at).chain([Ms::MAX]);
        self.0.iter().zip(ends).filter(move |(_, end)| *end > from).map(|((_, truth), _)| truth)
    }
}

/// How long something is, for a person: `12.345`.
pub struct Seconds(pub Ms);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
