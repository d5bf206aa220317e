//! Properties of keys: spellings of one request share a key, different requests never do, and the request sent upstream
//! means the same as the client's.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use workspace_gateway::testing::catalogue::{Catalogue, Operation, Origin, Service};
use workspace_gateway::testing::request::BypassReason;
use workspace_gateway::testing::request::key::RequestKey;

const X_LANGUAGE: HeaderName = HeaderName::from_static("x-language");

/// Operations that an operator might add. They differ only in what they capture, and where.
const ADDED: [&str; 4] = [
    "/v2/{project_id}/a/{x}",
    "/v2/{project_id}/a/{x}/{y}",
    "/v2/{project_id}/b/{x}/{y}",
    "/v3/b/{x}/{y}/{project_id}",
];

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let origin = |host| Origin::new(Scheme::HTTPS, Authority::from_static(host));
    let mut catalogue = Catalogue::new(origin("w.example"), origin("a.example"), vec![X_LANGUAGE]);
    for template in ADDED {
        let path = template.parse().unwrap();
        catalogue.add(Operation::new(template, Service::Workspace, path, vec![X_LANGUAGE])).unwrap();
    }
    catalogue
});

fn key(path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<RequestKey, BypassReason> {
    let (operation, path_match) = CATALOGUE.operation(path).expect("one of the operations");
    RequestKey::read(&CATALOGUE, operation, path_match, query, headers, false)
}

/// Path template, captured segments, query, language.
type Meaning<'a> = (&'a str, Vec<&'a str>, Vec<(&'a str, &'a str)>, Option<&'a str>);

/// The content of a request, independent of its spelling.
#[derive(Clone, Debug)]
struct CacheRequest {
    template: &'static str,
    project_id: String,
    /// The values of `{x}` and `{y}`, if the template has them.
    segments: [String; 2],
    parameters: BTreeMap<String, String>,
    language: Option<String>,
}

impl CacheRequest {
    /// The request without documented defaults. Written independently of the code under test.
    fn meaning(&self) -> Meaning<'_> {
        let v1 =
            ["product_id", "flavor_id", "availability_zone", "os_type", "charge_mode", "architecture", "package_type"];
        let is_default = |name: &str, value: &str| match self.template {
            "/v1/{project_id}/product" => value.is_empty() && v1.contains(&name),
            added if ADDED.contains(&added) => false,
            _ => (name, value) == ("limit", "100") || (name, value) == ("offset", "0"),
        };
        let parameters = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let significant = parameters.filter(|(name, value)| !is_default(name, value)).collect();
        let captured = self.captured().filter(|(name, _)| self.template.contains(name)).map(|(_, value)| value);
        (self.template, captured.collect(), significant, self.language.as_deref())
    }

    fn captured(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let [x, y] = &self.segments;
        [("{project_id}", self.project_id.as_str()), ("{x}", x), ("{y}", y)].into_iter()
    }

    fn path(&self) -> String {
        self.captured().fold(self.template.to_owned(), |path, (name, value)| path.replace(name, value))
    }

    /// Writes the request, in an order and with escapes that `choices` decides.
    fn spell(&self, choices: &[u8]) -> (String, String, HeaderMap) {
        let mut choices = choices.iter().copied().cycle();
        let mut pairs: Vec<_> = self.parameters.iter().collect();
        for index in (1..pairs.len()).rev() {
            pairs.swap(index, usize::from(choices.next().unwrap_or(0)) % (index + 1));
        }
        let mut escape = |text: &str| -> String {
            let escaped = text.bytes().map(|byte| {
                let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
                // Characters that a URI allows as they are.
                let may_be_plain = plain || b"!$'()*,:@/?".contains(&byte);
                match choices.next().unwrap_or(0) % 3 {
                    0 if may_be_plain => char::from(byte).to_string(),
                    1 => format!("%{byte:02x}"),
                    _ if plain => char::from(byte).to_string(),
                    _ => format!("%{byte:02X}"),
                }
            });
            escaped.collect()
        };
        let query: Vec<_> = pairs.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
        let mut headers = HeaderMap::new();
        if let Some(language) = &self.language {
            headers.insert(X_LANGUAGE, HeaderValue::from_str(language).unwrap());
        }
        (self.path(), query.join("&"), headers)
    }

    fn key(&self, choices: &[u8]) -> RequestKey {
        let (path, query, headers) = self.spell(choices);
        key(&path, Some(&query), &headers).unwrap_or_else(|reason| panic!("{path}?{query}: {reason:?}"))
    }
}

/// Segments that could be confused with their neighbours.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![4 => select(vec!["a", "b", "p", "ab", "a.", "...", "~", "-"]).prop_map(str::to_owned), 1 => "[A-Za-z0-9_~-]{1,9}"]
}

