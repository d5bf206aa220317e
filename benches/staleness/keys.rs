//! The keys and callers of the simulated requests.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use workspace_gateway::testing::cache::store::CacheKey;
use workspace_gateway::testing::catalogue::{AdaptiveTtl, Operation};
use workspace_gateway::testing::config::{Config, Override};
use workspace_gateway::testing::request::caller::Callers;
use workspace_gateway::testing::request::key::RequestKey;

use crate::gateway::Names;

pub fn names(lists: usize, callers: usize, adaptive_ttl: Option<AdaptiveTtl>) -> Names {
    let region = Override { path: &["region"], value: "cn-north-4".into(), origin: "bench".to_owned() };
    let catalogue = Config::from_layers("staleness", "", &[region]).expect("the defaults are valid").catalogue;
    let (operation, path) = catalogue.operation("/v2/0123456789abcdef/products").expect("an operation");
    let operation = Arc::new(Operation { adaptive_ttl, ..(**operation).clone() });
    let key = |list: usize| {
        let query = format!("product_id={list}");
        let key = RequestKey::read(&catalogue, &operation, path, Some(&query), &HeaderMap::new(), false);
        CacheKey { owner: None, key: Arc::new(key.expect("a key")) }
    };
    let keys: Vec<_> = (0..lists).map(key).collect();
    let known = Callers::new([0; 32]);
    let caller = |number| known.of_token(&HeaderValue::from(number));
    Names { operation, keys, callers: (0..callers as u32).map(caller).collect() }
}
