//! The target of a request: what the key has of its query is the same request for upstream, in one spelling. Its path names a
//! project only if all servers read it alike.

#![no_main]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::request::query::canonical;
use workspace_gateway::testing::request::route::{Route, find, project};
use workspace_gateway::testing::request::target::rebased;
use workspace_gateway_fuzz::{REGION, within_memory};

/// A query of 64 KiB, three times as long when it is encoded, and what is decoded of it.
const MEMORY: usize = 4 << 20;
static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::from_layers("f", REGION, &[]).unwrap());
/// The longest segment of a path, in bytes, that may name a project.
const MAX_SEGMENT: usize = 255;
const PREFIXES: [&str; 3] = ["/workspace", "/a", "/a/b"];

/// The parameters of a query as a lenient server reads them, without `limit=100` and the like.
fn parameters<'q>(query: &'q str, defaults: &[(&str, &str)]) -> BTreeSet<(Cow<'q, [u8]>, Cow<'q, [u8]>)> {
    let decode = |text: &'q str| Cow::from(percent_decode_str(text));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let is_default = |(name, value): &(Cow<[u8]>, Cow<[u8]>)| {
        defaults.iter().any(|(of, default)| of.as_bytes() == &**name && default.as_bytes() == &**value)
    };
    pairs.map(|(name, value)| (decode(name), decode(value))).filter(|pair| !is_default(pair)).collect()
}

/// Whether a path has only segments that no server changes.
fn is_plain(path: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_long = |segment: &str| segment.is_empty() || segment.len() > MAX_SEGMENT;
    let is_segment = |it: &str| !is_long(it) && ![".", ".."].contains(&it) && it.bytes().all(is_char);
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_segment))
}

fn check_path(path: &str) {
    let project = project(&CONFIG.catalogue, path);
    assert_eq!(project.is_some(), is_plain(path), "{path}");
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    assert!(project.is_none_or(|project| project.is_empty() && segments.len() < 2 || segments[1] == project));
    match find(&CONFIG.catalogue, &Method::GET, path) {
        Route::Operation(..) => {
            let ends = ["/products", "/products/sharer", "/product"];
            assert!(ends.iter().any(|end| path.ends_with(end)), "{path}");
        }
        Route::PassThrough(service) => assert_eq!(CONFIG.catalogue.service(path), Some(service)),
        Route::Unknown => assert!(CONFIG.catalogue.service(path).is_none()),
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(uri) = Uri::try_from(input) else { return };
    check_path(uri.path());
    if let Some(shorter) = rebased(&uri, &PREFIXES, &CONFIG.catalogue) {
        assert!(uri.path().ends_with(shorter.path()) && shorter.path().starts_with('/'), "{shorter}");
        assert_eq!(uri.query(), shorter.query());
    }
    let Some(query) = uri.query() else { return };
    for operation in CONFIG.catalogue.operations() {
        let known = &operation.parameters;
        let Ok(one) = within_memory(MEMORY, || canonical(Some(query), known)) else { continue };
        assert_eq!(canonical(Some(&one), known).as_ref(), Ok(&one), "one spelling");
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%&=".contains(&byte)), "{one}");
        let defaults: Vec<_> = known.iter().filter_map(|it| Some((&*it.name, it.default.as_deref()?))).collect();
        let empty = known.iter().filter(|it| it.empty_is_absent).map(|it| (&*it.name, ""));
        let defaults: Vec<_> = defaults.into_iter().chain(empty).collect();
        assert_eq!(parameters(&one, &defaults), parameters(query, &defaults), "the same parameters");
        let mut backwards: Vec<_> = query.split('&').collect();
        backwards.reverse();
        assert_eq!(canonical(Some(&backwards.join("&")), known), Ok(one), "in any order");
    }
});
