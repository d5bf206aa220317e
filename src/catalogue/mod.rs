//! The catalogue: the operations that the gateway can answer from memory, and the service that every other path belongs
//! to.
//!
//! Routing, keys, `explain` and the simulator use this one table. It is data with look-ups only: requests must be
//! interpreted in [`crate::request`], not here.

mod adaptive_ttl;
pub(crate) mod error_code;
pub(crate) mod headers;
mod near_miss;
mod operation;
pub(crate) mod prefix;
mod quota;
pub(crate) mod template;

use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use http::uri::{Authority, Scheme, Uri};

pub use adaptive_ttl::AdaptiveTtl;
use operation::Generation;
pub use operation::{BodyCheck, Forwarded, Operation, Sharing};
pub(crate) use operation::{DEFAULT_TTL, Parameter, is_built_in};
pub use quota::{ConfiguredQuota, Quota, QuotaPolicy};
pub(crate) use template::{PathMatch, Template};
use template::{Relation, Split};

/// An upstream service. The paths of the two built-in services do not overlap, so one listener serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Workspace: desktops, their products, and everything under `/v2` and `/v3`.
    Workspace,
    /// Workspace Application (app streaming): nearly everything under `/v1`.
    AppStream,
    /// An operator's own upstream, configured for an operation.
    Own(OwnService),
}

/// The index of an operator's own service in its catalogue. Only a catalogue creates one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnService(u8);

impl Service {
    /// The built-in services, in the order in which tables show them.
    pub const ALL: [Self; 2] = [Self::Workspace, Self::AppStream];

    /// The name in metric labels and log fields, and for built-in services in host names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "workspace",
            Self::AppStream => "appstream",
            Self::Own(_) => "own",
        }
    }

    /// The public endpoint of a built-in service in a region.
    pub fn url_in(self, region: &str) -> String {
        format!("https://{}.{region}.myhuaweicloud.com", self.as_str())
    }
}

/// The scheme and authority of an upstream service. It is part of every key, so another URL gives other keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    authority: Authority,
}

impl Origin {
    /// The scheme must be http or https.
    pub fn new(scheme: Scheme, authority: Authority) -> Self {
        Self { scheme, authority }
    }

    /// The host and port as configured. Sent as `Host`.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn is_plaintext(&self) -> bool {
        self.scheme == Scheme::HTTP
    }

    /// The absolute URI of a target.
    ///
    /// # Errors
    /// If the target is not a path with a query, or is too long for a URI.
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

/// The services of paths that are not an operation's. The first matching row decides; a path without a row belongs to
/// no service. `{name}` matches one segment, and a final `**` all that follow.
static PASS_THROUGH: [(&str, Service); 5] = [
    ("/v1/{project_id}/app-center/**", Service::Workspace),
    ("/v2/{project_id}/job/{id}", Service::AppStream),
    ("/v1/**", Service::AppStream),
    ("/v2/**", Service::Workspace),
    ("/v3/**", Service::Workspace),
];

/// The operations, and the origins of the services.
#[derive(Clone, Debug)]
pub struct Catalogue {
    operations: Vec<Arc<Operation>>,
    workspace: Arc<Origin>,
    appstream: Arc<Origin>,
    own: Vec<Arc<Origin>>,
    /// How many catalogues this process has used before.
    generation: Generation,
}

/// Why an operation cannot be added.
#[derive(Debug)]
pub enum AddOperationError {
    /// Another operation has the same name.
    Name,
    /// A path would match this operation, too.
    Path(Arc<Operation>),
    /// There are [`MAX_OPERATIONS`] already.
    Full,
}

/// The most operations. Each is a value of a metric label, and is compared with the path of each request.
pub(crate) const MAX_OPERATIONS: usize = 64;

impl Catalogue {
    /// A catalogue of the built-in operations.
    pub fn new(workspace: Origin, appstream: Origin, keyed_headers: Vec<HeaderName>) -> Self {
        Self {
            operations: operation::built_in(&keyed_headers),
            workspace: Arc::new(workspace),
            appstream: Arc::new(appstream),
            own: Vec::new(),
            generation: Generation::default(),
        }
    }

    /// Makes this the successor of the active catalogue. An operation with the same definition stays equal to the one
    /// before. Any other operation is new, even if an earlier catalogue had the same definition.
    pub fn follow(&mut self, before: &Self) {
        let origins: Vec<_> = self.operations.iter().map(|it| Arc::clone(self.origin(it.service))).collect();
        self.generation = Generation(before.generation.0 + 1);
        for (operation, origin) in self.operations.iter_mut().zip(origins) {
            let is_same =
                |known: &&Arc<Operation>| known.has_definition_of(operation) && *before.origin(known.service) == origin;
            let same = before.operations.iter().find(is_same);
            Arc::make_mut(operation).generation = same.map_or(self.generation, |known| known.generation);
        }
    }

