//! What upstream offers, as data: the operations this gateway can answer from memory, and which
//! service everything else belongs to.
//!
//! One table for routing, keys, `explain` and the simulator. No behaviour beyond looking things up:
//! what a request asks for is read in [`crate::request`].

pub(crate) mod error_code;
pub(crate) mod headers;
mod operation;
pub(crate) mod prefix;
pub(crate) mod template;

use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use http::uri::{Authority, Scheme, Uri};

use operation::Edition;
pub(crate) use operation::{BodyCheck, Parameter, is_built_in};
pub use operation::{Forwarded, Operation, Sharing};
pub(crate) use template::{PathMatch, Template};
use template::{Relation, Split};

/// One of the upstream services. The paths of the two that are known never collide, so one listener
/// serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Workspace: desktops, their products, and everything under `/v2` and `/v3`.
    Workspace,
    /// Workspace Application (app streaming): nearly everything under `/v1`.
    AppStream,
    /// One that an operator has named for operations of their own.
    Own(Own),
}

/// Which of the operator's own services. Only a catalogue makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Own(u8);

impl Service {
    /// The two that are known, in the order tables show them.
    pub const ALL: [Self; 2] = [Self::Workspace, Self::AppStream];

    /// The name used in metric labels, log fields and host names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "workspace",
            Self::AppStream => "appstream",
            Self::Own(_) => "own",
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

/// Whose path is this, unless it is an operation's? The first row that matches decides; a path without
/// a row belongs to neither service. `{name}` stands for one segment, a final `**` for any that follow.
static PASS_THROUGH: [(&str, Service); 5] = [
    ("/v1/{project_id}/app-center/**", Service::Workspace),
    ("/v2/{project_id}/job/{id}", Service::AppStream),
    ("/v1/**", Service::AppStream),
    ("/v2/**", Service::Workspace),
    ("/v3/**", Service::Workspace),
];

/// The operations in force, and where the services are.
#[derive(Clone, Debug)]
pub struct Catalogue {
    operations: Vec<Arc<Operation>>,
    workspace: Arc<Origin>,
    appstream: Arc<Origin>,
    own: Vec<Arc<Origin>>,
    /// How many catalogues came before, one in force after the other.
    edition: Edition,
}

/// Why an operation can't be added beside another.
#[derive(Debug)]
pub enum Clash {
    /// It has the same name.
    Name,
    /// Some path would be both's.
    Path(Arc<Operation>),
    /// There are as many as can be.
    Full,
}

/// The most operations: each is a label of metrics, and is looked at for each request.
pub(crate) const MAX_OPERATIONS: usize = 64;

impl Catalogue {
    /// The built-in operations, asked of these two origins.
    pub fn new(workspace: Origin, appstream: Origin, keyed_headers: Vec<HeaderName>) -> Self {
        Self {
            operations: operation::built_in(&keyed_headers),
            workspace: Arc::new(workspace),
            appstream: Arc::new(appstream),
            own: Vec::new(),
            edition: Edition::default(),
        }
    }

    /// Makes this the catalogue that is in force after another. Operations stay the same ones if they are described
    /// in the same words; the others are new, also if an earlier catalogue had described them so.
    pub fn succeed(&mut self, before: &Self) {
        let origins: Vec<_> = self.operations.iter().map(|it| Arc::clone(self.origin(it.service))).collect();
        self.edition = Edition(before.edition.0 + 1);
        for (operation, origin) in self.operations.iter_mut().zip(origins) {
            let is_same =
                |known: &&Arc<Operation>| known.is_described_as(operation) && *before.origin(known.service) == origin;
            let edition = before.operations.iter().find(is_same).map_or(self.edition, |known| known.edition);
            Arc::make_mut(operation).edition = edition;
        }
    }

    /// The operations that another catalogue has and this one hasn't, or describes in other words.
    pub fn without<'c>(&self, before: &'c Self) -> impl Iterator<Item = &'c Arc<Operation>> {
        before.operations.iter().filter(|operation| !self.operations.contains(operation))
    }

    /// The operations, in the order of the table.
    pub fn operations(&self) -> &[Arc<Operation>] {
        &self.operations
    }

    /// An operation, to be adjusted to the configuration.
    pub fn operation_mut(&mut self, name: &str) -> Option<&mut Operation> {
        let found = self.operations.iter_mut().find(|operation| *operation.name == *name);
        found.map(Arc::make_mut)
    }

    /// Adds an operation. No two may have a path in common, so that the order doesn't matter.
    ///
    /// # Errors
    /// What is in the way.
    pub fn add(&mut self, operation: Operation) -> Result<(), Clash> {
        if self.operations.iter().any(|other| **other == operation) {
            return Err(Clash::Name);
        }
        if let Some(other) = self.operations.iter().find(|other| other.template.overlaps(&operation.template)) {
            return Err(Clash::Path(Arc::clone(other)));
        }
        if self.operations.len() >= MAX_OPERATIONS {
            return Err(Clash::Full);
        }
        self.operations.push(Arc::new(operation));
        Ok(())
    }

    /// The service at an origin: one that is known, or the operator's own from now on. `None` if
    /// there are as many as there can be operations.
    pub fn service_at(&mut self, origin: Origin) -> Option<Service> {
        if let Some(known) = self.services().find(|&service| **self.origin(service) == origin) {
            return Some(known);
        }
        let index = u8::try_from(self.own.len()).ok().filter(|&index| usize::from(index) < MAX_OPERATIONS)?;
        self.own.push(Arc::new(origin));
        Some(Service::Own(Own(index)))
    }

    /// All services, the operator's own included.
    pub fn services(&self) -> impl Iterator<Item = Service> {
        let own = (0..).map(|index| Service::Own(Own(index))).take(self.own.len());
        Service::ALL.into_iter().chain(own)
    }

    /// Where a service is.
    pub fn origin(&self, service: Service) -> &Arc<Origin> {
        match service {
            Service::Workspace => &self.workspace,
            Service::AppStream => &self.appstream,
            // Handed out by this very catalogue, which forgets none.
            Service::Own(Own(index)) => &self.own[usize::from(index)],
        }
    }

    /// The operation with this path.
    pub fn operation<'p>(&self, path: &'p str) -> Option<(&Arc<Operation>, PathMatch<'p>)> {
        let split = Split::of(path)?;
        let operation = self.operations.iter().find(|operation| operation.template.matches(&split))?;
        Some((operation, split.place()))
    }

    /// The service that a path belongs to, whether or not it is one of the operations.
    pub fn service(&self, path: &str) -> Option<Service> {
        let row = PASS_THROUGH.iter().find(|(pattern, _)| covers(pattern, path));
        row.map(|&(_, service)| service)
    }
}

