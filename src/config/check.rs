//! Whether a table of settings can be used, and where upstream is by it.

use std::net::SocketAddr;
use std::sync::Arc;

use toml::Table;

use super::mistake::Mistake;
use super::names::BaseUrl;
use super::read::read;
use super::units::Size;
use super::{Config, Settings, operations};
use crate::catalogue::{Origin, Service};
use crate::proxy_config::ProxyConfig;

/// What is wrong with the layers so far.
#[derive(Clone, PartialEq)]
pub(super) enum Wrong {
    NoUpstream,
    Setting(Mistake),
}

/// Reads and checks the layers so far.
pub(super) fn check(table: &Table) -> Result<Config, Wrong> {
    let settings = read(table).map_err(Wrong::Setting)?;
    consistent(&settings).map_err(|message| Wrong::Setting(message.into()))?;
    let workspace = locate(&settings, Service::Workspace, settings.upstream.workspace_url.as_ref());
    let appstream = locate(&settings, Service::AppStream, settings.upstream.appstream_url.as_ref());
    // Last, for it is the one mistake that a later layer mends: the others are its own who made them.
    let is_told = workspace.is_ok() && appstream.is_ok();
    let [workspace, appstream] = [workspace, appstream].map(|origin| match origin {
        Err(Wrong::NoUpstream) => locate_anywhere(),
        origin => origin,
    });
    let catalogue =
        operations::catalogue(&settings, workspace?, appstream?).map_err(|message| Wrong::Setting(message.into()))?;
    if !is_told {
        return Err(Wrong::NoUpstream);
    }
    Ok(Config { settings, catalogue, keys: Arc::default(), admin_token: None, proxy_config: ProxyConfig::default() })
}

/// Where a service is: as given, or in the region.
fn locate(settings: &Settings, service: Service, given: Option<&BaseUrl>) -> Result<Origin, Wrong> {
    if let Some(url) = given {
        return Ok(url.0.clone());
    }
    let region = settings.region.as_ref().ok_or(Wrong::NoUpstream)?;
    let url: BaseUrl =
        service.url_in(&region.to_string()).parse().map_err(|message: String| Wrong::Setting(message.into()))?;
    Ok(url.0)
}

/// Where a service would be, to see whether anything else is wrong.
fn locate_anywhere() -> Result<Origin, Wrong> {
    let url: BaseUrl = "https://nowhere.invalid".parse().map_err(|message: String| Wrong::Setting(message.into()))?;
    Ok(url.0)
}

/// The smallest memory budget, in bytes, and how many heads of the largest size must fit into it.
const SMALLEST_BUDGET: u64 = 8 << 20;
const HEADS_IN_BUDGET: u64 = 16;

/// What no setting can tell alone.
fn consistent(settings: &Settings) -> Result<(), String> {
    let listen = &settings.listen;
    listen.files_are_consistent()?;
    listen.may_be_at(listen.proxy.0, listen.admin.0)?;
    distinct(&[
        ("listen.proxy", listen.proxy.0),
        ("listen.metrics", listen.metrics.0),
        ("listen.admin", listen.admin.0),
    ])?;
    let mut headers = settings.cache.keyed_headers.clone();
    headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    if let Some(twice) = headers.windows(2).find(|two| two[0] == two[1]) {
        return Err(format!("cache.keyed_headers: {:?} is there twice: expected each once", twice[0]));
    }
    if settings.cache.max_body_size.0 > settings.cache.max_size.0 {
        return Err(format!(
            "cache.max_body_size: {:?} is not allowed: expected at most cache.max_size, {:?}",
            settings.cache.max_body_size, settings.cache.max_size
        ));
    }
    let least = Size(SMALLEST_BUDGET.max(settings.limits.max_head_size.0.saturating_mul(HEADS_IN_BUDGET)));
    if let Some(memory) = settings.limits.memory
        && memory.0 < least.0
    {
        return Err(format!(
            "limits.memory: {memory:?} is not allowed: expected at least {least:?} (8 MiB, and {HEADS_IN_BUDGET} times \
             limits.max_head_size)"
        ));
    }
    let upstream = &settings.upstream;
    for (shorter, one, longer, other) in [
        ("connect_timeout", upstream.connect_timeout, "first_byte_timeout", upstream.first_byte_timeout),
        ("first_byte_timeout", upstream.first_byte_timeout, "answer_timeout", upstream.answer_timeout),
    ] {
        if one.0 > other.0 {
            return Err(format!(
                "upstream.{longer}: {other:?} is not allowed: expected at least upstream.{shorter}, {one:?}"
            ));
        }
    }
    Ok(())
}

/// Whether no two listeners have one address, but for ports that the system is to choose.
///
/// # Errors
/// Which of them have.
pub(crate) fn distinct(addresses: &[(&str, SocketAddr)]) -> Result<(), String> {
    for (index, (name, address)) in addresses.iter().enumerate() {
        let same = addresses[..index].iter().find(|(_, other)| other == address && address.port() != 0);
        if let Some((other, _)) = same {
            return Err(format!("{name}: {address:?} is not allowed: {other} listens there already"));
        }
    }
    Ok(())
}
