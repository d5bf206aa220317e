//! Finds all errors of the settings in one run. The setting with an error is reset to its default, and the table is
//! checked again, until there is no error. All unknown names of a table are reported together, so that a file full of
//! them takes one check, not one for each.

use std::collections::HashMap;

use toml::{Table, Value};

use super::Config;
use super::check::{CheckError, check};
use super::read::unknown_name;
use super::setting_error::{Part, SettingError, show};

/// The maximum number of errors that are reported for the settings, and separately for the secrets.
pub(super) const MAX_REPORTED: usize = 50;

/// The maximum number of resets. An error that only results from a reset is not reported, but counts here.
const MAX_ROUNDS: usize = 4 * MAX_REPORTED;

/// The errors of a table after the first one, and the configuration without the wrong settings, if that is valid.
/// Entries of lists are given by their index in this table.
pub(super) fn find(table: Table, defaults: &Table, first: &SettingError) -> (Vec<SettingError>, Option<Config>) {
    let mut repair = Repair { original: table.clone(), table, defaults, remaining: HashMap::new(), resets: Vec::new() };
    let (mut found, mut last) = (repair.remove_unknown_siblings(first), first.clone());
    for _ in 0..MAX_ROUNDS {
        if found.len() >= MAX_REPORTED || !repair.reset(&last) {
            break;
        }
        let next = match check(&repair.table) {
            Ok(config) => return (found, Some(config)),
            Err(CheckError::NoUpstream) => break,
            Err(CheckError::Setting(next)) => next,
        };
        let original = repair.with_original_indexes(&next);
        if !repair.has_caused(&original) {
            found.push(original);
            found.extend(repair.remove_unknown_siblings(&next));
        }
        last = next;
    }
    found.truncate(MAX_REPORTED);
    (found, None)
}

/// A table whose wrong settings are reset one by one.
struct Repair<'d> {
    original: Table,
    table: Table,
    defaults: &'d Table,
    /// For each list that lost entries: the original indexes of the remaining ones.
    remaining: HashMap<String, Vec<usize>>,
    /// The errors whose settings were reset or removed, with original indexes.
    resets: Vec<SettingError>,
}

impl Repair<'_> {
    /// Resets the setting of an error. False if that changes nothing.
    fn reset(&mut self, error: &SettingError) -> bool {
        let original = self.with_original_indexes(error);
        let is_reset = reset(&mut self.table, self.defaults, &error.path, &mut Vec::new(), &mut self.remaining);
        self.resets.push(original);
        is_reset
    }

    /// For an unknown name: removes the other unknown names in the same table and returns an error for each.
    fn remove_unknown_siblings(&mut self, error: &SettingError) -> Vec<SettingError> {
        let Some((known, parent)) = error.known_names().zip(error.path.split_last().map(|(_, parent)| parent)) else {
            return Vec::new();
        };
        let original_path = self.with_original_indexes(error).path;
        let Some(table) = table_at(&mut self.table, parent) else { return Vec::new() };
        let is_it = |name: &str| error.path.last().and_then(as_name) == Some(name);
        let unknown: Vec<String> =
            table.keys().filter(|name| !known.contains(&name.as_str()) && !is_it(name)).cloned().collect();
        table.retain(|name, _| known.contains(&name) || is_it(name));
        let errors = unknown.into_iter().take(MAX_REPORTED).map(|name| {
            let mut path = original_path.clone();
            path.pop();
            path.push(Part::Name(name));
            unknown_name(path, &known)
        });
        errors.collect()
    }

    /// The error with each entry of a list given by its index in the original table.
    fn with_original_indexes(&self, error: &SettingError) -> SettingError {
        let Some((first, rest)) = error.path.split_first() else { return error.clone() };
        let mut value = as_name(first).and_then(|name| self.table.get(name));
        let mut path = vec![first.clone()];
        for part in rest {
            let (next, part) = match value {
                Some(Value::Array(entries)) => match position(entries, part) {
                    Some(index) => {
                        let original = self.remaining.get(&show(&path)).and_then(|remaining| remaining.get(index));
                        (entries.get(index), Part::Index(*original.unwrap_or(&index)))
                    }
                    None => (None, part.clone()),
                },
                Some(Value::Table(inner)) => (as_name(part).and_then(|name| inner.get(name)), part.clone()),
                _ => (None, part.clone()),
            };
            path.push(part);
            value = next;
        }
        SettingError { path, ..error.clone() }
    }

    /// Whether a reset has caused this error, so that it is not the user's: the error names a setting that was reset,
    /// misses one that was removed, refers to a section with a reset, or is in a list that a reset has emptied.
    fn has_caused(&self, error: &SettingError) -> bool {
        let message = error.clone().by_names(&self.original).to_string();
        self.resets.iter().any(|reset| {
            let name = show(&reset.clone().by_names(&self.original).path);
            let is_missing = reset.path.split_last().is_some_and(|(field, entry)| {
                let field = as_name(field).map(|field| format!("missing field `{field}`"));
                entry == error.path && field.is_some_and(|field| error.what.contains(&field))
            });
            // Another entry may have the same name.
            let is_other_entry = matches!(
                (&*reset.path, &*error.path),
                ([list, Part::Index(one), ..], [same, Part::Index(other), ..]) if list == same && one != other
            );
            let is_referred_to = reset.path.first().and_then(as_name).is_some_and(|it| error.depends_on.contains(&it));
            let is_emptied = error.what.starts_with("is empty")
                && reset.path.split_last().is_some_and(|(_, list)| list == error.path);
            is_missing
                || is_referred_to
                || is_emptied
                || names(&error.what, &name)
                || !is_other_entry && names(&message, &name)
        })
    }
}

