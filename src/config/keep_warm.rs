//! `[[keep_warm]]`: requests whose responses the gateway keeps fresh with a configured access key. Checks the entries
//! against the access keys and the operations, and computes how many calls they cost. Nothing here makes a call.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use serde::{Deserialize, Serialize};

use super::Settings;
use super::entries::Entry;
use super::names::{AccessKeyId, ProjectId};
use super::redact::redacted;
use super::setting_error::SettingError;
use super::units::Percent;
use crate::catalogue::{Catalogue, Operation, Sharing};
use crate::request::key::RequestKey;
use crate::request::route::{self, Route};
use crate::signing::AccessKey;
use crate::signing::ring::KeyRing;

/// The most cache keys that are kept warm: the projects of each entry times its requests, in all.
pub const MAX_KEPT_WARM: usize = 100;

/// Stands for the project in a request.
const PROJECT: &str = "{project_id}";

/// `[[keep_warm]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct KeepWarmSettings {
    /// The id of an `[[access_key]]`.
    pub access_key: AccessKeyId,
    pub projects: Vec<ProjectId>,
    /// Targets of GET requests, with `{project_id}` in their path.
    pub requests: Vec<String>,
}

impl Entry for KeepWarmSettings {
    const EXPECTED: &'static str =
        "entries of the form [[keep_warm]], each with an access_key, a list of projects and a list of requests";
}

/// A GET request whose response is kept fresh.
#[derive(Clone, Debug)]
pub struct KeepWarm {
    pub key: Arc<AccessKey>,
    /// The path and the query.
    pub target: Uri,
}

/// The requests of checked entries, for each of their projects. Each has another cache key.
pub(super) fn expand(entries: &[KeepWarmSettings], keys: &KeyRing) -> Vec<KeepWarm> {
    let of_entry = |entry: &KeepWarmSettings| {
        let key = keys.keys().find(|key| key.id() == entry.access_key.0)?;
        let targets = entry.projects.iter().flat_map(|project| {
            // Every target has been parsed by `check`.
            entry.requests.iter().filter_map(|request| target(request, project).parse::<Uri>().ok())
        });
        Some(targets.map(|target| KeepWarm { key: Arc::clone(key), target }).collect::<Vec<_>>())
    };
    entries.iter().filter_map(of_entry).flatten().collect()
}

fn target(request: &str, project: &ProjectId) -> String {
    request.replace(PROJECT, &project.0)
}

/// # Errors
/// The first error, with the index of its entry.
pub(super) fn check(settings: &Settings, catalogue: &Catalogue) -> Result<(), SettingError> {
    let (mut cache_keys, mut count) = (Vec::new(), 0_usize);
    for (index, entry) in settings.keep_warm.iter().enumerate() {
        let name = format!("keep_warm[{index}]");
        count = count.saturating_add(check_lists(&name, entry)?);
        if count > MAX_KEPT_WARM {
            return Err(SettingError::from(format!(
                "{name}: {count} cache keys (projects times requests) up to this entry are too many: expected at most \
                 {MAX_KEPT_WARM} in all entries"
            )));
        }
        for (number, request) in entry.requests.iter().enumerate() {
            let place = format!("{name}.requests[{number}]");
            for project in &entry.projects {
                let cache_key = cache_key(catalogue, request, project).map_err(|what| {
                    SettingError::from(format!("{place}: {:?} is not allowed: {what}", path_of(request)))
                        .depending_on(&["operation"])
                })?;
                cache_keys.push((cache_key, place.clone(), request, project));
            }
        }
    }
    // After the lists: without its access key, an entry is not checked for further errors.
    for (index, entry) in settings.keep_warm.iter().enumerate() {
        check_access_key(&format!("keep_warm[{index}]"), entry, settings)?;
    }
    let mut first_places = HashMap::new();
    for (cache_key, place, request, project) in cache_keys {
        if let Some(first) = first_places.insert(cache_key, place.clone()) {
            return Err(SettingError::from(format!(
                "{place}: {:?} has the same cache key as {first} in project {project}: expected each cache key once",
                path_of(request)
            )));
        }
    }
    Ok(())
}

/// Returns the number of cache keys.
fn check_lists(name: &str, entry: &KeepWarmSettings) -> Result<usize, SettingError> {
    let KeepWarmSettings { projects, requests, .. } = entry;
    for (field, is_empty) in [("projects", projects.is_empty()), ("requests", requests.is_empty())] {
        if is_empty {
            return Err(SettingError::from(format!("{name}.{field}: is empty: expected at least one")));
        }
    }
    for (index, project) in projects.iter().enumerate() {
        project.check_is_no_secret(&format!("{name}.projects[{index}]"))?;
    }
    if let Some(index) = (1..projects.len()).find(|index| projects[..*index].contains(&projects[*index])) {
        let project = &projects[index];
        return Err(SettingError::from(format!(
            "{name}.projects[{index}]: {project:?} appears twice: expected each project once"
        )));
    }
    Ok(projects.len().saturating_mul(requests.len()))
}

