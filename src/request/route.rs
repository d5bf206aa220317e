//! Where a request goes: to an operation that may be answered from memory, through to a service as
//! it is, or nowhere.

use std::sync::Arc;

use http::Method;

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
