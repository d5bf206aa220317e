//! What the two upstream services offer, as data: the operations this gateway can answer from
//! memory, and which service everything else belongs to.
//!
//! One table for routing, keys, `explain` and the simulator. No behaviour beyond looking things up:
//! what a request asks for is read in [`crate::request`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::{Authority, Scheme, Uri};

/// One of the two upstream services. Their paths never collide, so one listener serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Workspace: desktops, their products, and everything under `/v2` and `/v3`.
    Workspace,
    /// Workspace Application (app streaming): nearly everything under `/v1`.
    AppStream,
}

impl Service {
    /// Both, in the order tables show them.
    pub const ALL: [Self; 2] = [Self::Workspace, Self::AppStream];

    /// The name used in metric labels, log fields and host names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "workspace",
            Self::AppStream => "appstream",
        }
    }

    /// The public endpoint of this service in a region.
    pub fn url_in(self, region: &str) -> String {
        format!("https://{}.{region}.myhuaweicloud.com", self.as_str())
    }
}

/// Scheme and authority of an upstream service. Part of every key: another URL, another key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    authority: Authority,
}

impl Origin {
    /// An origin of the given parts; the caller has checked that the scheme is http or https.
    pub fn new(scheme: Scheme, authority: Authority) -> Self {
        Self { scheme, authority }
    }

    /// Host and port as written in the configuration; sent as `Host`.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether requests to it travel in the clear.
    pub fn is_plaintext(&self) -> bool {
        self.scheme == Scheme::HTTP
    }

    /// The absolute URI of a target on this origin.
    ///
    /// # Errors
    /// If the target is no path and query, or too long for a URI.
    pub fn uri(&self, target: &str) -> Result<Uri, http::Error> {
        Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(target).build()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A query parameter that an operation documents. Others are part of the request all the same.
#[derive(Debug)]
pub struct Parameter {
    /// Its name, case-sensitive.
    pub name: &'static str,
    /// The documented default: sending it equals leaving it out.
    pub default: Option<&'static str>,
    /// Whether an empty value is documented to equal an absent one.
    pub empty_is_absent: bool,
}

/// Between whom the answers of an operation are shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Between all callers whom upstream has proved in the project: they would be told the same.
    Project,
    /// Between nobody: each caller has entries of its own.
    Caller,
}

impl Sharing {
    /// The name used in the configuration and by `explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Caller => "caller",
        }
    }
}

/// An operation whose answers may be kept.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name in the service's API reference; unique, and a metric label.
    pub name: &'static str,
    /// Who answers it.
    pub service: Service,
    /// Its path, with `{project_id}` standing for one segment.
    pub template: &'static str,
    /// What its page documents.
    pub parameters: &'static [Parameter],
    /// How long an answer stays fresh.
    pub ttl: Duration,
    /// How much longer it may be given while upstream is asked again.
    pub stale_while_revalidate: Duration,
    /// How much longer than its `ttl` it may be given when upstream fails.
    pub stale_if_error: Duration,
    /// Between whom answers are shared.
    pub sharing: Sharing,
}

impl Operation {
    /// The path of this operation in a project.
    pub fn path(&self, project_id: &str) -> String {
        self.template.replace(PROJECT_ID, project_id)
    }
}

/// An operation is known by its name.
impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Operation {}

impl Hash for Operation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

const PROJECT_ID: &str = "{project_id}";

/// v2 pages say nothing of empty values, so there an empty value is a value.
const fn v2(name: &'static str) -> Parameter {
    Parameter { name, default: None, empty_is_absent: false }
}

const fn v2_with_default(name: &'static str, default: &'static str) -> Parameter {
    Parameter { name, default: Some(default), empty_is_absent: false }
}

/// The v1 page filters by a parameter "if it is not empty".
const fn v1(name: &'static str) -> Parameter {
    Parameter { name, default: None, empty_is_absent: true }
}

