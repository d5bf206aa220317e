//! Finds the line and column of a setting in the text of a file. The text is parsed only once for all errors.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting_error::{Part, SettingError};

pub(super) struct Locations<'t> {
    text: &'t str,
    table: Option<Spanned<DeTable<'t>>>,
}

impl<'t> Locations<'t> {
    /// If the text is not TOML, no location is known.
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, table: DeTable::parse(text).ok() }
    }

    /// The location of an error's setting, or of the last part of its path that is in the text. `None` if no part is.
    pub(super) fn find(&self, error: &SettingError) -> Option<String> {
        let table = self.table.as_ref()?.get_ref();
        let (mut value, mut at): (Option<&DeValue<'_>>, Option<usize>) = (None, None);
        for part in &error.path {
            let (found, start) = match (value, part) {
                (None, Part::Name(name)) => field(table, name)?,
                (Some(DeValue::Table(table)), Part::Name(name)) => match field(table, name) {
                    Some(found) => found,
                    None => break,
                },
                (Some(DeValue::Array(entries)), part) => {
                    let is_it = |entry: &DeValue<'_>, name: &str| match entry {
                        DeValue::Table(entry) => ["name", "id"]
                            .iter()
                            .any(|key| field(entry, key).is_some_and(|(value, _)| value.as_str() == Some(name))),
                        _ => false,
                    };
                    let index = match part {
                        Part::Index(index) => Some(*index),
                        Part::Name(name) => entries.iter().position(|entry| is_it(entry.get_ref(), name)),
                    };
                    let Some(entry) = index.and_then(|index| entries.get(index)) else { break };
                    (entry.get_ref(), entry.span().start)
                }
                _ => break,
            };
            (value, at) = (Some(found), Some(start));
        }
        let (line, column) = line_and_column(self.text, at?);
        Some(format!("line {line}, column {column}"))
    }
}

/// The line and column of a byte, both from 1.
pub(super) fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or_default();
    (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

fn field<'v, 'i>(table: &'v DeTable<'i>, name: &str) -> Option<(&'v DeValue<'i>, usize)> {
    let (key, value) = table.get_key_value(name)?;
    Some((value.get_ref(), key.span().start))
}
