//! `/cache/purge`: removes the entries that the query names. An empty or misspelt query must remove nothing.

use std::collections::HashSet;

use http::StatusCode;
use serde_json::json;
use tokio::runtime::Handle;

use super::{Page, json as json_page, text};
use crate::cache::store::PurgeSelection;
use crate::catalogue::Catalogue;
use crate::config::names::ProjectId;
use crate::gateway::Gateway;
use crate::request::query as queries;
use crate::telemetry::events::{Event, NewEvent};

pub(super) fn page(gateway: &Gateway, query: &str) -> Page {
    let selection = match selection(query, gateway.active().catalogue()) {
        Ok(selection) => selection,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let purged = gateway.purge(&selection);
    let of = |what: &str, value: Option<&String>| value.map(|value| format!(" of {what} {value}")).unwrap_or_default();
    // Without the project id, because an event must not show a whole one.
    let what = format!(
        "removed from the cache: {purged} {}{}{}",
        if purged == 1 { "entry" } else { "entries" },
        of("operation", selection.operation.as_ref()),
        if selection.project_id.is_some() { " in one project" } else { "" },
    );
    gateway.observer().record_event(NewEvent::new(Event::Purge, what));
    let mut content = json!({ "purged": purged });
    // It runs on a thread that may block.
    if let Some(is_told) = Handle::current().block_on(gateway.has_told_fleet()) {
        content["fleet"] = if is_told { "told" } else { "will be told" }.into();
    }
    json_page(StatusCode::OK, &content)
}

/// Every condition must be named, `all` included: a purge with a misspelt condition must not empty the cache.
fn selection(query: &str, catalogue: &Catalogue) -> Result<PurgeSelection, String> {
    let names = || catalogue.operations().iter().map(|operation| &*operation.name);
    let mut selection = PurgeSelection::default();
    let (mut all, mut query_text) = (false, None);
    let mut seen = HashSet::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !seen.insert(name.clone()) {
            return Err(format!("{} is given more than once: expected one value", name.escape_debug()));
        }
        match (name.as_ref(), value.as_ref()) {
            ("all", "true") => all = true,
            ("operation", name) if names().any(|known| known == name) => {
                selection.operation = Some(name.to_owned());
            }
            ("operation", name) => {
                let known: Vec<_> = names().collect();
                return Err(format!("operation = {name:?} is not an operation: expected one of {}", known.join(", ")));
            }
            ("project", id) => {
                let id =
                    id.parse::<ProjectId>().map_err(|message| format!("project: {message} (whole, not shortened)"))?;
                selection.project_id = Some(id.0);
            }
            ("query", text) => query_text = Some(text.to_owned()),
            (name, value) => {
                let name = name.escape_debug();
                return Err(format!(
                    "{name} = {value:?} is not allowed: expected operation, project, query or all=true"
                ));
            }
        }
    }
    // In the canonical form, as in a cache key, so that any spelling of the query selects it.
    let operation = selection
        .operation
        .as_ref()
        .and_then(|name| catalogue.operations().iter().find(|operation| *operation.name == **name));
    selection.query = match (query_text, operation) {
        (None, _) => None,
        (Some(_), None) => return Err("query needs an operation: expected operation=NAME, too".to_owned()),
        (Some(text), Some(operation)) => match queries::canonical(Some(&text), &operation.parameters) {
            Ok(canonical) => Some(canonical.into()),
            Err(reason) => {
                return Err(format!(
                    "query = {text:?} cannot be a part of a cache key ({}): expected name=value&…",
                    reason.into_str()
                ));
            }
        },
    };
    match (all, selection == PurgeSelection::default()) {
        (true, false) => Err("all=true cannot be combined with operation, project or query".to_owned()),
        (false, true) => Err("expected operation=NAME, project=ID, both, or all=true".to_owned()),
        _ => Ok(selection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_must_name_what_it_removes() {
        let of = |operation: Option<&str>, project_id: Option<&str>| PurgeSelection {
            operation: operation.map(str::to_owned),
            project_id: project_id.map(str::to_owned),
            query: None,
        };
        let catalogue = Catalogue::for_tests(Vec::new());
        let selection = |query: &str| selection(query, &catalogue);
        assert_eq!(selection("all=true"), Ok(of(None, None)));
        assert_eq!(selection("operation=ListProduct"), Ok(of(Some("ListProduct"), None)));
        assert_eq!(selection("project=p&operation=ListProduct"), Ok(of(Some("ListProduct"), Some("p"))));
        let query = |text: &str| selection(text).map(|selection| selection.query);
        let canonical = Ok(Some("a=1&b=2".to_owned()));
        assert_eq!(query("operation=ListProducts&query=b%3D2%26a%3D1%26limit%3D100"), canonical);
        assert_eq!(query("operation=ListProducts&query="), Ok(Some(String::new())));
        for wrong in
            ["query=a%3D1", "operation=ListProducts&query=a%3D1%26a%3D2", "all=true&operation=ListProducts&query="]
        {
            assert!(selection(wrong).is_err(), "{wrong}");
        }
        for wrong in
            ["", "all=false", "all=true&project=p", "operation=List", "projct=p", "project=", "project=a&project=b"]
        {
            assert!(selection(wrong).unwrap_err().contains("expected") || wrong.contains('&'), "{wrong}");
        }
    }
}
