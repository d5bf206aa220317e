//! Where a request goes: to an operation that may be answered from memory, through to a service as
//! it is, or nowhere.

use std::sync::Arc;

use http::Method;

use crate::catalogue::{Catalogue, Operation, Service};

/// Where a request goes.
#[derive(Debug)]
pub enum Route<'a> {
    /// One of the operations, in the project that the path names (not yet checked).
    Operation(&'a Arc<Operation>, &'a str),
    /// Anything else that a service offers: streamed through, never kept.
    PassThrough(Service),
    /// A path of neither service.
    Unknown,
}

/// Finds the route. Only GET and HEAD read a product list; another method on the same path passes
/// through.
pub fn find<'a>(catalogue: &'a Catalogue, method: &Method, path: &'a str) -> Route<'a> {
    if (method == Method::GET || method == Method::HEAD)
        && let Some((operation, project_id)) = catalogue.operation(path)
    {
        return Route::Operation(operation, project_id);
    }
    catalogue.service(path).map_or(Route::Unknown, Route::PassThrough)
}
