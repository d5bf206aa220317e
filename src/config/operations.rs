//! `[[operation]]`: what an operator adds to the operations, or changes of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Settings;
use super::settings::Cache;
use super::units::{BaseUrl, HeaderField, OperationName, PathTemplate, ServiceName, Span, Window};
use crate::catalogue::{
    BodyCheck, Catalogue, Clash, Forwarded, MAX_OPERATIONS, Operation, Origin, Parameter, Service, Sharing,
    is_built_in, owner,
};

/// `[[operation]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct OperationSettings {
    /// Which operation: a built-in one, or a new name.
    pub name: OperationName,
    /// Its paths.
    pub path: Option<PathTemplate>,
    /// Who answers it.
    pub service: Option<ServiceName>,
    /// Who answers it, if neither service does.
    pub upstream: Option<BaseUrl>,
    /// How long its answers are fresh.
    pub ttl: Option<Span>,
    /// How much longer they may be given while a new one is on its way.
    pub stale_while_revalidate: Option<Window>,
    /// How much longer they may be given when upstream fails.
    pub stale_if_error: Option<Window>,
    /// Between whom they are shared.
    pub sharing: Option<Sharing>,
    /// Request headers that they depend on.
    pub keyed_headers: Option<Vec<HeaderField>>,
    /// Request headers that are sent upstream and are not in the key.
    pub forward_headers: Option<ForwardHeaders>,
    /// What the body of an answer must be.
    pub body: Option<BodyCheck>,
    /// Query parameters that mean nothing when they are empty.
    pub empty_is_absent: Option<Vec<String>>,
    /// Query parameters that mean nothing when they have this value.
    pub defaults: Option<BTreeMap<String, String>>,
}

/// A list of headers, or `"*"` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardHeaders(pub Forwarded);

impl<'de> Deserialize<'de> for ForwardHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = ForwardHeaders;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"*\", or a list of names of headers")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ForwardHeaders, E> {
                let all = (text == "*").then_some(ForwardHeaders(Forwarded::All));
                all.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ForwardHeaders, A::Error> {
                let mut names = Vec::new();
                while let Some(HeaderField(name)) = seq.next_element()? {
                    names.push(name);
                }
                Ok(ForwardHeaders(Forwarded::Named(names.into())))
            }
        }

        deserializer.deserialize_any(Names)
    }
}

impl Serialize for ForwardHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Forwarded::All => serializer.serialize_str("*"),
            Forwarded::Named(names) => serializer.collect_seq(names.iter().map(http::HeaderName::as_str)),
        }
    }
}

/// Reads the entries, and says what they should be where one table was written for all.
pub(super) fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OperationSettings>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<OperationSettings>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("entries of the form [[operation]], each with a name")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = seq.next_element()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Entries)
}

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
        operation.sharing.as_str(),
        because.unwrap_or_default()
    )
}
