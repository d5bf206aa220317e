//! Which operation a request almost is: one with a doubled slash or in another case is relayed,
//! and its client may not know why it is never answered from memory. This is for operators. Nothing is decided with it.

use std::fmt;
use std::sync::Arc;

use http::Method;

use super::template::{MAX_SEGMENTS, Template};
use super::{Catalogue, Operation};

/// What keeps a request from being one for an operation. The smallest difference comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    TrailingSlash,
    DoubledSlash,
    Case,
    Version,
}

impl Difference {
    pub fn describe(self) -> &'static str {
        match self {
            Self::TrailingSlash => "the path ends with a slash",
            Self::DoubledSlash => "the path has an empty segment (//)",
            Self::Case => "the path has letters in another case",
            Self::Version => "the path begins with another version, or without one",
        }
    }
}

/// A request that is almost one for this operation.
#[derive(Clone, Copy, Debug)]
pub struct NearMiss<'c> {
    pub operation: &'c Arc<Operation>,
    pub difference: Difference,
}

impl fmt::Display for NearMiss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { name, template, .. } = &**self.operation;
        write!(f, "almost one for {name} ({template}), but {}", self.difference.describe())
    }
}

impl Catalogue {
    /// The operation that a request for none almost is. `None` if there is no such operation, or the request is for one.
    pub fn near_miss(&self, method: &Method, path: &str) -> Option<NearMiss<'_>> {
        let is_read = method == Method::GET || method == Method::HEAD;
        // Another method on the path of an operation is no mistake: it changes what the operation lists.
        if self.operation(path).is_some() {
            return None;
        }
        let (mut segments, mut count) = ([""; MAX_SEGMENTS], 0);
        let path = path.strip_prefix('/').filter(|_| is_read)?;
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            *segments.get_mut(count)? = segment;
            count += 1;
        }
        let inner = path.strip_suffix('/').unwrap_or(path);
        let has_doubled_slash = inner.split('/').any(str::is_empty);
        let near = self.operations.iter().filter_map(|operation| {
            let difference = difference(&operation.template, &segments[..count], has_doubled_slash)?;
            Some(NearMiss { operation, difference })
        });
        near.min_by_key(|near| near.difference)
    }
}

/// `segments` are those of a path that does not match, without the empty ones.
fn difference(template: &Template, segments: &[&str], has_doubled_slash: bool) -> Option<Difference> {
    let version = template.literals().next().flatten().filter(|literal| is_version(literal));
    let first = segments.first().copied().unwrap_or_default();
    let is_other_version = version.is_some_and(|version| !version.eq_ignore_ascii_case(first));
    let segments = if is_other_version && is_version(first) { &segments[1..] } else { segments };
    let expected = || template.literals().skip(usize::from(is_other_version));
    let mut pairs = expected().zip(segments);
    let is_like = |(expected, segment): (Option<&str>, &&str)| {
        expected.is_none_or(|literal| literal.eq_ignore_ascii_case(segment))
    };
    let has_name = expected().flatten().any(|literal| !is_version(literal));
    if !has_name || expected().count() != segments.len() || !pairs.all(is_like) {
        return None;
    }
    let mut pairs = expected().zip(segments);
    let is_other_case = pairs.any(|(expected, segment)| expected.is_some_and(|literal| literal != *segment));
    Some(match () {
        () if is_other_version => Difference::Version,
        () if is_other_case => Difference::Case,
        () if has_doubled_slash => Difference::DoubledSlash,
        () => Difference::TrailingSlash,
    })
}

/// Whether a segment is a version such as `v2`.
fn is_version(segment: &str) -> bool {
    let number = segment.strip_prefix(['v', 'V']).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Service;

    #[test]
    fn the_operation_that_a_request_almost_is_has_its_difference() {
        use Difference::{Case, DoubledSlash, TrailingSlash, Version};
        let mut catalogue = Catalogue::for_tests(Vec::new());
        for (name, path) in [("Kinds", "/v3/{project_id}/{kind}"), ("Zones", "/own/zones")] {
            let operation = Operation::new(name, Service::Workspace, path.parse().unwrap(), Vec::new());
            catalogue.add(operation).unwrap();
        }
        for (request, expected) in [
            ("GET /v2/p/products/", Some(("ListProducts", TrailingSlash))),
            ("HEAD /v2/p/products/sharer/", Some(("ListSharerProducts", TrailingSlash))),
            ("GET /v2/p//products", Some(("ListProducts", DoubledSlash))),
            ("GET //v2/p/products//", Some(("ListProducts", DoubledSlash))),
            ("GET /v2/p/Products", Some(("ListProducts", Case))),
            ("GET /V2/p/products", Some(("ListProducts", Case))),
            ("GET /v2/p/PRODUCTS/", Some(("ListProducts", Case))),
            ("GET /p/products", Some(("ListProducts", Version))),
            ("GET /v1/p/products", Some(("ListProducts", Version))),
            ("GET /p/product", Some(("ListProduct", Version))),
            ("GET /own/zones/", Some(("Zones", TrailingSlash))),
            ("POST /v2/p/products", None),
            ("POST /v2/p/products/", None),
            ("OPTIONS /v2/p/products", None),
            ("GET /v2/p/products", None),
            ("GET /v2/p/desktops", None),
            ("GET /v2/p/products/x", None),
            ("GET /products", None),
            // Without a fixed name, any path would be near.
            ("GET /p/anything", None),
            ("GET /", None),
            ("GET *", None),
            (&format!("GET {}", "/a".repeat(1_000)), None),
        ] {
            let (method, path) = request.split_once(' ').unwrap();
            let near = catalogue.near_miss(&method.parse().unwrap(), path);
            let found = near.map(|near| (near.operation.name.to_string(), near.difference));
            assert_eq!(found, expected.map(|(name, difference)| (name.to_owned(), difference)), "{request}");
        }
    }
}