    /// The operations of an earlier catalogue that were removed or have got another definition.
    pub fn removed_since<'c>(&self, before: &'c Self) -> impl Iterator<Item = &'c Arc<Operation>> {
        before.operations.iter().filter(|operation| !self.operations.contains(operation))
    }

    /// The operations: built-in ones first, then the operator's in the order of the configuration.
    pub fn operations(&self) -> &[Arc<Operation>] {
        &self.operations
    }

    /// For the configuration to change an operation's settings.
    pub fn operation_mut(&mut self, name: &str) -> Option<&mut Operation> {
        let found = self.operations.iter_mut().find(|operation| *operation.name == *name);
        found.map(Arc::make_mut)
    }

    /// Adds an operation. Two operations must not match the same path, so that their order does not matter.
    pub fn add(&mut self, operation: Operation) -> Result<(), AddOperationError> {
        if self.operations.iter().any(|other| **other == operation) {
            return Err(AddOperationError::Name);
        }
        if let Some(other) = self.operations.iter().find(|other| other.template.overlaps(&operation.template)) {
            return Err(AddOperationError::Path(Arc::clone(other)));
        }
        if self.operations.len() >= MAX_OPERATIONS {
            return Err(AddOperationError::Full);
        }
        self.operations.push(Arc::new(operation));
        Ok(())
    }

    /// The service at an origin. Adds an own service if there is none. `None` if there are [`MAX_OPERATIONS`] own
    /// services.
    pub fn service_at(&mut self, origin: Origin) -> Option<Service> {
        if let Some(known) = self.services().find(|&service| **self.origin(service) == origin) {
            return Some(known);
        }
        let index = u8::try_from(self.own.len()).ok().filter(|&index| usize::from(index) < MAX_OPERATIONS)?;
        self.own.push(Arc::new(origin));
        Some(Service::Own(OwnService(index)))
    }

    /// All services, including the operator's own.
    pub fn services(&self) -> impl Iterator<Item = Service> {
        let own = (0..).map(|index| Service::Own(OwnService(index))).take(self.own.len());
        Service::ALL.into_iter().chain(own)
    }

    pub fn origin(&self, service: Service) -> &Arc<Origin> {
        match service {
            Service::Workspace => &self.workspace,
            Service::AppStream => &self.appstream,
            // The index is valid: this catalogue has created it, and own services are never removed.
            Service::Own(OwnService(index)) => &self.own[usize::from(index)],
        }
    }

    /// The operation that a path matches.
    pub fn operation<'p>(&self, path: &'p str) -> Option<(&Arc<Operation>, PathMatch<'p>)> {
        let split = Split::of(path)?;
        let operation = self.operations.iter().find(|operation| operation.template.matches(&split))?;
        Some((operation, split.path_match()))
    }

    /// The service that a path belongs to by [`PASS_THROUGH`], even if it is also an operation's.
    pub fn service(&self, path: &str) -> Option<Service> {
        let row = PASS_THROUGH.iter().find(|(pattern, _)| matches_pattern(pattern, path));
        row.map(|&(_, service)| service)
    }
}

/// The service that all paths of a template belong to. `None` if they belong to several services or to none.
pub(crate) fn owner(template: &Template) -> Option<Service> {
    let mut rows = PASS_THROUGH.iter().map(|&(pattern, service)| (template.relation(pattern), service));
    let (relation, service) = rows.find(|(relation, _)| *relation != Relation::Apart)?;
    (relation == Relation::Within).then_some(service)
}

#[cfg(test)]
impl Catalogue {
    /// Both services are at `https://upstream.example`.
    pub(crate) fn for_tests(keyed_headers: Vec<HeaderName>) -> Self {
        let origin = || Origin::new(Scheme::HTTPS, Authority::from_static("upstream.example"));
        Self::new(origin(), origin(), keyed_headers)
    }
}