fn check_access_key(name: &str, entry: &KeepWarmSettings, settings: &Settings) -> Result<(), SettingError> {
    let id = &entry.access_key;
    let Some(key) = settings.access_key.iter().find(|key| key.id == *id) else {
        let known = settings.access_key.iter().map(|key| key.id.0.as_str()).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "there is none".to_owned() } else { format!("there are: {known}") };
        return Err(SettingError::from(format!(
            "{name}.access_key: {id:?} is not allowed: expected the id of an [[access_key]]; {known}"
        ))
        .depending_on(&["access_key"]));
    };
    let Some(allowed) = &key.projects else { return Ok(()) };
    match entry.projects.iter().position(|project| !allowed.contains(project)) {
        None => Ok(()),
        Some(index) => Err(SettingError::from(format!(
            "{name}.projects[{index}]: {:?} is not allowed: expected a project that is in access_key.{id}.projects",
            entry.projects[index]
        ))
        .depending_on(&["access_key"])),
    }
}

/// The path of a request, for errors. What does not begin like one may be a secret in the wrong place.
fn path_of(request: &str) -> String {
    if !request.starts_with('/') && !request.contains("{project_id}") {
        return "…".to_owned();
    }
    redacted(request.split(['?', '#']).next().unwrap_or_default()).into_owned()
}

/// The cache key of a request in a project, as for a client's request without headers.
///
/// # Errors
/// What is expected instead.
fn cache_key(catalogue: &Catalogue, request: &str, project: &ProjectId) -> Result<RequestKey, String> {
    let form = || {
        format!(
            "expected a path with {PROJECT} once, in place of the project, and maybe a query, such as \
             \"/v2/{PROJECT}/products?os_type=Windows\""
        )
    };
    // The URI parser drops a fragment.
    let is_path = request.starts_with('/') && !request.contains('#') && request.matches(PROJECT).count() == 1;
    let target = target(request, project).parse::<Uri>().ok().filter(|_| is_path).ok_or_else(form)?;
    let Route::Operation(operation, path_match) = route::find(catalogue, &Method::GET, target.path()) else {
        let names = catalogue.operations().iter().map(|operation| &*operation.name).collect::<Vec<_>>().join(", ");
        return Err(format!("expected the path of an operation ({names})"));
    };
    if operation.template.project_id(target.path()) != project.0 {
        return Err(form());
    }
    if operation.sharing != Sharing::Project {
        return Err(format!(
            "expected an operation with sharing = \"project\": a response of {} is for one caller alone",
            operation.name
        ));
    }
    RequestKey::read(catalogue, operation, path_match, target.query(), &HeaderMap::new(), false)
        .map_err(|reason| format!("expected a request that can be answered from memory, but {}", reason.describe()))
}

/// The part of a lifetime after which a request is sent again. The rest is the time for the call and its turn.
pub(crate) const RESEND_AFTER: f64 = 0.9;

/// How often a request is sent upstream to keep its response fresh, on average: once in nine tenths of `ttl` less half
/// of the largest jitter. Upstream may give a lifetime of its own instead of `ttl`.
pub fn interval(ttl: Duration, jitter: Percent) -> Duration {
    ttl.mul_f64(RESEND_AFTER * (1.0 - f64::from(jitter.0) / 200.0))
}

/// The upstream calls per minute, if no client's call renews a response or a grant sooner. `scopes` are the scopes of
/// each access key: the operation and the number of requests. A scope needs a proof in nine tenths of `grant_ttl` in any
/// case. With an adaptive ttl it is the number with the shortest ttl.
pub fn calls_per_minute<'o>(
    scopes: impl IntoIterator<Item = (&'o Operation, usize)>,
    jitter: Percent,
    grant_ttl: Duration,
) -> f64 {
    let per_minute = |span: Duration| Duration::from_secs(60).div_duration_f64(span);
    let calls = scopes.into_iter().map(|(operation, requests)| {
        let ttl = operation.adaptive_ttl.map_or(operation.ttl, |limits| limits.min);
        let for_responses = per_minute(interval(ttl, jitter)) * u32::try_from(requests).map_or(f64::MAX, f64::from);
        for_responses.max(per_minute(grant_ttl.mul_f64(RESEND_AFTER)))
    });
    calls.sum()
}

/// One line about the cost of all entries, for `check`. `None` without entries.
pub(super) fn describe(kept_warm: &[KeepWarm], catalogue: &Catalogue, settings: &Settings) -> Option<String> {
    // A key and a path are a scope of one caller.
    let mut scopes: BTreeMap<(&str, &str), (&Operation, usize)> = BTreeMap::new();
    for it in kept_warm {
        let (operation, _) = catalogue.operation(it.target.path())?;
        scopes.entry((it.key.id(), it.target.path())).or_insert((operation, 0)).1 += 1;
    }
    let (jitter, grant_ttl) = (settings.cache.ttl_jitter, settings.grants.grant_ttl.0);
    let calls = match calls_per_minute(scopes.values().copied(), jitter, grant_ttl) {
        calls if calls < 0.1 => "less than 0.1".to_owned(),
        calls => format!("{calls:.1}"),
    };
    let is_upper_bound = scopes.values().any(|(operation, _)| operation.adaptive_ttl.is_some());
    let at_most = if is_upper_bound { "at most " } else { "" };
    let count = kept_warm.len();
    (count > 0).then(|| format!("keep_warm: {count} cache keys cost {at_most}{calls} upstream calls per minute"))
}

#[cfg(test)]
mod tests;
