//! A caching proxy with Pingora: its memory cache with its cache lock, keyed by token, path and query, on one thread.
//! Product lists are cached, everything else is proxied.

use std::error::Error;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use peers_servers::arguments;
use pingora::cache::cache_control::CacheControl;
use pingora::cache::eviction::EvictionManager;
use pingora::cache::eviction::simple_lru::Manager;
use pingora::cache::filters::resp_cacheable;
use pingora::cache::lock::{CacheKeyLockImpl, CacheLock};
use pingora::cache::{CacheKey, CacheMetaDefaults, MemCache, RespCacheable};
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;

static MEMORY: LazyLock<MemCache> = LazyLock::new(MemCache::new);
static LOCK: LazyLock<CacheLock> = LazyLock::new(|| CacheLock::new(Duration::from_secs(10)));
/// Only responses with explicit freshness are cacheable.
static DEFAULTS: CacheMetaDefaults = CacheMetaDefaults::new(|_| None, 0, 0);

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let [address, origin, mebibytes] = arguments("pingora ADDRESS ORIGIN CACHE_MEBIBYTES")?;
    let bytes = mebibytes.parse::<usize>()? << 20;
    let bound: &'static Manager = Box::leak(Box::new(Manager::new(bytes)));
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Proxy { origin, bound });
    service.add_tcp(&address);
    server.add_service(service);
    server.run_forever()
}

struct Proxy {
    origin: String,
    bound: &'static (dyn EvictionManager + Sync),
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.origin, false, String::new())))
    }

    fn request_cache_filter(&self, session: &mut Session, (): &mut ()) -> Result<()> {
        if session.req_header().uri.path().ends_with("/products") {
            let lock: &'static CacheKeyLockImpl = &*LOCK;
            session.cache.enable(&*MEMORY, Some(self.bound), None, Some(lock), None);
        }
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, (): &mut ()) -> Result<CacheKey> {
        let request = session.req_header();
        let token = request.headers.get("x-auth-token").map_or(&b""[..], |token| token.as_bytes());
        let target = request.uri.path_and_query().map_or("", |target| target.as_str());
        // Neither contains a line break.
        let mut key = Vec::with_capacity(token.len() + 1 + target.len());
        key.extend_from_slice(token);
        key.push(b'\n');
        key.extend_from_slice(target.as_bytes());
        Ok(CacheKey::new(key, ""))
    }

    fn response_cache_filter(&self, _: &Session, response: &ResponseHeader, (): &mut ()) -> Result<RespCacheable> {
        let control = CacheControl::from_resp_headers(response);
        Ok(resp_cacheable(control.as_ref(), response.clone(), false, &DEFAULTS))
    }
}
