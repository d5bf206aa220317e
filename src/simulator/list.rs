//! Makes the JSON of a product list from a query: filters, paging and echoed parameters.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Map, Value};

use super::errors::{self, ErrorReply};
use super::products::{self, Product};
use crate::catalogue::{Operation, Service};

const X_LANGUAGE: HeaderName = HeaderName::from_static("x-language");

/// The largest number of products in one response.
const MAX_LIMIT: usize = 100;
const MAX_OFFSET: usize = 5_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Language {
    English,
    Chinese,
}

/// The language of a response: English, unless `X-Language` is `zh-cn`.
pub(super) fn language(headers: &HeaderMap) -> Language {
    let chinese = headers.get(X_LANGUAGE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"zh-cn"));
    if chinese { Language::Chinese } else { Language::English }
}

/// What a list depends on besides the query.
#[derive(Clone, Copy)]
pub(super) struct ListContext {
    pub(super) version: u32,
    /// Whether the first match of each list is left out.
    pub(super) restricted: bool,
    pub(super) language: Language,
}

#[derive(Serialize)]
struct ProductList<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    os_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_count: Option<usize>,
    products: Vec<ListedProduct<'a>>,
}

#[derive(Serialize)]
struct ListedProduct<'a> {
    descriptions: Cow<'a, str>,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

impl<'a> ListedProduct<'a> {
    fn new(product: &'a Product, view: ListContext) -> Self {
        let text = match view.language {
            Language::English => &product.english,
            Language::Chinese => &product.chinese,
        };
        let descriptions = match view.version {
            0 => Cow::Borrowed(text.as_str()),
            version => Cow::Owned(format!("{text} | r{version}")),
        };
        Self { descriptions, fields: &product.fields }
    }
}

/// The body of an operation's response.
///
/// # Errors
/// When `limit` or `offset` is out of range.
pub(super) fn body(operation: &Operation, query: &str, view: ListContext) -> Result<Bytes, ErrorReply> {
    let query = ListQuery::of(operation, query);
    let limit = query.number("limit", MAX_LIMIT, MAX_LIMIT)?;
    let offset = query.number("offset", 0, MAX_OFFSET)?;
    let matching: Vec<_> = products::of(&operation.name)
        .iter()
        .filter(|product| query.filters().all(|(name, value)| product.matches(name, value)))
        .skip(usize::from(view.restricted))
        .collect();

    // `query` has documented parameters only, so that no others are echoed.
    let agile = query.value("package_type") == Some("agile");
    let list = ProductList {
        os_type: query.value("os_type"),
        availability_zone: query.value("availability_zone"),
        architecture: query.value("architecture").filter(|_| agile),
        total_count: (operation.service == Service::Workspace).then_some(matching.len()),
        products: matching.iter().skip(offset).take(limit).map(|product| ListedProduct::new(product, view)).collect(),
    };
    // This cannot fail: strings, numbers and string keys.
    Ok(serde_json::to_vec(&list).unwrap_or_default().into())
}

/// The documented parameters of a query, decoded. Other parameters are ignored. Of a repeated name, only the first
/// value is used.
pub(super) struct ListQuery<'a> {
    values: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> ListQuery<'a> {
    pub(super) fn of(operation: &'a Operation, raw: &'a str) -> Self {
        let pairs: Vec<_> = raw
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        let values = operation.parameters.iter().filter_map(|parameter| {
            let (_, value) = pairs.iter().find(|(name, _)| *name == parameter.name)?;
            let absent = parameter.empty_is_absent && value.is_empty();
            (!absent).then(|| (parameter.name.as_ref(), value.clone()))
        });
        Self { values: values.collect() }
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    fn number(&self, name: &str, default: usize, max: usize) -> Result<usize, ErrorReply> {
        let Some(text) = self.value(name) else {
            return Ok(default);
        };
        text.parse().ok().filter(|&number| number <= max).ok_or_else(|| errors::bad_parameter(name))
    }

    /// The parameters that filter products, without paging.
    fn filters(&self) -> impl Iterator<Item = (&str, &str)> {
        let filters = self.values.iter().filter(|(name, _)| !matches!(*name, "limit" | "offset"));
        filters.map(|(name, value)| (*name, value.as_ref()))
    }
}

