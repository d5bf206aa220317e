//! Builds the catalogue: the built-in operations, changed and extended by `[[operation]]` entries.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use super::names::{HeaderField, PathTemplate};
use super::operation::{ForwardHeaders, OperationSettings};
use super::settings::CacheSettings;
use super::{Settings, ttl};
use crate::catalogue::{
    AddOperationError, Catalogue, Forwarded, MAX_OPERATIONS, Operation, Origin, Parameter, Service, Sharing,
    is_built_in, owner,
};

pub(super) fn catalogue(settings: &Settings, workspace: Origin, appstream: Origin) -> Result<Catalogue, String> {
    let cache = &settings.cache;
    let mut catalogue = Catalogue::new(workspace, appstream, names(&cache.keyed_headers));
    let mut seen = HashSet::new();
    if let Some(twice) = settings.operation.iter().find(|entry| !seen.insert(&entry.name.0)) {
        return Err(format!("operation.{}: the name appears twice: expected one entry for each name", twice.name));
    }
    let built_in: Vec<_> = catalogue.operations().iter().map(|operation| operation.name.to_string()).collect();
    for name in &built_in {
        let entry = settings.operation.iter().find(|entry| entry.name.0 == *name);
        let Some(operation) = catalogue.operation_mut(name) else { continue };
        adjust(operation, entry, cache)?;
    }
    for entry in &settings.operation {
        if is_built_in(&entry.name.0) {
            check_built_in(entry)?;
        } else {
            let mut operation = new(entry, &mut catalogue, &built_in)?;
            adjust(&mut operation, Some(entry), cache)?;
            catalogue.add(operation).map_err(|clash| clash_error(entry, &clash))?;
        }
    }
    Ok(catalogue)
}

fn names(fields: &[HeaderField]) -> Vec<http::HeaderName> {
    fields.iter().map(|field| field.0.clone()).collect()
}

fn not_allowed(entry: &OperationSettings, field: &str, value: &dyn fmt::Debug, expected: &str) -> String {
    format!("operation.{}.{field}: {value:?} is not allowed: expected {expected}", entry.name)
}

/// Clients of a built-in operation expect its path and service.
fn check_built_in(entry: &OperationSettings) -> Result<(), String> {
    let expected =
        "none, because the path and service of a built-in operation cannot change; give a new one another name";
    match (&entry.path, &entry.service, &entry.upstream) {
        (Some(path), ..) => Err(not_allowed(entry, "path", path, expected)),
        (_, Some(service), _) => Err(not_allowed(entry, "service", service, expected)),
        (_, _, Some(upstream)) => Err(not_allowed(entry, "upstream", upstream, expected)),
        (None, None, None) => Ok(()),
    }
}

/// A new operation with its path and service only. `adjust` sets the rest.
fn new(entry: &OperationSettings, catalogue: &mut Catalogue, built_in: &[String]) -> Result<Operation, String> {
    let name = &entry.name;
    let Some(PathTemplate(template)) = &entry.path else {
        return Err(format!(
            "operation.{name}.path is not set: expected a path such as \"/v2/{{project_id}}/availability-zones\", because \
             {:?} is not one of the built-in operations {}",
            name.0,
            built_in.join(", ")
        ));
    };
    // There is no default: the operator must decide which response proves a caller.
    if entry.body.is_none() {
        return Err(format!("operation.{name}.body is not set: expected products, field:NAME, json or none"));
    }
    let service = match (&entry.service, &entry.upstream) {
        (Some(_), Some(upstream)) => return Err(not_allowed(entry, "upstream", upstream, "this or service, not both")),
        (Some(service), None) => service.0,
        (None, Some(upstream)) => catalogue.service_at(upstream.0.clone()).ok_or_else(|| too_many(entry))?,
        (None, None) => owner(template).ok_or_else(|| {
            format!(
                "operation.{name}.service is not set: expected workspace or appstream, or an upstream, because the paths \
                 of {:?} do not all belong to one service",
                template.to_string()
            )
        })?,
    };
    Ok(Operation::new(&name.0, service, template.clone(), Vec::new()))
}

