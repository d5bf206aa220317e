//! An error of one setting: its path and what is wrong with it. A name that may be a secret is not shown.

use std::fmt;

use toml::Table;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct SettingError {
    /// The path of the setting.
    pub(super) path: Vec<Part>,
    pub(super) what: String,
    /// Whether the last name of the path may be a secret in the wrong place. It is then not shown.
    pub(super) is_name_hidden: bool,
    /// The sections whose settings this one refers to. If one of them has an error, this error may only result from it.
    pub(super) depends_on: &'static [&'static str],
}

/// A part of a path.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// A name in a table, or the name or id of an entry of a list.
    Name(String),
    /// An index in a list, from 0.
    Index(usize),
}

impl SettingError {
    pub(super) fn new(path: Vec<Part>, what: String) -> Self {
        Self { path, what, is_name_hidden: false, depends_on: &[] }
    }

    pub(super) fn with_hidden_name(self) -> Self {
        Self { is_name_hidden: true, ..self }
    }

    pub(super) fn depending_on(self, sections: &'static [&'static str]) -> Self {
        Self { depends_on: sections, ..self }
    }

    /// For an unknown name: the names that are allowed.
    pub(super) fn known_names(&self) -> Option<Vec<&str>> {
        let expected = self.what.strip_prefix("unknown field ")?.rsplit_once(", expected ")?.1;
        Some(expected.split('`').skip(1).step_by(2).collect())
    }

    /// Whether the error is in this setting or in a part of it.
    pub(super) fn is_about(&self, setting: &[&str]) -> bool {
        let is_it = |(part, name): (&Part, &&str)| matches!(part, Part::Name(part) if part == name);
        setting.len() <= self.path.len() && self.path.iter().zip(setting).all(is_it)
    }

    /// Replaces the index of a list's entry by the entry's name or id in this table.
    pub(super) fn by_names(mut self, table: &Table) -> Self {
        let name = match self.path.as_slice() {
            // If the name itself is wrong, the index is shown.
            [Part::Name(_), Part::Index(_), Part::Name(field), ..] if field == "name" || field == "id" => None,
            [Part::Name(list), Part::Index(index), ..] => {
                let key = if list == "operation" { "name" } else { "id" };
                table.get(list).and_then(|list| list.get(index)?.get(key)?.as_str()).map(str::to_owned)
            }
            _ => None,
        };
        if let Some(name) = name {
            self.path[1] = Part::Name(name);
        }
        self
    }
}

impl From<String> for SettingError {
    /// From a message that begins with the setting, such as `cache.ttl: …`.
    fn from(message: String) -> Self {
        let (setting, what) = message.split_once(": ").unwrap_or(("", &message));
        let mut path = Vec::new();
        for part in setting.split(['.', '[']).filter(|part| !part.is_empty()) {
            let index = part.strip_suffix(']').and_then(|index| index.parse().ok());
            path.push(index.map_or_else(|| Part::Name(part.to_owned()), Part::Index));
        }
        Self::new(path, what.to_owned())
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.path.len() - usize::from(self.is_name_hidden);
        let setting = show(&self.path[..shown]);
        let separator = if setting.is_empty() { "" } else { ": " };
        write!(f, "{setting}{separator}{}", self.what)
    }
}

pub(super) fn show(path: &[Part]) -> String {
    let mut shown = String::new();
    for part in path {
        match part {
            Part::Name(name) if shown.is_empty() => shown += name,
            Part::Name(name) => shown += &format!(".{name}"),
            Part::Index(index) => shown += &format!("[{index}]"),
        }
    }
    shown
}
