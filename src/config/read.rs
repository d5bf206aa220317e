//! Reading a table of settings, so that no error shows what may be a secret in the wrong place.

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::mistake::{Mistake, Part};
use super::places::line_and_column;
use super::{Settings, access_keys};

/// What keeps a file from being TOML, and where. Not what is there: it may be a secret, however its setting is spelled.
pub(super) fn not_toml(error: &toml::de::Error, text: &str) -> String {
    let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
    let what = error.message().trim_end().replace('\n', " ");
    format!("not TOML: line {line}, column {column}: {what}")
}

/// Reads a table.
pub(super) fn read(table: &Table) -> Result<Settings, Mistake> {
    access_keys::are_entries(table)?;
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|error| {
        let path = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Part::Index(*index)),
            Segment::Map { key } => Some(Part::Name(key.clone())),
            Segment::Enum { variant } => Some(Part::Name(variant.clone())),
            Segment::Unknown => None,
        });
        without_secrets(path.collect(), error.inner().message().trim_end())
    })
}

/// Settings that had another name in an earlier version, and their names now.
const RENAMED: [(&str, &str, &str); 4] = [
    ("cache", "patience", "`stale_if_slow`"),
    ("cache", "error_ttl", "`negative_ttl`, and `backoff` for callers whose call failed"),
    ("limits", "head_timeout", "`header_timeout`"),
    ("limits", "drain_timeout", "`shutdown_timeout`"),
];

/// How many letters may be wrong in a name that is no setting's, if it is to be shown and a setting's is to be meant. Outside
/// of access keys, what looks like a setting's name is shown, too.
const NEAR: usize = 2;

/// Whether a name looks like a setting's: short, of small letters. Keys and tokens have digits or capital letters.
fn is_like_a_setting(name: &str) -> bool {
    name.len() <= 24 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte == b'-')
}

/// The mistake of a name that no setting has. The nearest name that one has is told. What may be a secret is not shown.
pub(super) fn unknown_name(path: Vec<Part>, known: &[&str]) -> Mistake {
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
        return Mistake::new(path, what);
    }
    let distance = |known: &&&str| strsim::damerau_levenshtein(known, name);
    let nearest = known.iter().min_by_key(distance).filter(|known| distance(known) <= NEAR);
    match nearest {
        None if is_of_key(&path) || !is_like_a_setting(name) => {
            let what = format!("unknown field (not shown, for it may be a secret), expected {expected}");
            Mistake::new(path, what).with_hidden_name()
        }
        None => {
            let what = format!("unknown field `{name}`, expected {expected}");
            Mistake::new(path, what)
        }
        Some(nearest) => {
            let what = format!("unknown field `{name}` (did you mean `{nearest}`?), expected {expected}");
            Mistake::new(path, what)
        }
    }
}

/// Whether a path leads into an access key.
fn is_of_key(path: &[Part]) -> bool {
    path.first() == Some(&Part::Name("access_key".to_owned()))
}

/// A mistake as it may be shown. A name that is no setting's, and what stands where a table should or anywhere in an access
/// key, may be a secret in the wrong place.
fn without_secrets(path: Vec<Part>, message: &str) -> Mistake {
    let (typed, expected) = message.rsplit_once(", expected ").unwrap_or((message, ""));
    if matches!(path.last(), Some(Part::Name(_))) && message.starts_with("unknown field ") {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        return unknown_name(path, &known);
    }
    let is_of_key = is_of_key(&path);
    let is_value = typed.starts_with("invalid type: ") || typed.starts_with("invalid value: ");
    if is_value && (is_of_key || expected == "a table of settings") {
        return Mistake::new(path, format!("(not shown, for it may be a secret) is not allowed: expected {expected}"));
    }
    Mistake::new(path, message.to_owned())
}
