//! Operations: requests that may be answered from memory. The three built-in ones and those that an operator adds are
//! of the same type and must not be treated differently.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use strum::{IntoStaticStr, VariantArray};

use super::Service;
use super::adaptive_ttl::AdaptiveTtl;
use super::headers::is_trace;
use super::template::Template;

/// A documented query parameter of an operation. Other parameters are part of the key, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Case-sensitive.
    pub name: Cow<'static, str>,
    /// The documented default. A parameter with this value equals its absence.
    pub default: Option<Cow<'static, str>>,
    /// Whether the documentation says that an empty value equals absence.
    pub empty_is_absent: bool,
}

impl Parameter {
    /// A parameter without a default.
    pub const fn named(name: Cow<'static, str>) -> Self {
        Self { name, default: None, empty_is_absent: false }
    }
}

/// Which callers share the responses of an operation.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Sharing {
    /// All callers with a grant in the project share. Upstream gives them the same responses.
    Project,
    /// None. Each caller has its own entries.
    Caller,
}

/// Why callers must not share the responses of an operation, whatever is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnshareableReason {
    /// The path has no project, in which callers would get the same responses.
    NoProject,
    /// Headers are forwarded that are not part of the key.
    ForwardsHeaders,
}

impl UnshareableReason {
    /// A clause for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NoProject => "its path has no {project_id}",
            Self::ForwardsHeaders => {
                "forward_headers sends headers that are not in the key (other than traceparent and tracestate)"
            }
        }
    }
}

/// What the body of a 200 must be to prove the caller and to be stored.
#[derive(Clone, PartialEq, Eq)]
pub enum BodyCheck {
    /// A JSON object that has this field, not null, and no `error_code`.
    Field(Box<str>),
    /// JSON. If it is an object, it has no `error_code`.
    Json,
    /// Any body.
    None,
}

/// Which request headers are sent upstream although they are not part of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Named(Box<[HeaderName]>),
    /// All for which [`super::headers::is_configurable`] is true.
    All,
}

impl Forwarded {
    pub fn none() -> Self {
        Self::Named(Box::default())
    }

    /// Whether responses may depend on the forwarded headers.
    fn may_change_responses(&self) -> bool {
        match self {
            Self::Named(names) => !names.iter().all(is_trace),
            Self::All => true,
        }
    }
}

/// An operation, whose responses may be stored.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The name in the service's API reference. Unique; the value of a metric label.
    pub name: Arc<str>,
    pub service: Service,
    pub template: Template,
    /// The documented query parameters.
    pub parameters: Vec<Parameter>,
    /// How long a response stays fresh. With an adaptive ttl: while the share of stale answers is unknown.
    pub ttl: Duration,
    /// `None` if `ttl` is fixed.
    pub adaptive_ttl: Option<AdaptiveTtl>,
    /// How long after that it may be served stale during revalidation (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// How long after that it may be served stale when upstream fails (RFC 5861 §4).
    pub stale_if_error: Duration,
    pub sharing: Sharing,
    /// Request headers that are part of the key and are sent upstream.
    pub keyed_headers: Vec<HeaderName>,
    /// Request headers that are sent upstream but are not part of the key.
    pub forwarded: Forwarded,
    pub body: BodyCheck,
    /// The first catalogue in a row that has had this definition.
    pub generation: Generation,
}

/// The number of a catalogue. Distinguishes operations that have had one name one after the other. Only a catalogue
/// creates one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(pub(super) u64);

/// The default of `ttl`: 5 minutes.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);

/// The default of `stale_while_revalidate`: 10 minutes.
const DEFAULT_STALE_WHILE_REVALIDATE: Duration = Duration::from_secs(10 * 60);
/// The default of `stale_if_error`: 1 hour.
const DEFAULT_STALE_IF_ERROR: Duration = Duration::from_secs(60 * 60);

impl Operation {
    /// An operation with default settings.
    pub fn new(name: &str, service: Service, template: Template, keyed_headers: Vec<HeaderName>) -> Self {
        Self {
            name: name.into(),
            service,
            template,
            parameters: Vec::new(),
            ttl: DEFAULT_TTL,
            adaptive_ttl: None,
            stale_while_revalidate: DEFAULT_STALE_WHILE_REVALIDATE,
            stale_if_error: DEFAULT_STALE_IF_ERROR,
            sharing: Sharing::Project,
            keyed_headers,
            forwarded: Forwarded::none(),
            body: BodyCheck::Field("products".into()),
            generation: Generation::default(),
        }
    }