/// The service that all paths of a template belong to, if it is one and the same.
pub(crate) fn owner(template: &Template) -> Option<Service> {
    let mut rows = PASS_THROUGH.iter().map(|&(pattern, service)| (template.relation(pattern), service));
    let (relation, service) = rows.find(|(relation, _)| *relation != Relation::Apart)?;
    (relation == Relation::Within).then_some(service)
}

#[cfg(test)]
impl Catalogue {
    /// For unit tests: both services at `https://upstream.example`, with these keyed headers.
    pub(crate) fn for_tests(keyed_headers: Vec<HeaderName>) -> Self {
        let origin = || Origin::new(Scheme::HTTPS, Authority::from_static("upstream.example"));
        Self::new(origin(), origin(), keyed_headers)
    }
}

/// Matches a path against a pattern segment by segment, as written.
fn covers(pattern: &str, path: &str) -> bool {
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
            catalogue
                .operation(path)
                .map(|(operation, place)| (operation.name.to_string(), operation.template.project_id(place.path())))
        };
        assert_eq!(name("/v2/p1/products"), Some(("ListProducts".to_owned(), "p1")));
        assert_eq!(name("/v2/p1/products/sharer"), Some(("ListSharerProducts".to_owned(), "p1")));
        assert_eq!(name("/v1/p1/product"), Some(("ListProduct".to_owned(), "p1")));
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
    fn an_operation_is_added_beside_those_it_has_no_path_in_common_with() {
        let mut catalogue = catalogue();
        let mut add = |name: &str, path: &str| {
            catalogue.add(Operation::new(name, Service::Workspace, path.parse().unwrap(), Vec::new()))
        };
        assert!(add("Zones", "/v2/{project_id}/zones").is_ok());
        assert!(matches!(add("Zones", "/v3/zones"), Err(Clash::Name)));
        assert!(
            matches!(add("Any", "/v2/{project_id}/{kind}"), Err(Clash::Path(other)) if *other.name == *"ListProducts")
        );
        for index in catalogue.operations().len()..MAX_OPERATIONS {
            let path = format!("/v3/{index}").parse().unwrap();
            catalogue.add(Operation::new(&index.to_string(), Service::Workspace, path, Vec::new())).unwrap();
        }
        let path = "/v3/more".parse().unwrap();
        let more = Operation::new("More", Service::Workspace, path, Vec::new());
        assert!(matches!(catalogue.add(more), Err(Clash::Full)));
        assert_eq!(catalogue.operation("/v3/63").map(|(operation, _)| operation.name.to_string()).unwrap(), "63");
    }

    #[test]
    fn an_operation_is_the_same_as_long_as_it_is_described_in_the_same_words() {
        let before = catalogue();
        let gone = |next: &Catalogue| {
            let mut next = next.clone();
            next.succeed(&before);
            next.without(&before).map(|operation| operation.name.to_string()).collect::<Vec<_>>()
        };
        type Change = fn(&mut Operation);
        let longer: Change = |it| (it.ttl, it.stale_while_revalidate, it.stale_if_error) = Default::default();
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
            assert_eq!(gone(&next).len(), changed, "change {index}");
        }
        let elsewhere = Origin::new(Scheme::HTTPS, Authority::from_static("other.example"));
        let moved = Catalogue { workspace: Arc::new(elsewhere), ..catalogue() };
        assert_eq!(gone(&moved), ["ListProducts", "ListSharerProducts"]);
        let fewer = Catalogue { operations: before.operations[1..].to_vec(), ..catalogue() };
        assert_eq!(gone(&fewer), ["ListProducts"]);
    }

    #[test]
    fn what_was_described_so_before_and_not_since_is_new() {
        let first = catalogue();
        let mut second = catalogue();
        second.operation_mut("ListProduct").unwrap().sharing = Sharing::Caller;
        second.succeed(&first);
        let mut third = catalogue();
        third.succeed(&second);
        let mut fourth = catalogue();
        fourth.succeed(&third);
        let operation = |catalogue: &Catalogue, index: usize| Arc::clone(&catalogue.operations[index]);
        assert!(operation(&third, 2) != operation(&second, 2) && operation(&third, 2) != operation(&first, 2));
        assert!(operation(&fourth, 2) == operation(&third, 2) && operation(&fourth, 0) == operation(&first, 0));
    }

    #[test]
    fn an_upstream_is_a_service_once() {
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
