//! The key: everything an answer may depend on, and all that is sent upstream to get it.
//!
//! The upstream request is built from the key and nothing else of the caller's request but its
//! credential, so a header or spelling that is not in the key cannot change what is stored under it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::header::{IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::{BypassReason, copied, query};
use crate::catalogue::template::{PROJECT_ID, is_plain};
use crate::catalogue::{Catalogue, Operation, Origin, PathMatch};

const X_PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");

/// Where a credential counts: one operation with the segments that its path captures (the project
/// above all), asked of one service instance. Who has been proved in a scope may be shown the answers
/// in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope {
    origin: Arc<Origin>,
    operation: Arc<Operation>,
    /// A path of the operation, so that it differs exactly where the captured segments do.
    path: Arc<str>,
}

impl Scope {
    /// Reads the scope of a request for an operation.
    ///
    /// # Errors
    /// If a captured segment is not what it should be.
    pub fn read(catalogue: &Catalogue, operation: &Arc<Operation>, place: PathMatch<'_>) -> Result<Self, BypassReason> {
        for (name, value) in operation.template.captures(place.path()) {
            match name {
                PROJECT_ID if !is_project_id(value) => return Err(BypassReason::ProjectId),
                PROJECT_ID => {}
                // Dots, escapes and what servers strip or cut at: it might be read as another path.
                _ if !is_plain(value) => return Err(BypassReason::PathSegment),
                _ => {}
            }
        }
        Ok(Self {
            origin: Arc::clone(catalogue.origin(operation.service)),
            operation: Arc::clone(operation),
            path: place.path().into(),
        })
    }

    /// The operation asked for.
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The project it is asked in; empty for an operation that is asked in none.
    pub fn project_id(&self) -> &str {
        self.operation.template.project_id(&self.path)
    }

    /// As much of the project's id as tells a person which one it is: half of it at most. Nothing, if there is none.
    pub fn project_in_short(&self) -> String {
        let id = self.project_id();
        let shown = (id.len() / 4).min(4);
        // Ids are ASCII.
        match (id.get(..shown), id.get(id.len() - shown..)) {
            (Some(first), Some(last)) if !id.is_empty() => format!("{first}…{last}"),
            _ => String::new(),
        }
    }

    /// The path it is asked by.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Hash for Scope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // No two operations have a path in common, and the operation tells the service, whose origin
        // hardly ever changes.
        self.path.hash(state);
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation.name, self.path)
    }
}

/// What an answer is kept under, apart from whom it was given to.
///
/// Parts are separate fields, so no two different requests can run together into one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestKey {
    scope: Scope,
    query: Box<str>,
    headers: Box<[(HeaderName, HeaderValue)]>,
}

impl RequestKey {
    /// Reads the key of a request for an operation. Its hop-by-hop headers are gone by now, so
    /// whether it has a body is told, not read.
    ///
    /// # Errors
    /// The reason to bypass, where the request has something that a key can't express.
    pub fn read(
        catalogue: &Catalogue,
        operation: &Arc<Operation>,
        place: PathMatch<'_>,
        query: Option<&str>,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<Self, BypassReason> {
        let scope = Scope::read(catalogue, operation, place)?;
        let project_id = scope.project_id();
        if headers.get_all(X_PROJECT_ID).iter().any(|named| named != project_id) {
            return Err(BypassReason::ProjectMismatch);
        }
        if has_body {
            return Err(BypassReason::Body);
        }
        if headers.contains_key(RANGE) || headers.contains_key(IF_RANGE) {
            return Err(BypassReason::Range);
        }
        Ok(Self {
            query: query::canonical(query, &operation.parameters)?,
            headers: keyed_headers(&operation.keyed_headers, headers)?,
            scope,
        })
    }

    /// Where it is asked.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The operation asked for.
    pub fn operation(&self) -> &Arc<Operation> {
        &self.scope.operation
    }

    /// The canonical query, without the `?`.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// The keyed headers that the request has, in the configured order.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The service instance that is asked.
    pub fn origin(&self) -> &Origin {
        &self.scope.origin
    }

    /// The URI to ask upstream.
    ///
    /// # Errors
    /// None for a key that was read: all its parts are made of URI characters, and not too many.
    pub fn uri(&self) -> Result<Uri, http::Error> {
        let mut target = self.scope.path().to_owned();
        if !self.query.is_empty() {
            target.push('?');
            target.push_str(&self.query);
        }
        self.origin().uri(&target)
    }

    /// Bytes of memory it holds, roughly.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|field| size_of_val(field) + field.1.len()).sum();
        size_of::<Self>() + self.scope.path().len() + self.query.len() + headers
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {:?}", self.scope, self.query, self.headers)
    }
}

fn is_project_id(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn keyed_headers(names: &[HeaderName], headers: &HeaderMap) -> Result<Box<[(HeaderName, HeaderValue)]>, BypassReason> {
    let mut keyed = Vec::new();
    for name in names {
        let mut values = headers.get_all(name).iter();
        if let Some(value) = values.next() {
            keyed.push((name.clone(), copied(value)));
        }
        if values.next().is_some() {
            return Err(BypassReason::RepeatedHeader);
        }
    }
    Ok(keyed.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_key_holds_no_read_buffer() {
        let name = HeaderName::from_static("x-language");
        let catalogue = Catalogue::for_tests(vec![name.clone()]);
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        let buffer = Bytes::from(vec![b'x'; 1 << 20]);
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_maybe_shared(buffer.slice(..5)).unwrap());
        let key = RequestKey::read(&catalogue, operation, place, None, &headers, false).unwrap();
        drop(headers);
        assert!(buffer.is_unique(), "the key holds on to the buffer");
        assert_eq!(key.headers()[0].1, "xxxxx");
    }
}
