//! Where a request goes: to an operation that may be answered from memory, through to a service as
//! it is, or nowhere.

use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::catalogue::{Catalogue, Operation, Place, Service};

/// Where a request goes.
#[derive(Debug)]
pub enum Route<'a> {
    /// One of the operations, and its path (what that captures is not yet checked).
    Operation(&'a Arc<Operation>, Place<'a>),
    /// Anything else that a service offers: streamed through, never kept.
    PassThrough(Service),
    /// A path of neither service.
    Unknown,
}

/// Finds the route. Only GET and HEAD read; another method on the path of an operation passes through
/// to whoever answers the operation.
pub fn find<'a>(catalogue: &'a Catalogue, method: &Method, path: &'a str) -> Route<'a> {
    let reads = method == Method::GET || method == Method::HEAD;
    match catalogue.operation(path) {
        Some((operation, place)) if reads => Route::Operation(operation, place),
        Some((operation, _)) => Route::PassThrough(operation.service),
        None => catalogue.service(path).map_or(Route::Unknown, Route::PassThrough),
    }
}

/// The project that a path is about: the one that its operation says, or else the second segment, as everywhere in
/// the two services. None for a path with dots, by which it may be read as another.
pub fn project<'a>(catalogue: &'a Catalogue, path: &'a str) -> &'a str {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    if decoded.split(|byte| b"/\\".contains(byte)).any(|segment| segment == b"." || segment == b"..") {
        return "";
    }
    match catalogue.operation(path) {
        Some((operation, _)) => operation.template.project_id(path),
        None => path.split('/').nth(2).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_about_a_project() {
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
            ("/v2/p/../q/desktops", ""),
            ("/v2/p/%2e%2E/q/desktops", ""),
            ("/v2/p/x%2f..%5c..%2fq", ""),
            ("/v2/p/./desktops", ""),
            ("/v2/p/a..b/...", "p"),
        ] {
            assert_eq!(project(&catalogue, path), expected, "{path}");
        }
    }
}