/// How long answers stay fresh unless the configuration says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);

/// How much longer they may be given while upstream is asked again, unless the configuration says otherwise.
const DEFAULT_STALE_WHILE_REVALIDATE: Duration = Duration::from_secs(10 * 60);

/// How much longer they may be given in an outage, unless the configuration says otherwise.
const DEFAULT_STALE_IF_ERROR: Duration = Duration::from_secs(60 * 60);

static BUILT_IN: [Operation; 3] = [
    Operation {
        name: "ListProducts",
        service: Service::Workspace,
        template: "/v2/{project_id}/products",
        parameters: &[
            v2("product_id"),
            v2("availability_zone"),
            v2("os_type"),
            v2("charge_mode"),
            v2("architecture"),
            v2("package_type"),
            v2_with_default("limit", "100"),
            v2_with_default("offset", "0"),
        ],
        ttl: DEFAULT_TTL,
        stale_while_revalidate: DEFAULT_STALE_WHILE_REVALIDATE,
        stale_if_error: DEFAULT_STALE_IF_ERROR,
        sharing: Sharing::Project,
    },
    Operation {
        name: "ListSharerProducts",
        service: Service::Workspace,
        template: "/v2/{project_id}/products/sharer",
        parameters: &[
            v2("product_id"),
            v2("charge_mode"),
            v2("package_type"),
            v2("share_space_size"),
            v2("is_gpu"),
            v2_with_default("limit", "100"),
            v2_with_default("offset", "0"),
        ],
        ttl: DEFAULT_TTL,
        stale_while_revalidate: DEFAULT_STALE_WHILE_REVALIDATE,
        stale_if_error: DEFAULT_STALE_IF_ERROR,
        sharing: Sharing::Project,
    },
    Operation {
        name: "ListProduct",
        service: Service::AppStream,
        template: "/v1/{project_id}/product",
        parameters: &[
            v1("product_id"),
            v1("flavor_id"),
            v1("availability_zone"),
            v1("os_type"),
            v1("charge_mode"),
            v1("architecture"),
            v1("package_type"),
        ],
        ttl: DEFAULT_TTL,
        stale_while_revalidate: DEFAULT_STALE_WHILE_REVALIDATE,
        stale_if_error: DEFAULT_STALE_IF_ERROR,
        sharing: Sharing::Project,
    },
];

/// Whose path is this? The first row that matches decides; a path without a row belongs to neither
/// service. `{name}` stands for one segment, a final `**` for any that follow.
static PASS_THROUGH: [(&str, Service); 5] = [
    ("/v1/{project_id}/app-center/**", Service::Workspace),
    ("/v2/{project_id}/job/{id}", Service::AppStream),
    ("/v1/**", Service::AppStream),
    ("/v2/**", Service::Workspace),
    ("/v3/**", Service::Workspace),
];

/// The operations in force, the headers their answers depend on, and where the services are.
#[derive(Clone, Debug)]
pub struct Catalogue {
    operations: Vec<Arc<Operation>>,
    keyed_headers: Vec<HeaderName>,
    workspace: Arc<Origin>,
    appstream: Arc<Origin>,
}

impl Catalogue {
    /// The built-in operations, asked of these two origins.
    pub fn new(workspace: Origin, appstream: Origin, keyed_headers: Vec<HeaderName>) -> Self {
        Self {
            operations: BUILT_IN.iter().cloned().map(Arc::new).collect(),
            keyed_headers,
            workspace: Arc::new(workspace),
            appstream: Arc::new(appstream),
        }
    }

    /// The operations, in the order of the table.
    pub fn operations(&self) -> &[Arc<Operation>] {
        &self.operations
    }

    /// An operation, to be adjusted to the configuration.
    pub fn operation_mut(&mut self, name: &str) -> Option<&mut Operation> {
        let found = self.operations.iter_mut().find(|operation| operation.name == name);
        found.map(Arc::make_mut)
    }

