//! The request key: everything that a stored response may depend on.
//!
//! The upstream request is built from the key and the caller's credential alone. So a header or spelling that is not in
//! the key cannot change what is stored under it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::header::{IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::{BypassReason, copied, query};
use crate::catalogue::template::{PROJECT_ID, is_plain};
use crate::catalogue::{Catalogue, Operation, Origin, PathMatch};
use crate::random::secret_hash;

const X_PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");

/// What a proof is valid for: one operation at one upstream origin, with the segments that its path captures (above all
/// the project). A caller with a grant in a scope may see the responses stored in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope {
    /// Of the path, computed once and not at each look-up in a map. The path is enough: no two operations have a path in common, and an operation's origin hardly ever
    /// changes.
    hash: u64,
    origin: Arc<Origin>,
    operation: Arc<Operation>,
    /// The request's path. Two paths of one operation differ only in their captured segments.
    path: Arc<str>,
}

impl Scope {
    /// # Errors
    /// If a captured segment has characters that are not allowed.
    pub fn read(
        catalogue: &Catalogue,
        operation: &Arc<Operation>,
        path_match: PathMatch<'_>,
    ) -> Result<Self, BypassReason> {
        for (name, value) in operation.template.captures(path_match.path()) {
            match name {
                PROJECT_ID if !is_project_id(value) => return Err(BypassReason::ProjectId),
                PROJECT_ID => {}
                // Another server may read dots, escapes and delimiters as another path.
                _ if !is_plain(value) => return Err(BypassReason::PathSegment),
                _ => {}
            }
        }
        let path = path_match.path();
        Ok(Self {
            hash: secret_hash(path),
            origin: Arc::clone(catalogue.origin(operation.service)),
            operation: Arc::clone(operation),
            path: path.into(),
        })
    }

    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// Empty if the operation's path has no project.
    pub fn project_id(&self) -> &str {
        self.operation.template.project_id(&self.path)
    }

    /// A short form of the project id for display: its first and last characters, at most half of it. Empty if there is
    /// no project.
    pub fn project_in_short(&self) -> String {
        let id = self.project_id();
        let shown = (id.len() / 4).min(4);
        // Ids are ASCII.
        match (id.get(..shown), id.get(id.len() - shown..)) {
            (Some(first), Some(last)) if !id.is_empty() => format!("{first}…{last}"),
            _ => String::new(),
        }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Hash for Scope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation.name, self.path)
    }
}

/// What a response is stored under, apart from the caller that owns it.
///
/// The parts are separate fields, so two different requests cannot have one key by concatenation.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// Of all other fields.
    hash: u64,
    scope: Scope,
    query: Box<str>,
    headers: Box<[(HeaderName, HeaderValue)]>,
}

impl RequestKey {
    /// Reads the key of a request for an operation. Whether the request has a body is an argument, because the
    /// hop-by-hop headers have been removed before.
    ///
    /// # Errors
    /// Why to bypass: the request has something that a key cannot express.
    pub fn read(
        catalogue: &Catalogue,
        operation: &Arc<Operation>,
        path_match: PathMatch<'_>,
        query: Option<&str>,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<Self, BypassReason> {
        let scope = Scope::read(catalogue, operation, path_match)?;
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
        let query = query::canonical(query, &operation.parameters)?;
        let headers = keyed_headers(&operation.keyed_headers, headers)?;
        Ok(Self { hash: secret_hash(&(&scope, &query, &headers)), query, headers, scope })
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn operation(&self) -> &Arc<Operation> {
        &self.scope.operation
    }

    /// The canonical query, without the `?`.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// The keyed headers that are present, in the configured order.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    pub fn origin(&self) -> &Origin {
        self.scope.origin()
    }

    /// The URI of the upstream request.
    ///
    /// # Errors
    /// None for a key made by [`Self::read`]: its parts have only URI characters, and their length is bounded.
    pub fn uri(&self) -> Result<Uri, http::Error> {
        let mut target = self.scope.path().to_owned();
        if !self.query.is_empty() {
            target.push('?');
            target.push_str(&self.query);
        }
        self.origin().uri(&target)
    }

    /// The approximate memory that the key takes, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|field| size_of_val(field) + field.1.len()).sum();
        size_of::<Self>() + self.scope.path().len() + self.query.len() + headers
    }
}

