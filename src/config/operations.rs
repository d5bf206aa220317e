//! The operations: those that are built in, with what `[[operation]]` adds to them or changes of them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use super::Settings;
use super::names::{HeaderField, PathTemplate};
use super::operation::{ForwardHeaders, OperationSettings};
use super::settings::Cache;
use crate::catalogue::{
    Catalogue, Clash, Forwarded, MAX_OPERATIONS, Operation, Origin, Parameter, Service, Sharing, is_built_in, owner,
};

/// The operations that the settings amount to.
pub(super) fn catalogue(settings: &Settings, workspace: Origin, appstream: Origin) -> Result<Catalogue, String> {
    let cache = &settings.cache;
    let mut catalogue = Catalogue::new(workspace, appstream, names(&cache.keyed_headers));
    let mut seen = HashSet::new();
    if let Some(twice) = settings.operation.iter().find(|entry| !seen.insert(&entry.name.0)) {
        return Err(format!("operation.{}: the name is there twice: expected one entry for each", twice.name));
    }
    let built_in: Vec<_> = catalogue.operations().iter().map(|operation| operation.name.to_string()).collect();
    for name in &built_in {
        let entry = settings.operation.iter().find(|entry| entry.name.0 == *name);
        let Some(operation) = catalogue.operation_mut(name) else { continue };
        adjust(operation, entry, cache)?;
    }
    for entry in &settings.operation {
        if is_built_in(&entry.name.0) {
            stays_where_it_is(entry)?;
        } else {
            let mut operation = new(entry, &mut catalogue, &built_in)?;
            adjust(&mut operation, Some(entry), cache)?;
            catalogue.add(operation).map_err(|clash| in_the_way(entry, &clash))?;
        }
    }
    Ok(catalogue)
}

fn names(fields: &[HeaderField]) -> Vec<http::HeaderName> {
    fields.iter().map(|field| field.0.clone()).collect()
}

/// Tells of a setting whose value is not allowed.
fn wrong(entry: &OperationSettings, field: &str, value: &dyn fmt::Debug, expected: &str) -> String {
    format!("operation.{}.{field}: {value:?} is not allowed: expected {expected}", entry.name)
}

/// The clients of a built-in operation know where it is.
fn stays_where_it_is(entry: &OperationSettings) -> Result<(), String> {
    let expected = "none, for the path and service of a built-in operation can't change; give a new one another name";
    match (&entry.path, &entry.service, &entry.upstream) {
        (Some(path), ..) => Err(wrong(entry, "path", path, expected)),
        (_, Some(service), _) => Err(wrong(entry, "service", service, expected)),
        (_, _, Some(upstream)) => Err(wrong(entry, "upstream", upstream, expected)),
        (None, None, None) => Ok(()),
    }
}

/// The operation of an entry, as yet with every other setting at its default.
fn new(entry: &OperationSettings, catalogue: &mut Catalogue, built_in: &[String]) -> Result<Operation, String> {
    let name = &entry.name;
    let Some(PathTemplate(template)) = &entry.path else {
        return Err(format!(
            "operation.{name}.path is not set: expected a path such as \"/v2/{{project_id}}/availability-zones\", for \
             {:?} is none of {}",
            name.0,
            built_in.join(", ")
        ));
    };
    // What counts as proof is not for us to guess.
    if entry.body.is_none() {
        return Err(format!("operation.{name}.body is not set: expected products, field:NAME, json or none"));
    }
    let service = match (&entry.service, &entry.upstream) {
        (Some(_), Some(upstream)) => return Err(wrong(entry, "upstream", upstream, "this or service, not both")),
        (Some(service), None) => service.0,
        (None, Some(upstream)) => catalogue.service_at(upstream.0.clone()).ok_or_else(|| full(entry))?,
        (None, None) => owner(template).ok_or_else(|| {
            format!(
                "operation.{name}.service is not set: expected workspace or appstream, or an upstream, for the paths \
                 of {:?} don't all belong to one service",
                template.to_string()
            )
        })?,
    };
    Ok(Operation::new(&name.0, service, template.clone(), Vec::new()))
}

/// Gives an operation its settings: of its entry, or those of all.
fn adjust(operation: &mut Operation, entry: Option<&OperationSettings>, cache: &Cache) -> Result<(), String> {
    operation.ttl = entry.and_then(|entry| entry.ttl).unwrap_or(cache.ttl).0;
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
    let asked = entry.and_then(|entry| entry.sharing);
    operation.sharing = asked.unwrap_or(cache.sharing);
    match (operation.unshareable(), entry) {
        (Some(because), Some(entry)) if asked == Some(Sharing::Project) => {
            let expected = format!("caller, or nothing, because {}", because.describe());
            Err(wrong(entry, "sharing", &Sharing::Project, &expected))
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
        return Err(wrong(entry, "keyed_headers", twice, "each once"));
    }
    let Some(ForwardHeaders(forwarded)) = &entry.forward_headers else { return Ok(()) };
    if let Forwarded::Named(names) = forwarded
        && let Some(twice) = names.iter().find(|name| !seen.insert(*name))
    {
        return Err(wrong(entry, "forward_headers", twice, "each once, and none that is in keyed_headers"));
    }
    operation.forwarded = forwarded.clone();
    Ok(())
}

/// What is given takes the place of what was documented.
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

fn in_the_way(entry: &OperationSettings, clash: &Clash) -> String {
    match (clash, &entry.path) {
        (Clash::Path(other), Some(path)) => {
            let expected = format!("one with no path that {} ({}) has, too", other.name, other.template);
            wrong(entry, "path", path, &expected)
        }
        (Clash::Path(_) | Clash::Full, _) => full(entry),
        (Clash::Name, _) => wrong(entry, "name", &entry.name, "another name"),
    }
}

fn full(entry: &OperationSettings) -> String {
    format!("operation.{}: one too many: expected at most {MAX_OPERATIONS} operations in all", entry.name)
}

/// What an operation amounts to, in a line for whoever checks a configuration.
pub(super) fn describe(operation: &Operation, catalogue: &Catalogue) -> String {
    let origin = match operation.service {
        Service::Own(_) => catalogue.origin(operation.service).to_string(),
        service => service.as_str().to_owned(),
    };
    let because = operation.unshareable().map(|because| format!(", because {}", because.describe()));
    format!(
        "{}: GET {} of {origin}, sharing = {:?}{}",
        operation.name,
        operation.template,
        operation.sharing.into_str(),
        because.unwrap_or_default()
    )
}