    /// Request headers that are part of every key, and are sent upstream.
    pub fn keyed_headers(&self) -> &[HeaderName] {
        &self.keyed_headers
    }

    /// Where a service is.
    pub fn origin(&self, service: Service) -> &Arc<Origin> {
        match service {
            Service::Workspace => &self.workspace,
            Service::AppStream => &self.appstream,
        }
    }

    /// The operation with this path, and the project it names.
    pub fn operation<'p>(&self, path: &'p str) -> Option<(&Arc<Operation>, &'p str)> {
        self.operations.iter().find_map(|operation| {
            let project_id = first_capture(operation.template, path)?;
            Some((operation, project_id))
        })
    }

    /// The service that a path belongs to, whether or not it is one of the operations.
    pub fn service(&self, path: &str) -> Option<Service> {
        let row = PASS_THROUGH.iter().find(|(template, _)| first_capture(template, path).is_some());
        row.map(|&(_, service)| service)
    }
}

#[cfg(test)]
impl Catalogue {
    /// For unit tests: both services at `https://upstream.example`, with these keyed headers.
    pub(crate) fn for_tests(keyed_headers: Vec<HeaderName>) -> Self {
        let origin = || Origin::new(Scheme::HTTPS, Authority::from_static("upstream.example"));
        Self::new(origin(), origin(), keyed_headers)
    }
}

/// The names of the built-in operations.
pub fn operation_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|operation| operation.name)
}

/// Matches a path against a template segment by segment, as written: nothing is decoded, so an
/// encoded spelling of a known path is an unknown path. Returns what the first `{name}` stands for
/// (empty if the template has none).
fn first_capture<'p>(template: &str, path: &'p str) -> Option<&'p str> {
    let mut captured = None;
    let mut segments = path.split('/');
    for expected in template.split('/') {
        if expected == "**" {
            return Some(captured.unwrap_or_default());
        }
        let segment = segments.next()?;
        if expected.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            captured.get_or_insert(segment);
        } else if segment != expected {
            return None;
        }
    }
    segments.next().is_none().then(|| captured.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        Catalogue::for_tests(Vec::new())
    }

    #[test]
    fn the_three_operations_are_found_by_path() {
        let catalogue = catalogue();
        let name = |path| catalogue.operation(path).map(|(operation, project)| (operation.name, project));
        assert_eq!(name("/v2/p1/products"), Some(("ListProducts", "p1")));
        assert_eq!(name("/v2/p1/products/sharer"), Some(("ListSharerProducts", "p1")));
        assert_eq!(name("/v1/p1/product"), Some(("ListProduct", "p1")));
        for other in ["/v2/p1/products/", "/v2//products", "/v2/p1/Products", "/v1/p1/products", "/v2/p1/%70roducts"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn every_other_path_belongs_to_one_service_or_to_none() {
        let catalogue = catalogue();
        for (path, service) in [
            ("/v2/p/desktops", Some(Service::Workspace)),
            ("/v3/p/anything/at/all", Some(Service::Workspace)),
            ("/v1/p/app-center/apps", Some(Service::Workspace)),
            ("/v1/p/app-groups", Some(Service::AppStream)),
            ("/v2/p/job/42", Some(Service::AppStream)),
            ("/v2/p/job/42/more", Some(Service::Workspace)),
            ("/v2/p/job/", Some(Service::Workspace)),
            ("/v4/p/products", None),
            ("/", None),
            ("*", None),
            ("/v22/p", None),
        ] {
            assert_eq!(catalogue.service(path), service, "{path}");
        }
    }

    #[test]
    fn a_project_goes_into_the_path_it_came_from() {
        for operation in catalogue().operations() {
            let path = operation.path("p-1");
            assert_eq!(
                catalogue().operation(&path).map(|(found, project)| (found.name, project)),
                Some((operation.name, "p-1"))
            );
        }
    }
}