    /// Whether requests, responses and sharing are defined as in another operation. The origins are not compared.
    /// Lifetimes are not compared either: each entry gets its lifetime when it is stored, and keeps it.
    pub(super) fn has_definition_of(&self, other: &Self) -> bool {
        // A new field must be compared, or be ignored here by name.
        let Self {
            name,
            service: _,
            template,
            parameters,
            ttl: _,
            adaptive_ttl: _,
            stale_while_revalidate: _,
            stale_if_error: _,
            sharing,
            keyed_headers,
            forwarded,
            body,
            generation: _,
        } = self;
        *name == other.name
            && *template == other.template
            && *parameters == other.parameters
            && *sharing == other.sharing
            && *keyed_headers == other.keyed_headers
            && *forwarded == other.forwarded
            && *body == other.body
    }

    /// The definition as text that other processes can compare, without lifetimes.
    pub(crate) fn meaning(&self) -> String {
        let Self { name, service, template, parameters, sharing, keyed_headers, forwarded, body, .. } = self;
        format!("{name} {service:?} {template:?} {parameters:?} {sharing:?} {keyed_headers:?} {forwarded:?} {body:?}")
    }

    /// Why callers must not share the responses; `None` if they may.
    pub fn unshareable(&self) -> Option<UnshareableReason> {
        if !self.template.has_project() {
            Some(UnshareableReason::NoProject)
        } else if self.forwarded.may_change_responses() {
            Some(UnshareableReason::ForwardsHeaders)
        } else {
            None
        }
    }
}

/// Operations are equal if they have the same name and generation. An operation whose definition has changed is another
/// one, so that nothing stored for the old one is used for the new one.
impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.generation == other.generation
    }
}

impl Eq for Operation {}

impl Hash for Operation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A parameter of a v2 operation. Its documentation does not say that an empty value equals absence.
const fn v2(name: &'static str) -> Parameter {
    Parameter::named(Cow::Borrowed(name))
}

const fn v2_with_default(name: &'static str, default: &'static str) -> Parameter {
    Parameter { name: Cow::Borrowed(name), default: Some(Cow::Borrowed(default)), empty_is_absent: false }
}

/// A parameter of the v1 operation. Its documentation says that the list is filtered by it "if it is not empty".
const fn v1(name: &'static str) -> Parameter {
    Parameter { name: Cow::Borrowed(name), default: None, empty_is_absent: true }
}

/// The product lists: name, service, path and query parameters.
static BUILT_IN: [(&str, Service, &str, &[Parameter]); 3] = [
    (
        "ListProducts",
        Service::Workspace,
        "/v2/{project_id}/products",
        &[
            v2("product_id"),
            v2("availability_zone"),
            v2("os_type"),
            v2("charge_mode"),
            v2("architecture"),
            v2("package_type"),
            v2_with_default("limit", "100"),
            v2_with_default("offset", "0"),
        ],
    ),
    (
        "ListSharerProducts",
        Service::Workspace,
        "/v2/{project_id}/products/sharer",
        &[
            v2("product_id"),
            v2("charge_mode"),
            v2("package_type"),
            v2("share_space_size"),
            v2("is_gpu"),
            v2_with_default("limit", "100"),
            v2_with_default("offset", "0"),
        ],
    ),
    (
        "ListProduct",
        Service::AppStream,
        "/v1/{project_id}/product",
        &[
            v1("product_id"),
            v1("flavor_id"),
            v1("availability_zone"),
            v1("os_type"),
            v1("charge_mode"),
            v1("architecture"),
            v1("package_type"),
        ],
    ),
];

pub(super) fn built_in(keyed_headers: &[HeaderName]) -> Vec<Arc<Operation>> {
    let operations = BUILT_IN.iter().filter_map(|&(name, service, path, parameters)| {
        // Every path of the table parses: a test finds all three operations.
        let operation = Operation::new(name, service, path.parse().ok()?, keyed_headers.to_vec());
        Some(Arc::new(Operation { parameters: parameters.to_vec(), ..operation }))
    });
    operations.collect()
}

/// Whether an operation is one of the product lists. An operator cannot configure their path and service.
pub(crate) fn is_built_in(name: &str) -> bool {
    BUILT_IN.iter().any(|(known, ..)| *known == name)
}