/// Requests from a small set of values, so that equal and nearly equal ones are common.
fn cache_request() -> impl Strategy<Value = CacheRequest> {
    let name = prop_oneof![
        4 => select(vec!["limit", "offset", "os_type", "product_id", "status", "Limit", "a", "a=", "a&b"]).prop_map(str::to_owned),
        1 => "[^\\p{Cc}]{1,3}",
    ];
    let value = prop_oneof![
        4 => select(vec!["", "0", "100", "1", "Linux", "linux", "a=1", "1&a=1", " ", "+", "%", "%41", "A", "中"]).prop_map(str::to_owned),
        1 => "[^\\p{Cc}]{0,4}",
        // Long enough to matter, short enough for four of them to be a key.
        1 => (1..1_300usize).prop_map(|length| "/".repeat(length)),
    ];
    (
        prop_oneof![
            select(vec!["/v2/{project_id}/products", "/v2/{project_id}/products/sharer", "/v1/{project_id}/product"]),
            select(ADDED.to_vec()),
        ],
        prop_oneof![4 => select(vec!["p", "P", "p-1", "p_1"]).prop_map(str::to_owned), 1 => "[A-Za-z0-9_-]{1,255}"],
        [segment(), segment()],
        btree_map(name, value, 0..4),
        proptest::option::of(select(vec!["zh-cn", "en-us", ""]).prop_map(str::to_owned)),
    )
        .prop_map(|(template, project_id, segments, parameters, language)| CacheRequest {
            template,
            project_id,
            segments,
            parameters,
            language,
        })
}

fn decoded(uri: &Uri) -> Vec<(String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spellings_of_one_request_share_a_key(cache_request in cache_request(), one in vec(any::<u8>(), 64), other in vec(any::<u8>(), 64)) {
        prop_assert_eq!(cache_request.key(&one), cache_request.key(&other));
    }

    #[test]
    fn two_requests_share_a_key_only_if_they_mean_the_same(one in cache_request(), other in cache_request(), choices in vec(any::<u8>(), 64)) {
        prop_assert_eq!(one.key(&choices) == other.key(&choices), one.meaning() == other.meaning());
    }

    #[test]
    fn a_small_change_of_a_request_changes_its_key(one in cache_request(), name in "[a-z&=%+ ]{1,3}", value in "[a-z&=%+ ]{1,3}", choices in vec(any::<u8>(), 64)) {
        let mut other = one.clone();
        other.parameters.insert(name, value);
        prop_assert_eq!(one.key(&choices) == other.key(&choices), one.meaning() == other.meaning());
    }

    #[test]
    fn swapped_segments_are_another_request(one in cache_request(), choices in vec(any::<u8>(), 64)) {
        let mut other = one.clone();
        other.segments.reverse();
        prop_assert_eq!(one.key(&choices) == other.key(&choices), one.meaning() == other.meaning());
        let is_same_scope = one.key(&choices).scope() == other.key(&choices).scope();
        prop_assert_eq!(is_same_scope, one.meaning().1 == other.meaning().1);
    }

    #[test]
    fn the_request_sent_upstream_means_the_same_as_the_clients(cache_request in cache_request(), choices in vec(any::<u8>(), 64)) {
        let uri = cache_request.key(&choices).uri().unwrap();
        let (_, _, parameters, _) = cache_request.meaning();
        prop_assert_eq!(uri.path(), cache_request.path());
        let expected: Vec<_> = parameters.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        prop_assert_eq!(decoded(&uri), expected);
    }

    #[test]
    fn raw_queries_that_share_a_key_mean_the_same_to_any_server(one in "[a-c%=&+;0-9A-F]{0,12}", other in "[a-c%=&+;0-9A-F]{0,12}") {
        let read = |query: &str| key("/v2/p/products", Some(query), &HeaderMap::new());
        if let (Ok(one_key), Ok(other_key)) = (read(&one), read(&other)) {
            let meaning = |query: &str| {
                let mut pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
                pairs.sort();
                pairs
            };
            prop_assert_eq!(one_key == other_key, meaning(&one) == meaning(&other), "{:?} {:?}", one, other);
        }
    }

    #[test]
    fn any_query_is_read_without_a_panic(query in "\\PC{0,40}") {
        let _ = key("/v1/p/product", Some(&query), &HeaderMap::new());
    }
}

#[test]
fn another_upstream_is_another_key() {
    let read = |host: &'static str| {
        let origin = || Origin::new(Scheme::HTTPS, Authority::from_static(host));
        let catalogue = Catalogue::new(origin(), origin(), Vec::new());
        let (operation, path_match) = catalogue.operation("/v2/p/products").unwrap();
        RequestKey::read(&catalogue, operation, path_match, None, &HeaderMap::new(), false).unwrap()
    };
    assert_eq!(read("a.example"), read("a.example"));
    assert_ne!(read("a.example"), read("b.example"));
}

#[test]
fn another_project_or_operation_is_another_key() {
    let paths = ["/v2/p/products", "/v2/q/products", "/v2/p/products/sharer", "/v1/p/product"];
    let keys: Vec<_> = paths.iter().map(|path| key(path, None, &HeaderMap::new()).unwrap()).collect();
    for (index, one) in keys.iter().enumerate() {
        assert!(keys[..index].iter().all(|other| other != one), "{one:?}");
    }
}

#[test]
fn the_longest_accepted_query_can_be_sent_upstream() {
    let mut longest = None;
    for length in (0..16_384 / 3 + 2).rev() {
        if let Ok(key) = key("/v2/p/products", Some(&format!("a={}", "/".repeat(length))), &HeaderMap::new()) {
            longest = Some((length, key.uri().unwrap()));
            break;
        }
    }
    let (length, uri) = longest.unwrap();
    assert_eq!(uri.query().unwrap().len(), 2 + 3 * length);
    assert!(length > 5_000);
}
