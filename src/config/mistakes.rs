//! All mistakes of the settings in one run: each is noted, its setting is put back to its default, and the rest is checked
//! again. Names that no setting has are noted together, so that a file of them costs one check and not one for each.

use std::collections::HashMap;

use toml::{Table, Value};

use super::Config;
use super::check::{Wrong, check};
use super::mistake::{Mistake, Part, show};
use super::read::unknown_name;

/// How many are told in one run, of the settings and of the secrets that they name each.
pub(super) const MOST: usize = 50;

/// How often settings are put back at most. Mistakes that only follow from a
/// restored default count, too, and are not told.
const MOST_ROUNDS: usize = 4 * MOST;

/// What else is wrong with a table beside the first mistake, and what it amounts to without its mistakes, if that can be
/// used. Entries of lists are told by their places in the table.
pub(super) fn others(table: Table, defaults: &Table, first: &Mistake) -> (Vec<Mistake>, Option<Config>) {
    let mut mending = Mending { original: table.clone(), table, defaults, left: HashMap::new(), put_back: Vec::new() };
    let (mut found, mut last) = (mending.siblings(first), first.clone());
    for _ in 0..MOST_ROUNDS {
        if found.len() >= MOST || !mending.put_back(&last) {
            break;
        }
        let next = match check(&mending.table) {
            Ok(config) => return (found, Some(config)),
            Err(Wrong::NoUpstream) => break,
            Err(Wrong::Setting(next)) => next,
        };
        let told = mending.as_at_first(&next);
        if !mending.has_caused(&told) {
            found.push(told);
            found.extend(mending.siblings(&next));
        }
        last = next;
    }
    found.truncate(MOST);
    (found, None)
}

/// A table whose mistakes are taken out one after the other.
struct Mending<'d> {
    /// As it was at first.
    original: Table,
    table: Table,
    defaults: &'d Table,
    /// Which entries of a list are still there, by their places at first, for each list of which some were removed.
    left: HashMap<String, Vec<usize>>,
    /// What was put back or removed, by its place at first.
    put_back: Vec<Mistake>,
}

impl Mending<'_> {
    /// Puts the setting of a mistake back. False if that changes nothing.
    fn put_back(&mut self, mistake: &Mistake) -> bool {
        let told = self.as_at_first(mistake);
        let is_put_back = restore(&mut self.table, self.defaults, &mistake.path, &mut Vec::new(), &mut self.left);
        self.put_back.push(told);
        is_put_back
    }

    /// If a mistake is a name that no setting has: the others in the same table, which are removed.
    fn siblings(&mut self, mistake: &Mistake) -> Vec<Mistake> {
        let Some((known, parent)) = mistake.known_names().zip(mistake.path.split_last().map(|(_, parent)| parent))
        else {
            return Vec::new();
        };
        let at_first = self.as_at_first(mistake).path;
        let Some(table) = table_at(&mut self.table, parent) else { return Vec::new() };
        let is_it = |name: &str| mistake.path.last().and_then(as_name) == Some(name);
        let unknown: Vec<String> =
            table.keys().filter(|name| !known.contains(&name.as_str()) && !is_it(name)).cloned().collect();
        table.retain(|name, _| known.contains(&name) || is_it(name));
        let told = unknown.into_iter().take(MOST).map(|name| {
            let mut path = at_first.clone();
            path.pop();
            path.push(Part::Name(name));
            unknown_name(path, &known)
        });
        told.collect()
    }

    /// A mistake with places of entries as they were at first, in place of names and of what is left.
    fn as_at_first(&self, mistake: &Mistake) -> Mistake {
        let Some((first, rest)) = mistake.path.split_first() else { return mistake.clone() };
        let mut value = as_name(first).and_then(|name| self.table.get(name));
        let mut path = vec![first.clone()];
        for part in rest {
            let (next, part) = match value {
                Some(Value::Array(entries)) => match position(entries, part) {
                    Some(index) => {
                        let at_first = self.left.get(&show(&path)).and_then(|left| left.get(index));
                        (entries.get(index), Part::Index(*at_first.unwrap_or(&index)))
                    }
                    None => (None, part.clone()),
                },
                Some(Value::Table(inner)) => (as_name(part).and_then(|name| inner.get(name)), part.clone()),
                _ => (None, part.clone()),
            };
            path.push(part);
            value = next;
        }
        Mistake { path, ..mistake.clone() }
    }

    /// Whether a mistake is none of the user's: it names something that was put back, with which it does not agree, or
    /// something is missing that was removed.
    fn has_caused(&self, mistake: &Mistake) -> bool {
        let told = mistake.clone().by_names(&self.original).to_string();
        self.put_back.iter().any(|put_back| {
            let name = show(&put_back.clone().by_names(&self.original).path);
            let is_missing = put_back.path.split_last().is_some_and(|(field, entry)| {
                let field = as_name(field).map(|field| format!("missing field `{field}`"));
                entry == mistake.path && field.is_some_and(|field| mistake.what.contains(&field))
            });
            // Another entry may have the same name.
            let is_other_entry = matches!(
                (&*put_back.path, &*mistake.path),
                ([list, Part::Index(one), ..], [same, Part::Index(other), ..]) if list == same && one != other
            );
            is_missing || names(&mistake.what, &name) || !is_other_entry && names(&told, &name)
        })
    }
}

/// The table that a path leads to.
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

/// The place of an entry in a list.
fn position(entries: &[Value], entry: &Part) -> Option<usize> {
    let is_it =
        |it: &Value, name: &str| ["name", "id"].iter().any(|key| it.get(key).and_then(Value::as_str) == Some(name));
    match entry {
        Part::Index(index) => Some(*index).filter(|index| *index < entries.len()),
        Part::Name(name) => entries.iter().position(|it| is_it(it, name)),
    }
}

/// Whether a message has the name of a setting, as a word of its own.
fn names(message: &str, name: &str) -> bool {
    let goes_on = |next: char| next.is_ascii_alphanumeric() || next == '_' || next == '.';
    message
        .match_indices(name)
        .any(|(at, _)| !message[..at].ends_with(goes_on) && !message[at + name.len()..].starts_with(goes_on))
}

/// Puts a setting back to its default, or removes it. Of a list's entry, the field that is wrong is removed, or the entry, if
/// it can't be without. False if that changes nothing. `at` is where the table is, with places of entries as at first.
fn restore(
    table: &mut Table,
    defaults: &Table,
    path: &[Part],
    at: &mut Vec<Part>,
    left: &mut HashMap<String, Vec<usize>>,
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
            restore(inner, defaults.get(name).and_then(Value::as_table).unwrap_or(&none), rest, at, left)
        }
        ([entry, rest @ ..], Value::Array(entries)) => {
            let Some(index) = position(entries, entry) else { return false };
            let places = left.entry(show(at)).or_insert_with(|| (0..entries.len()).collect());
            let is_identity = matches!(rest, [Part::Name(field), ..] if field == "name" || field == "id");
            at.push(Part::Index(places[index]));
            if let Some(entry) = entries[index].as_table_mut()
                && !is_identity
                && restore(entry, &none, rest, at, left)
            {
                return true;
            }
            at.pop();
            entries.remove(index);
            if let Some(places) = left.get_mut(&show(at)) {
                places.remove(index);
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
    fn a_setting_is_named_by_a_whole_word() {
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