/// Matches a path with a pattern, segment by segment and without decoding.
fn matches_pattern(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for expected in pattern.split('/') {
        if expected == "**" {
            return true;
        }
        let matches = |segment: &str| if expected.starts_with('{') { !segment.is_empty() } else { segment == expected };
        if !segments.next().is_some_and(matches) {
            return false;
        }
    }
    segments.next().is_none()
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
        let name = |path| {
            let (operation, path_match) = catalogue.operation(path)?;
            Some((operation.name.to_string(), operation.template.project_id(path_match.path())))
        };
        assert_eq!(name("/v2/p1/products"), Some(("ListProducts".to_owned(), "p1")));
        assert_eq!(name("/v2/p1/products/sharer"), Some(("ListSharerProducts".to_owned(), "p1")));
        assert_eq!(name("/v1/p1/product"), Some(("ListProduct".to_owned(), "p1")));
        for other in ["/v2/p1/products/", "/v2//products", "/v2/p1/Products", "/v1/p1/products", "/v2/p1/%70roducts"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn every_other_path_belongs_to_one_service_or_none() {
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
    fn a_template_belongs_to_a_service_if_all_its_paths_do() {
        for (template, service) in [
            ("/v2/{project_id}/availability-zones", Some(Service::Workspace)),
            ("/v1/{project_id}/app-groups", Some(Service::AppStream)),
            ("/v1/{project_id}/app-center/apps", Some(Service::Workspace)),
            ("/v2/{project_id}/job/{id}", Some(Service::AppStream)),
            ("/v2/{project_id}/{kind}/{id}", None),
            ("/v1/{project_id}/{kind}", None),
            ("/{version}/zones", None),
            ("/v4/zones", None),
        ] {
            assert_eq!(owner(&template.parse().unwrap()), service, "{template}");
        }
    }

    #[test]
    fn an_operation_is_added_if_it_has_no_name_or_path_in_common_with_another() {
        let mut catalogue = catalogue();
        let mut add = |name: &str, path: &str| {
            catalogue.add(Operation::new(name, Service::Workspace, path.parse().unwrap(), Vec::new()))
        };
        assert!(add("Zones", "/v2/{project_id}/zones").is_ok());
        assert!(matches!(add("Zones", "/v3/zones"), Err(AddOperationError::Name)));
        let added = add("Any", "/v2/{project_id}/{kind}");
        assert!(matches!(added, Err(AddOperationError::Path(other)) if *other.name == *"ListProducts"));
        for index in catalogue.operations().len()..MAX_OPERATIONS {
            let path = format!("/v3/{index}").parse().unwrap();
            catalogue.add(Operation::new(&index.to_string(), Service::Workspace, path, Vec::new())).unwrap();
        }
        let path = "/v3/more".parse().unwrap();
        let more = Operation::new("More", Service::Workspace, path, Vec::new());
        assert!(matches!(catalogue.add(more), Err(AddOperationError::Full)));
        assert_eq!(catalogue.operation("/v3/63").map(|(operation, _)| operation.name.to_string()).unwrap(), "63");
    }

    #[test]
    fn an_operation_is_the_same_as_long_as_its_definition_is() {
        let before = catalogue();
        let removed = |next: &Catalogue| {
            let mut next = next.clone();
            next.follow(&before);
            next.removed_since(&before).map(|operation| operation.name.to_string()).collect::<Vec<_>>()
        };
        type Change = fn(&mut Operation);
        let longer: Change = |it| {
            (it.ttl, it.adaptive_ttl, it.stale_while_revalidate, it.stale_if_error) = Default::default();
        };
        let changes: [(Change, usize); 7] = [
            (longer, 0),
            (|it| it.template = "/v2/{project_id}/other".parse().unwrap(), 1),
            (|it| it.parameters.clear(), 1),
            (|it| it.sharing = Sharing::Caller, 1),
            (|it| it.keyed_headers = vec![HeaderName::from_static("x-a")], 1),
            (|it| it.forwarded = Forwarded::All, 1),
            (|it| it.body = BodyCheck::None, 1),
        ];
        for (index, (change, changed)) in changes.into_iter().enumerate() {
            let mut next = catalogue();
            change(next.operation_mut("ListProducts").unwrap());
            assert_eq!(removed(&next).len(), changed, "change {index}");
        }
        let elsewhere = Origin::new(Scheme::HTTPS, Authority::from_static("other.example"));
        let moved = Catalogue { workspace: Arc::new(elsewhere), ..catalogue() };
        assert_eq!(removed(&moved), ["ListProducts", "ListSharerProducts"]);
        let fewer = Catalogue { operations: before.operations[1..].to_vec(), ..catalogue() };
        assert_eq!(removed(&fewer), ["ListProducts"]);
    }

    #[test]
    fn an_operation_whose_definition_was_changed_and_changed_back_is_new() {
        let first = catalogue();
        let mut second = catalogue();
        second.operation_mut("ListProduct").unwrap().sharing = Sharing::Caller;
        second.follow(&first);
        let mut third = catalogue();
        third.follow(&second);
        let mut fourth = catalogue();
        fourth.follow(&third);
        let operation = |catalogue: &Catalogue, index: usize| Arc::clone(&catalogue.operations[index]);
        assert!(operation(&third, 2) != operation(&second, 2) && operation(&third, 2) != operation(&first, 2));
        assert!(operation(&fourth, 2) == operation(&third, 2) && operation(&fourth, 0) == operation(&first, 0));
    }

    #[test]
    fn an_origin_is_one_service() {
        let mut catalogue = catalogue();
        let origin = |host| Origin::new(Scheme::HTTPS, Authority::from_static(host));
        assert_eq!(catalogue.service_at(origin("upstream.example")), Some(Service::Workspace));
        let one = catalogue.service_at(origin("one.example")).unwrap();
        let other = catalogue.service_at(origin("other.example")).unwrap();
        assert_eq!((catalogue.service_at(origin("one.example")), one == other), (Some(one), false));
        assert_eq!(catalogue.origin(other).to_string(), "https://other.example");
        assert_eq!((one.as_str(), catalogue.services().count()), ("own", 4));
    }
}