/// Sets each property of an operation from its entry, or from `[cache]` where the entry has none.
fn adjust(operation: &mut Operation, entry: Option<&OperationSettings>, cache: &CacheSettings) -> Result<(), String> {
    let ttl = entry.and_then(|entry| entry.ttl).unwrap_or(cache.ttl);
    if let Some(entry) = entry {
        ttl.check(&format!("operation.{}.ttl", entry.name))?;
    }
    (operation.ttl, operation.adaptive_ttl) = (ttl.fallback(cache.ttl), ttl.adaptive());
    operation.stale_while_revalidate =
        entry.and_then(|entry| entry.stale_while_revalidate).unwrap_or(cache.stale_while_revalidate).0;
    operation.stale_if_error = entry.and_then(|entry| entry.stale_if_error).unwrap_or(cache.stale_if_error).0;
    operation.keyed_headers =
        names(entry.and_then(|entry| entry.keyed_headers.as_ref()).unwrap_or(&cache.keyed_headers));
    if let Some(entry) = entry {
        headers(operation, entry)?;
        if let Some(body) = &entry.body {
            operation.body = body.clone();
        }
        parameters(&mut operation.parameters, entry);
    }
    let given = entry.and_then(|entry| entry.sharing);
    operation.sharing = given.unwrap_or(cache.sharing);
    match (operation.unshareable(), entry) {
        (Some(because), Some(entry)) if given == Some(Sharing::Project) => {
            let expected = format!("caller, or no value, because {}", because.describe());
            Err(not_allowed(entry, "sharing", &Sharing::Project, &expected))
        }
        (Some(_), _) => {
            operation.sharing = Sharing::Caller;
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

fn headers(operation: &mut Operation, entry: &OperationSettings) -> Result<(), String> {
    let mut seen = HashSet::new();
    if let Some(twice) = operation.keyed_headers.iter().find(|name| !seen.insert(*name)) {
        return Err(not_allowed(entry, "keyed_headers", twice, "each once"));
    }
    let Some(ForwardHeaders(forwarded)) = &entry.forward_headers else { return Ok(()) };
    if let Forwarded::Named(names) = forwarded
        && let Some(twice) = names.iter().find(|name| !seen.insert(*name))
    {
        return Err(not_allowed(entry, "forward_headers", twice, "each once, and none that is in keyed_headers"));
    }
    operation.forwarded = forwarded.clone();
    Ok(())
}

/// Each of the two settings of the entry replaces the built-in list completely.
fn parameters(parameters: &mut Vec<Parameter>, entry: &OperationSettings) {
    if let Some(defaults) = &entry.defaults {
        parameters.iter_mut().for_each(|parameter| parameter.default = None);
        for (name, value) in defaults {
            parameter(parameters, name).default = Some(Cow::Owned(value.clone()));
        }
    }
    if let Some(names) = &entry.empty_is_absent {
        parameters.iter_mut().for_each(|parameter| parameter.empty_is_absent = false);
        for name in names {
            parameter(parameters, name).empty_is_absent = true;
        }
    }
}

fn parameter<'p>(parameters: &'p mut Vec<Parameter>, name: &str) -> &'p mut Parameter {
    let index = parameters.iter().position(|parameter| parameter.name == name).unwrap_or_else(|| {
        parameters.push(Parameter::named(Cow::Owned(name.to_owned())));
        parameters.len() - 1
    });
    &mut parameters[index]
}

fn clash_error(entry: &OperationSettings, clash: &AddOperationError) -> String {
    match (clash, &entry.path) {
        (AddOperationError::Path(other), Some(path)) => {
            let expected = format!("one that does not overlap with that of {} ({})", other.name, other.template);
            not_allowed(entry, "path", path, &expected)
        }
        (AddOperationError::Path(_) | AddOperationError::Full, _) => too_many(entry),
        (AddOperationError::Name, _) => not_allowed(entry, "name", &entry.name, "another name"),
    }
}

fn too_many(entry: &OperationSettings) -> String {
    format!("operation.{}: one too many: expected at most {MAX_OPERATIONS} operations in all", entry.name)
}

/// One line about an operation, for `check`.
pub(super) fn describe(operation: &Operation, catalogue: &Catalogue) -> String {
    let origin = match operation.service {
        Service::Own(_) => catalogue.origin(operation.service).to_string(),
        service => service.as_str().to_owned(),
    };
    let because = operation.unshareable().map(|because| format!(", because {}", because.describe()));
    let ttl = operation.adaptive_ttl.map(|_| format!(", ttl = {}", ttl::describe(operation)));
    format!(
        "{}: GET {} of {origin}, sharing = {:?}{}{}",
        operation.name,
        operation.template,
        operation.sharing.into_str(),
        because.unwrap_or_default(),
        ttl.unwrap_or_default()
    )
}