fn table_at<'t>(table: &'t mut Table, path: &[Part]) -> Option<&'t mut Table> {
    let Some((first, rest)) = path.split_first() else { return Some(table) };
    let mut value = table.get_mut(as_name(first)?)?;
    for part in rest {
        value = match value {
            Value::Table(table) => table.get_mut(as_name(part)?)?,
            Value::Array(entries) => {
                let index = position(entries, part)?;
                entries.get_mut(index)?
            }
            _ => return None,
        };
    }
    value.as_table_mut()
}

/// The index of an entry in a list.
fn position(entries: &[Value], entry: &Part) -> Option<usize> {
    let is_it =
        |it: &Value, name: &str| ["name", "id"].iter().any(|key| it.get(key).and_then(Value::as_str) == Some(name));
    match entry {
        Part::Index(index) => Some(*index).filter(|index| *index < entries.len()),
        Part::Name(name) => entries.iter().position(|it| is_it(it, name)),
    }
}

/// Whether a message contains the name of a setting as a whole word.
fn names(message: &str, name: &str) -> bool {
    let is_name_char = |next: char| next.is_ascii_alphanumeric() || next == '_' || next == '.';
    message
        .match_indices(name)
        .any(|(at, _)| !message[..at].ends_with(is_name_char) && !message[at + name.len()..].starts_with(is_name_char))
}

/// Resets a setting to its default, or removes it if it has none. In an entry of a list, it removes the wrong field, or
/// the whole entry if that is not possible. False if nothing changes. `at` is the path of the table, with original
/// indexes.
fn reset(
    table: &mut Table,
    defaults: &Table,
    path: &[Part],
    at: &mut Vec<Part>,
    remaining: &mut HashMap<String, Vec<usize>>,
) -> bool {
    let Some((Part::Name(name), rest)) = path.split_first() else { return false };
    let Some(present) = table.get_mut(name) else { return false };
    at.push(Part::Name(name.clone()));
    let none = Table::new();
    match (rest, present) {
        ([], present) => match defaults.get(name) {
            Some(default) if present == default => false,
            Some(default) => {
                *present = default.clone();
                true
            }
            None => table.remove(name).is_some(),
        },
        (rest, Value::Table(inner)) => {
            reset(inner, defaults.get(name).and_then(Value::as_table).unwrap_or(&none), rest, at, remaining)
        }
        ([entry, rest @ ..], Value::Array(entries)) => {
            let Some(index) = position(entries, entry) else { return false };
            let indexes = remaining.entry(show(at)).or_insert_with(|| (0..entries.len()).collect());
            // Without its operation, a quota would be that of each operation.
            let is_identity =
                matches!(rest, [Part::Name(field), ..] if ["name", "id", "operation"].contains(&field.as_str()));
            at.push(Part::Index(indexes[index]));
            if let Some(entry) = entries[index].as_table_mut()
                && !is_identity
                && reset(entry, &none, rest, at, remaining)
            {
                return true;
            }
            at.pop();
            entries.remove(index);
            if let Some(indexes) = remaining.get_mut(&show(at)) {
                indexes.remove(index);
            }
            true
        }
        _ => false,
    }
}

fn as_name(part: &Part) -> Option<&str> {
    match part {
        Part::Name(name) => Some(name),
        Part::Index(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_word_names_a_setting() {
        for (message, name, expected) in [
            ("cache.ttl: expected a duration", "cache.ttl", true),
            (
                "upstream.answer_timeout: less than upstream.first_byte_timeout (3s)",
                "upstream.first_byte_timeout",
                true,
            ),
            ("upstream.max_calls_per_caller: expected a number", "upstream.max_calls", false),
            ("operation.Models.path: expected a path", "mode", false),
            ("operation.mode.path: expected a path", "mode", false),
        ] {
            assert_eq!(names(message, name), expected, "{message}");
        }
    }
}
