//! Operations: what may be answered from memory, whoever has described it. The three that this
//! gateway is for are entries of the same kind as those an operator adds.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use strum::{IntoStaticStr, VariantArray};

use super::Service;
use super::headers::is_trace;
use super::template::Template;

/// A query parameter that an operation documents. Others are part of the request all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, case-sensitive.
    pub name: Cow<'static, str>,
    /// The documented default: sending it equals leaving it out.
    pub default: Option<Cow<'static, str>>,
    /// Whether an empty value is documented to equal an absent one.
    pub empty_is_absent: bool,
}

impl Parameter {
    /// One of which nothing but the name is documented.
    pub const fn named(name: Cow<'static, str>) -> Self {
        Self { name, default: None, empty_is_absent: false }
    }
}

/// Between whom the answers of an operation are shared.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Sharing {
    /// Between all callers whom upstream has proved in the project: they would be told the same.
    Project,
    /// Between nobody: each caller has entries of its own.
    Caller,
}

/// Why no two callers may share the answers of an operation, whatever is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unshareable {
    /// Its path names no project, in which callers would be told the same.
    NoProject,
    /// Headers are sent that are not part of the key.
    ForwardsHeaders,
}

impl Unshareable {
    /// For a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NoProject => "its path has no {project_id}",
            Self::ForwardsHeaders => "forward_headers sends what is not in the key (and not traceparent or tracestate)",
        }
    }
}

/// What the body of a 200 must be to count as an answer: proof for its caller, and to be kept.
#[derive(Clone, PartialEq, Eq)]
pub enum BodyCheck {
    /// A JSON object that has this field, not null, and no `error_code`.
    Field(Box<str>),
    /// JSON; no `error_code` if it is an object.
    Json,
    /// Anything at all.
    None,
}

/// Which headers of a client's request are sent upstream though they are not part of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// These.
    Named(Box<[HeaderName]>),
    /// All but those that [`super::headers::is_open`] keeps here.
    All,
}

impl Forwarded {
    /// None.
    pub fn none() -> Self {
        Self::Named(Box::default())
    }

    /// Whether an answer might depend on what is sent.
    fn may_matter(&self) -> bool {
        match self {
            Self::Named(names) => !names.iter().all(is_trace),
            Self::All => true,
        }
    }
}

/// An operation whose answers may be kept.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name in the service's API reference; unique, and a metric label.
    pub name: Arc<str>,
    /// Who answers it.
    pub service: Service,
    /// Its paths.
    pub template: Template,
    /// What its page documents.
    pub parameters: Vec<Parameter>,
    /// How long an answer stays fresh.
    pub ttl: Duration,
    /// How much longer it may be given while a new one is on its way.
    pub stale_while_revalidate: Duration,
    /// How much longer it may be given when upstream fails.
    pub stale_if_error: Duration,
    /// Between whom answers are shared.
    pub sharing: Sharing,
    /// Request headers that are part of the key, and are sent upstream.
    pub keyed_headers: Vec<HeaderName>,
    /// Request headers that are sent upstream and are not part of the key.
    pub forwarded: Forwarded,
    /// What counts as an answer.
    pub body: BodyCheck,
    /// Since which catalogue it has been described in these words.
    pub edition: Edition,
}

/// Which of those that have had a name, one after the other. Only a catalogue makes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edition(pub(super) u64);

/// How long answers stay fresh unless the configuration says otherwise.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);

/// How much longer they may be given, unless the configuration says otherwise: while a new one is on
/// its way, and in an outage.
const DEFAULT_STALE_WHILE_REVALIDATE: Duration = Duration::from_secs(10 * 60);
const DEFAULT_STALE_IF_ERROR: Duration = Duration::from_secs(60 * 60);

impl Operation {
    /// One with every setting at its default.
    pub fn new(name: &str, service: Service, template: Template, keyed_headers: Vec<HeaderName>) -> Self {
        Self {
            name: name.into(),
            service,
            template,
            parameters: Vec::new(),
            ttl: DEFAULT_TTL,
            stale_while_revalidate: DEFAULT_STALE_WHILE_REVALIDATE,
            stale_if_error: DEFAULT_STALE_IF_ERROR,
            sharing: Sharing::Project,
            keyed_headers,
            forwarded: Forwarded::none(),
            body: BodyCheck::Field("products".into()),
            edition: Edition::default(),
        }
    }

    /// Whether another is asked, answered and shared alike, where it is asked apart. How long its answers
    /// live is not compared: each is given a life when it comes, and keeps that.
    pub(super) fn is_described_as(&self, other: &Self) -> bool {
        // Whatever is added here has to be compared, or named as one that doesn't matter.
        let Self {
            name,
            service: _,
            template,
            parameters,
            ttl: _,
            stale_while_revalidate: _,
            stale_if_error: _,
            sharing,
            keyed_headers,
            forwarded,
            body,
            edition: _,
        } = self;
        *name == other.name
            && *template == other.template
            && *parameters == other.parameters
            && *sharing == other.sharing
            && *keyed_headers == other.keyed_headers
            && *forwarded == other.forwarded
            && *body == other.body
    }

    /// What its answers depend on and mean, as text that other processes can compare. Lifetimes are no part of it.
    pub(crate) fn meaning(&self) -> String {
        let Self { name, service, template, parameters, sharing, keyed_headers, forwarded, body, .. } = self;
        format!("{name} {service:?} {template:?} {parameters:?} {sharing:?} {keyed_headers:?} {forwarded:?} {body:?}")
    }

    /// Why its answers must not be shared, if that is so.
    pub fn unshareable(&self) -> Option<Unshareable> {
        if !self.template.has_project() {
            Some(Unshareable::NoProject)
        } else if self.forwarded.may_matter() {
            Some(Unshareable::ForwardsHeaders)
        } else {
            None
        }
    }
}

/// An operation is known by its name, as long as it is described in the same words. What has its name after that is
/// another, and nothing that is remembered of the one is remembered of the other.
impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.edition == other.edition
    }
}

impl Eq for Operation {}

impl Hash for Operation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// v2 pages say nothing of empty values, so there an empty value is a value.
const fn v2(name: &'static str) -> Parameter {
    Parameter::named(Cow::Borrowed(name))
}

const fn v2_with_default(name: &'static str, default: &'static str) -> Parameter {
    Parameter { name: Cow::Borrowed(name), default: Some(Cow::Borrowed(default)), empty_is_absent: false }
}

/// The v1 page filters by a parameter "if it is not empty".
const fn v1(name: &'static str) -> Parameter {
    Parameter { name: Cow::Borrowed(name), default: None, empty_is_absent: true }
}

/// Name, service, path and parameters of the product lists.
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

/// The product lists, with these keyed headers.
pub(super) fn built_in(keyed_headers: &[HeaderName]) -> Vec<Arc<Operation>> {
    let operations = BUILT_IN.iter().filter_map(|&(name, service, path, parameters)| {
        // Every path of the table is one; a test finds all three.
        let operation = Operation::new(name, service, path.parse().ok()?, keyed_headers.to_vec());
        Some(Arc::new(Operation { parameters: parameters.to_vec(), ..operation }))
    });
    operations.collect()
}

/// Whether an operation is one of the product lists, whose path and service are not the operator's
/// to say.
pub(crate) fn is_built_in(name: &str) -> bool {
    BUILT_IN.iter().any(|(known, ..)| *known == name)
}
