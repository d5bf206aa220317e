//! Finds the route of a request: an operation, a service that it passes through to, or none.

use std::sync::Arc;

use http::Method;

use crate::catalogue::template::is_plain;
use crate::catalogue::{Catalogue, Operation, PathMatch, Service};

#[derive(Debug)]
pub enum Route<'a> {
    /// A request for an operation. The captured segments are not validated yet.
    Operation(&'a Arc<Operation>, PathMatch<'a>),
    /// Any other request for a service: streamed, never stored.
    PassThrough(Service),
    /// The path belongs to no service.
    Unknown,
}

/// Only GET and HEAD are requests for an operation. Other methods on its path pass through to its service.
pub fn find<'a>(catalogue: &'a Catalogue, method: &Method, path: &'a str) -> Route<'a> {
    let is_read = method == Method::GET || method == Method::HEAD;
    match catalogue.operation(path) {
        Some((operation, path_match)) if is_read => Route::Operation(operation, path_match),
        Some((operation, _)) => Route::PassThrough(operation.service),
        None => catalogue.service(path).map_or(Route::Unknown, Route::PassThrough),
    }
}

/// The project in a path: the one that its operation captures, else the second segment, as in all paths of the two
/// services. Empty if there is none. `None` if another server may read the path as another one: no segment may be
/// empty, be `.` or `..`, or have escapes or delimiters such as `;`.
pub fn project<'a>(catalogue: &'a Catalogue, path: &'a str) -> Option<&'a str> {
    if !path.strip_prefix('/')?.split('/').all(is_plain) {
        return None;
    }
    Some(match catalogue.operation(path) {
        Some((operation, _)) => operation.template.project_id(path),
        None => path.split('/').nth(2).unwrap_or_default(),
    })
}

/// Whether a path is below a project, as `/v2/{project_id}/desktops` is.
pub(crate) fn is_below_project(catalogue: &Catalogue, path: &str) -> bool {
    let has_project = project(catalogue, path).is_some_and(|project| !project.is_empty());
    let mut segments = path.split('/').skip(1);
    let is_service = segments.next().is_some_and(|version| ["v1", "v2", "v3"].contains(&version));
    has_project && (is_service && segments.count() > 1 || catalogue.operation(path).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_of_a_path_is_found() {
        let mut catalogue = Catalogue::for_tests(Vec::new());
        let listed = catalogue.operations()[0].as_ref().clone();
        let template = "/own/{name}/{project_id}".parse().unwrap();
        catalogue.add(Operation { name: "Own".into(), template, ..listed }).unwrap();
        for (path, expected) in [
            ("/v2/p/products", "p"),
            ("/v2/p/desktops/d", "p"),
            ("/v1/p", "p"),
            ("/v1", ""),
            ("/own/n/p", "p"),
            ("/v2/p/a..b/...", "p"),
            ("/v2/p/A-z_0.9~", "p"),
        ] {
            assert_eq!(project(&catalogue, path), Some(expected), "{path}");
        }
    }

    #[test]
    fn only_a_path_with_more_segments_is_below_a_project() {
        let catalogue = Catalogue::for_tests(Vec::new());
        for path in ["/v1/p/x", "/v2/p/products", "/v3/p/x/y"] {
            assert!(is_below_project(&catalogue, path), "{path}");
        }
        for path in ["/v2/p", "/v2", "/", "/v4/p/x", "/v2/p/", "/v2//x", "/v2/p/../x", "/v2/p/%2e%2e"] {
            assert!(!is_below_project(&catalogue, path), "{path}");
        }
    }

    #[test]
    fn an_ambiguous_path_has_no_project() {
        let catalogue = Catalogue::for_tests(Vec::new());
        for odd in [
            "/v2/p/../q/desktops",
            "/v2/p/./desktops",
            "/v2/p/..",
            "/v2/p/.",
            "/v2/p/..;/q/desktops",
            "/v2/p/..;a=b/q/desktops",
            "/v2/p;/desktops",
            "/v2/p/..%3b/q/desktops",
            "/v2/p/%2e%2E/q/desktops",
            "/v2/p/%252e%252e/q/desktops",
            "/v2/p/%c0%ae%c0%ae/q/desktops",
            "/v2/p/%e0%80%ae%e0%80%ae/q/desktops",
            "/v2/p/.%00./q/desktops",
            "/v2/p/x%2f..%2fq",
            "/v2/p/x%5c..%5cq",
            "/v2/p/..\\q\\desktops",
            "/v2/p\\..\\q/desktops",
            "/v2/p//desktops",
            "/v2//p/desktops",
            "//v2/p/desktops",
            "/v2/p/desktops/",
            "/v2/%70/desktops",
            "/v2/p/desk tops",
            "/v2/p/desktops:x",
            "/v2/p/desktops,x",
            "/v2/p/a@b",
            "/v2/p/a+b",
            "/v2/p/a=b",
            "/v2/p/a|b",
            "/v2/p/\u{ff0e}\u{ff0e}/q/desktops",
            "/",
            "",
            "*",
            "v2/p/desktops",
        ] {
            assert_eq!(project(&catalogue, odd), None, "{odd}");
        }
    }
}
