//! Checks a table of settings as a whole, and finds the upstream URLs. It reads no file that a setting names.

use std::net::SocketAddr;
use std::sync::Arc;

use toml::Table;

use super::names::BaseUrl;
use super::read::read;
use super::setting_error::SettingError;
use super::units::Size;
use super::{Config, Settings, access_keys, fleet, keep_warm, operations, otlp, quota};
use crate::catalogue::{Origin, Service};
use crate::proxy_config::ProxyConfig;

#[derive(Clone, PartialEq)]
pub(super) enum CheckError {
    NoUpstream,
    Setting(SettingError),
}

pub(super) fn check(table: &Table) -> Result<Config, CheckError> {
    let settings = read(table).map_err(CheckError::Setting)?;
    consistent(&settings).map_err(|message| CheckError::Setting(message.into()))?;
    let workspace = locate(&settings, Service::Workspace, settings.upstream.workspace_url.as_ref());
    let appstream = locate(&settings, Service::AppStream, settings.upstream.appstream_url.as_ref());
    // A missing region is reported last: a later layer may add it. All other errors belong to the layer checked here.
    let has_upstream = workspace.is_ok() && appstream.is_ok();
    let [workspace, appstream] = [workspace, appstream].map(|origin| match origin {
        Err(CheckError::NoUpstream) => placeholder_origin(),
        origin => origin,
    });
    let catalogue = operations::catalogue(&settings, workspace?, appstream?)
        .map_err(|message| CheckError::Setting(message.into()))?;
    access_keys::check_projects(&settings.access_key).map_err(CheckError::Setting)?;
    keep_warm::check(&settings, &catalogue).map_err(CheckError::Setting)?;
    let quotas = quota::check(&settings, &catalogue).map_err(CheckError::Setting)?;
    if !has_upstream {
        return Err(CheckError::NoUpstream);
    }
    let (keys, admin_token, keep_warm, proxy_config) = (Arc::default(), None, Vec::new(), ProxyConfig::default());
    Ok(Config { settings, catalogue, keys, admin_token, keep_warm, quotas, fleet: None, otlp: None, proxy_config })
}

/// The origin of a service: its URL setting, or the public endpoint in the region.
fn locate(settings: &Settings, service: Service, given: Option<&BaseUrl>) -> Result<Origin, CheckError> {
    if let Some(url) = given {
        return Ok(url.0.clone());
    }
    let region = settings.region.as_ref().ok_or(CheckError::NoUpstream)?;
    let url: BaseUrl =
        service.url_in(&region.to_string()).parse().map_err(|message: String| CheckError::Setting(message.into()))?;
    Ok(url.0)
}

/// Used where the region is missing, to find further errors.
fn placeholder_origin() -> Result<Origin, CheckError> {
    let url: BaseUrl =
        "https://nowhere.invalid".parse().map_err(|message: String| CheckError::Setting(message.into()))?;
    Ok(url.0)
}

/// The minimum of `limits.memory`, in bytes.
const MIN_BUDGET: u64 = 8 << 20;
/// So many heads of the maximum size must fit into the budget.
const HEADS_IN_BUDGET: u64 = 16;

/// Checks settings against each other.
fn consistent(settings: &Settings) -> Result<(), String> {
    let listen = &settings.listen;
    listen.files_are_consistent()?;
    fleet::check(&settings.fleet)?;
    otlp::check(&settings.otlp)?;
    listen.check_addresses(listen.proxy.0, listen.admin.0)?;
    distinct(&[
        ("listen.proxy", listen.proxy.0),
        ("listen.metrics", listen.metrics.0),
        ("listen.admin", listen.admin.0),
    ])?;
    settings.cache.ttl.check("cache.ttl")?;
    let mut headers = settings.cache.keyed_headers.clone();
    headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    if let Some(twice) = headers.windows(2).find(|two| two[0] == two[1]) {
        return Err(format!("cache.keyed_headers: {:?} appears twice: expected each header once", twice[0]));
    }
    if settings.cache.max_body_size.0 > settings.cache.max_size.0 {
        return Err(format!(
            "cache.max_body_size: {:?} is not allowed: expected at most cache.max_size, {:?}",
            settings.cache.max_body_size, settings.cache.max_size
        ));
    }
    let minimum = Size(MIN_BUDGET.max(settings.limits.max_head_size.0.saturating_mul(HEADS_IN_BUDGET)));
    if let Some(memory) = settings.limits.memory
        && memory.0 < minimum.0
    {
        return Err(format!(
            "limits.memory: {memory:?} is not allowed: expected at least {minimum:?} (8 MiB, and {HEADS_IN_BUDGET} times \
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

/// Checks that no two listeners have the same address. Port 0 is exempt, because the system then chooses the port.
///
/// # Errors
/// Names the two settings.
pub(crate) fn distinct(addresses: &[(&str, SocketAddr)]) -> Result<(), String> {
    for (index, (name, address)) in addresses.iter().enumerate() {
        let same = addresses[..index].iter().find(|(_, other)| other == address && address.port() != 0);
        if let Some((other, _)) = same {
            return Err(format!("{name}: {address:?} is not allowed: {other} listens there already"));
        }
    }
    Ok(())
}