/// Decodes like a form decoder: a plus is a space, and an invalid escape is kept.
fn decode(raw: &str) -> Cow<'_, str> {
    if raw.contains('+') {
        let spaced = raw.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(raw).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http::HeaderValue;
    use http::uri::{Authority, Scheme};

    use super::*;
    use crate::catalogue::{Catalogue, Origin};

    const VIEW: ListContext = ListContext { version: 0, restricted: false, language: Language::English };

    fn get(path: &str, query: &str, view: ListContext) -> Result<Value, ErrorReply> {
        let origin = || Origin::new(Scheme::HTTP, Authority::from_static("127.0.0.1:1"));
        let catalogue = Catalogue::new(origin(), origin(), Vec::new());
        let (operation, _) = catalogue.operation(path).unwrap();
        body(operation, query, view).map(|body| serde_json::from_slice(&body).unwrap())
    }

    const PRODUCTS: &str = "/v2/p/products";
    const SHARER: &str = "/v2/p/products/sharer";
    const V1: &str = "/v1/p/product";

    fn v2(query: &str) -> Value {
        get(PRODUCTS, query, VIEW).unwrap()
    }

    fn count(list: &Value) -> usize {
        list["products"].as_array().unwrap().len()
    }

    #[test]
    fn pages_contain_every_product_once_and_the_last_is_empty() {
        let total = v2("")["total_count"].as_u64().unwrap() as usize;
        assert!((200..1_000).contains(&total), "{total}");
        let mut ids = HashSet::new();
        for offset in (0..).step_by(70) {
            let page = v2(&format!("limit=70&offset={offset}"));
            assert_eq!(page["total_count"], total);
            if count(&page) == 0 {
                assert!(offset >= total);
                break;
            }
            for product in page["products"].as_array().unwrap() {
                assert!(ids.insert(product["product_id"].as_str().unwrap().to_owned()), "{product}");
            }
        }
        assert_eq!(ids.len(), total);
        assert_eq!(count(&v2("limit=0")), 0);
        assert_eq!(count(&v2("offset=5000")), 0);
        assert_eq!(count(&v2("")), 100);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for query in ["limit=101", "limit=-1", "limit=", "limit=x", "limit=1.5", "offset=5001", "offset=+1", "offset"] {
            let name = &query[..query.find('=').unwrap_or(query.len())];
            assert_eq!(get(PRODUCTS, query, VIEW), Err(errors::bad_parameter(name)), "{query}");
            assert_eq!(get(SHARER, query, VIEW), Err(errors::bad_parameter(name)), "{query}");
            assert_eq!(get(V1, query, VIEW), get(V1, "", VIEW), "v1 has no paging: {query}");
        }
    }

    #[test]
    fn each_documented_filter_has_an_effect() {
        for (path, query, field) in [
            (PRODUCTS, "os_type=Linux", None),
            (PRODUCTS, "availability_zone=cn-north-4c", None),
            (PRODUCTS, "product_id=workspace.k.xlarge.2.linux", None),
            (PRODUCTS, "charge_mode=1", Some("charge_mode")),
            (PRODUCTS, "architecture=arm", Some("architecture")),
            (PRODUCTS, "package_type=agile", Some("package_type")),
            (SHARER, "product_id=workspace.collaborativedesktop.6party.standard", None),
            (SHARER, "charge_mode=6", Some("charge_mode")),
            (SHARER, "package_type=user_sharer", Some("package_type")),
            (SHARER, "share_space_size=6", None),
            (SHARER, "is_gpu=1", None),
            (SHARER, "is_gpu=0", None),
            (V1, "product_id=workspace.appstream.general.2xlarge.2", Some("product_id")),
            (V1, "flavor_id=s2.xlarge.2", Some("flavor_id")),
            (V1, "availability_zone=cn-north-4a", None),
            (V1, "os_type=Linux", None),
            (V1, "charge_mode=0", Some("charge_mode")),
            (V1, "architecture=arm", Some("architecture")),
            (V1, "package_type=dedicated", Some("package_type")),
        ] {
            let list = get(path, query, VIEW).unwrap();
            assert!(count(&list) > 0, "{query}: {list}");
            assert_ne!(list["products"], get(path, "", VIEW).unwrap()["products"], "{query}");
            if let Some(field) = field {
                let value = query.split_once('=').unwrap().1;
                assert!(list["products"].as_array().unwrap().iter().all(|product| product[field] == value), "{query}");
            }
        }
    }

    #[test]
    fn a_product_id_in_v2_selects_the_products_it_can_be_changed_to() {
        let list = v2("product_id=workspace.k.xlarge.2.linux");
        let products = list["products"].as_array().unwrap();
        assert!(products.iter().all(|product| product["product_id"] != "workspace.k.xlarge.2.linux"));
        assert!(products.iter().all(|product| product["architecture"] == "arm" && product["charge_mode"] == "0"));
        assert_eq!(v2("product_id=no.such")["total_count"], 0);
    }

    #[test]
    fn empty_values_match_nothing_in_v2_and_everything_in_v1() {
        assert_eq!(v2("os_type=")["products"], Value::Array(Vec::new()));
        assert_eq!(get(V1, "os_type=&flavor_id=", VIEW), get(V1, "", VIEW));
    }

    #[test]
    fn queries_are_parsed_leniently() {
        assert_eq!(v2("os%5Ftype=%4Cinux&&status=normal&x"), v2("os_type=Linux"));
        assert_eq!(v2("charge_mode=1&charge_mode=0"), v2("charge_mode=1"));
        assert_eq!(v2("os_type=%4")["total_count"], 0);
        assert_eq!(v2("flavor_id=s2.xlarge.2"), v2(""), "documented elsewhere only");
    }

    #[test]
    fn parameters_are_echoed_as_documented() {
        let keys = |list: &Value| list.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&v2("charge_mode=0&architecture=arm")), ["products", "total_count"]);
        let list = v2("os_type=Linux&availability_zone=cn-north-4a&package_type=agile&architecture=arm");
        assert_eq!(keys(&list), ["architecture", "availability_zone", "os_type", "products", "total_count"]);
        assert_eq!((&list["os_type"], &list["architecture"]), (&"Linux".into(), &"arm".into()));
        assert_eq!(keys(&get(SHARER, "os_type=Linux", VIEW).unwrap()), ["products", "total_count"]);
        assert_eq!(keys(&get(V1, "os_type=Windows", VIEW).unwrap()), ["os_type", "products"]);
        assert_eq!(count(&get(V1, "", VIEW).unwrap()), 100);
    }

    #[test]
    fn version_view_and_language_change_the_list() {
        let chinese = language(&HeaderMap::from_iter([(X_LANGUAGE, HeaderValue::from_static("zh-cn"))]));
        assert_eq!((chinese, language(&HeaderMap::new())), (Language::Chinese, Language::English));
        for path in [PRODUCTS, SHARER, V1] {
            let usual = get(path, "", VIEW);
            for view in [
                ListContext { version: 1, ..VIEW },
                ListContext { restricted: true, ..VIEW },
                ListContext { language: chinese, ..VIEW },
            ] {
                assert_ne!(get(path, "", view), usual);
            }
            assert_ne!(
                get(path, "", ListContext { version: 1, ..VIEW }),
                get(path, "", ListContext { version: 2, ..VIEW })
            );
        }
    }
}
