//! Reads a table of settings. No error may show a value or name that can be a secret in the wrong place.

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::entries::Entry;
use super::keep_warm::KeepWarmSettings;
use super::locations::line_and_column;
use super::setting_error::{Part, SettingError};
use super::{Settings, access_keys};

/// The syntax error of a file, with its position. The text there is not shown, because it may be a secret.
pub(super) fn not_toml(error: &toml::de::Error, text: &str) -> String {
    let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
    let what = error.message().trim_end().replace('\n', " ");
    format!("not TOML: line {line}, column {column}: {what}")
}

pub(super) fn read(table: &Table) -> Result<Settings, SettingError> {
    access_keys::check_entries(table)?;
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|error| {
        let path = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Part::Index(*index)),
            Segment::Map { key } => Some(Part::Name(key.clone())),
            Segment::Enum { variant } => Some(Part::Name(variant.clone())),
            Segment::Unknown => None,
        });
        setting_error(path.collect(), error.inner().message().trim_end())
    })
}

/// Settings that had another name in an earlier version: section, old name, new name.
const RENAMED: [(&str, &str, &str); 4] = [
    ("cache", "patience", "`stale_if_slow`"),
    ("cache", "error_ttl", "`negative_ttl` (for 400, 404 and 405) and `backoff` (after a failed call)"),
    ("limits", "head_timeout", "`header_timeout`"),
    ("limits", "drain_timeout", "`shutdown_timeout`"),
];

/// An unknown name is taken for a misspelled known one if so many edits (Damerau-Levenshtein) separate them at most.
const MAX_EDITS: usize = 2;

/// Whether a name looks like that of a setting: short, and only small letters. Keys and tokens have digits or capitals.
fn is_like_a_setting(name: &str) -> bool {
    name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte == b'-')
}

/// The error of an unknown name, with the nearest known name. A name that may be a secret is not shown. In access keys
/// this is every name that is not near a known one.
pub(super) fn unknown_name(path: Vec<Part>, known: &[&str]) -> SettingError {
    let name = match path.last() {
        Some(Part::Name(name)) => name.as_str(),
        _ => "",
    };
    let expected = match known {
        [] => "no field".to_owned(),
        [one] => format!("`{one}`"),
        several => format!("one of `{}`", several.join("`, `")),
    };
    if let [Part::Name(section), Part::Name(name)] = &*path
        && let Some((_, _, now)) =
            RENAMED.iter().find(|(in_section, before, _)| in_section == section && before == name)
    {
        let what = format!("unknown field `{name}`: it was renamed to {now}");
        return SettingError::new(path, what);
    }
    let distance = |known: &&&str| strsim::damerau_levenshtein(known, name);
    let nearest = known.iter().min_by_key(distance).filter(|known| distance(known) <= MAX_EDITS);
    match nearest {
        None if is_of_key(&path) || !is_like_a_setting(name) => {
            let what = format!("unknown field (not shown, may be a secret), expected {expected}");
            SettingError::new(path, what).with_hidden_name()
        }
        None => {
            let what = format!("unknown field `{name}`, expected {expected}");
            SettingError::new(path, what)
        }
        Some(nearest) => {
            let what = format!("unknown field `{name}` (did you mean `{nearest}`?), expected {expected}");
            SettingError::new(path, what)
        }
    }
}

/// Whether a path is that of a setting in an access key, or in an entry that refers to one. A value may be the secret
/// of the key in the wrong place.
fn is_of_key(path: &[Part]) -> bool {
    matches!(path.first(), Some(Part::Name(list)) if list == "access_key" || list == "keep_warm")
}

/// Whether a path is that of a text beside `fleet.password`. A mistaken value may be the password, or a URL with it.
fn may_hold_password(path: &[Part]) -> bool {
    matches!(path, [Part::Name(section), Part::Name(name)] if section == "fleet" && (name == "engine" || name == "name"))
}

/// What serde calls a sequence or map, in words of the configuration file.
fn expectation(path: &[Part], expected: &str) -> String {
    let name = path.iter().rev().find_map(|part| match part {
        Part::Name(name) => Some(name.as_str()),
        Part::Index(_) => None,
    });
    let example = match name {
        Some("keyed_headers") => "[\"x-language\"]",
        Some("path_prefixes") => "[\"/workspace\"]",
        Some("shared_addresses") => "[\"192.0.2.0/24\"]",
        Some("projects") => "[\"0123456789abcdef0123456789abcdef\"]",
        Some("requests") => "[\"/v2/{project_id}/products\"]",
        Some("empty_is_absent") => "[\"os_type\"]",
        Some("defaults") => "{ limit = \"100\" }",
        _ if expected == "a boolean" => return "true or false".to_owned(),
        _ => return expected.to_owned(),
    };
    match expected {
        "a sequence" => format!("a list such as {example}"),
        "a map" => format!("a table such as {example}"),
        other => other.to_owned(),
    }
}

/// Makes an error of serde's message. Unknown names, all values in access keys, and values in place of a table are not
/// shown, because they may be secrets in the wrong place.
fn setting_error(path: Vec<Part>, message: &str) -> SettingError {
    let (found, expected) = message.rsplit_once(", expected ").unwrap_or((message, ""));
    if matches!(path.last(), Some(Part::Name(_))) && message.starts_with("unknown field ") {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        return unknown_name(path, &known);
    }
    let is_of_key = is_of_key(&path);
    let is_value = found.starts_with("invalid type: ") || found.starts_with("invalid value: ");
    let expected = expectation(&path, expected);
    let is_of_keep_warm = expected == KeepWarmSettings::EXPECTED;
    let is_hidden = is_of_key || is_of_keep_warm || may_hold_password(&path) || expected == "a table of settings";
    if is_value && is_hidden {
        return SettingError::new(path, format!("(not shown, may be a secret) is not allowed: expected {expected}"));
    }
    if is_value {
        return SettingError::new(path, format!("{found}, expected {expected}"));
    }
    if message.starts_with("missing field ") && matches!(path.first(), Some(Part::Name(list)) if list == "keep_warm") {
        let expected = "expected `access_key`, `projects` and `requests` in each [[keep_warm]]";
        return SettingError::new(path, format!("{message}, {expected}"));
    }
    if message.starts_with("missing field ") && matches!(path.first(), Some(Part::Name(list)) if list == "quota") {
        let expected = "expected `service`, `policy` and `limit` in each [[quota]]";
        return SettingError::new(path, format!("{message}, {expected}"));
    }
    if is_of_key && message.starts_with("missing field ") {
        return SettingError::new(path, format!("{message}, expected `id` and `secret` in each [[access_key]]"));
    }
    SettingError::new(path, message.to_owned())
}