impl Hash for RequestKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
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

    const LANGUAGE: HeaderName = HeaderName::from_static("x-language");

    fn read(path: &str, query: Option<&str>, headers: &[(HeaderName, &str)]) -> Result<RequestKey, BypassReason> {
        let catalogue = Catalogue::for_tests(vec![LANGUAGE]);
        let (operation, path_match) = catalogue.operation(path).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), value.parse().unwrap());
        }
        RequestKey::read(&catalogue, operation, path_match, query, &map, false)
    }

    #[test]
    fn a_key_has_the_path_the_canonical_query_and_the_keyed_headers() {
        let key = read("/v2/p/products", Some("b=2&a=1"), &[(LANGUAGE, "en"), (X_PROJECT_ID, "p")]).unwrap();
        assert_eq!(key.uri().unwrap(), "https://upstream.example/v2/p/products?a=1&b=2");
        assert_eq!(format!("{key:?}"), "ListProducts /v2/p/products a=1&b=2 [(\"x-language\", \"en\")]");
        let plain = read("/v2/p/products", None, &[]).unwrap();
        assert_eq!(plain.uri().unwrap(), "https://upstream.example/v2/p/products");
        assert_eq!(key.size() - plain.size(), "a=1&b=2".len() + size_of::<(HeaderName, HeaderValue)>() + "en".len());
        assert_eq!(plain.size(), size_of::<RequestKey>() + "/v2/p/products".len());
        assert_ne!(secret_hash(&key), secret_hash(&plain));
        let other = read("/v2/q/products", None, &[]).unwrap();
        assert_ne!(secret_hash(plain.scope()), secret_hash(other.scope()));
    }

    #[test]
    fn what_a_key_cannot_express_is_bypassed() {
        let longest = "p".repeat(255);
        for (project, headers, expected) in [
            (&*longest, &[][..], None),
            ("A-z_09", &[], None),
            (&*"p".repeat(256), &[], Some(BypassReason::ProjectId)),
            ("p.q", &[], Some(BypassReason::ProjectId)),
            ("p", &[(X_PROJECT_ID, "q")], Some(BypassReason::ProjectMismatch)),
            ("p", &[(X_PROJECT_ID, "p"), (X_PROJECT_ID, "q")], Some(BypassReason::ProjectMismatch)),
            ("p", &[(LANGUAGE, "en"), (LANGUAGE, "en")], Some(BypassReason::RepeatedHeader)),
            ("p", &[(RANGE, "bytes=0-1")], Some(BypassReason::Range)),
            ("p", &[(IF_RANGE, "\"a\"")], Some(BypassReason::Range)),
        ] {
            let reason = read(&format!("/v2/{project}/products"), None, headers).err();
            assert_eq!(reason, expected, "{project} {headers:?}");
        }
    }

    #[test]
    fn a_captured_segment_is_plain() {
        let mut catalogue = Catalogue::for_tests(Vec::new());
        let listed = catalogue.operations()[0].as_ref().clone();
        let template = "/own/{name}/{project_id}".parse().unwrap();
        catalogue.add(Operation { name: "Own".into(), template, ..listed }).unwrap();
        for (path, expected) in [
            ("/own/a.b~/p", None),
            ("/own/a;b/p", Some(BypassReason::PathSegment)),
            ("/own/a/p~", Some(BypassReason::ProjectId)),
        ] {
            let (operation, path_match) = catalogue.operation(path).unwrap();
            assert_eq!(Scope::read(&catalogue, operation, path_match).err(), expected, "{path}");
        }
    }

    #[test]
    fn at_most_half_of_a_project_id_is_shown() {
        for (project, shown) in [("p", "…"), ("0123", "0…3"), ("0123456", "0…6"), ("0123456789abcdef0", "0123…def0")]
        {
            let key = read(&format!("/v2/{project}/products"), None, &[]).unwrap();
            assert_eq!(key.scope().project_in_short(), shown);
        }
    }

    #[test]
    fn a_key_does_not_keep_the_read_buffer() {
        let name = HeaderName::from_static("x-language");
        let catalogue = Catalogue::for_tests(vec![name.clone()]);
        let (operation, path_match) = catalogue.operation("/v2/p/products").unwrap();
        let buffer = Bytes::from(vec![b'x'; 1 << 20]);
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_maybe_shared(buffer.slice(..5)).unwrap());
        let key = RequestKey::read(&catalogue, operation, path_match, None, &headers, false).unwrap();
        drop(headers);
        assert!(buffer.is_unique(), "the key keeps the buffer in memory");
        assert_eq!(key.headers()[0].1, "xxxxx");
    }
}
