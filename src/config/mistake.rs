//! One mistake of the settings: which setting is wrong, and how.

use std::fmt;

use toml::Table;

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mistake {
    /// The names, and places in lists, that lead to the setting.
    pub(super) path: Vec<Part>,
    pub(super) what: String,
    /// Whether the last name of the path may be a secret in the wrong place, so that it is not shown.
    pub(super) is_name_hidden: bool,
}

/// A step on the way to a setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// In a table; also an entry of a list, by its name or id.
    Name(String),
    /// In a list, from 0 on.
    Index(usize),
}

impl Mistake {
    pub(super) fn new(path: Vec<Part>, what: String) -> Self {
        Self { path, what, is_name_hidden: false }
    }

    /// The same, with the last name of the path not shown.
    pub(super) fn with_hidden_name(self) -> Self {
        Self { is_name_hidden: true, ..self }
    }

    /// If it is a name that no setting has: those that there are.
    pub(super) fn known_names(&self) -> Option<Vec<&str>> {
        let expected = self.what.strip_prefix("unknown field ")?.rsplit_once(", expected ")?.1;
        Some(expected.split('`').skip(1).step_by(2).collect())
    }

    /// Whether it is about this setting, or something in it.
    pub(super) fn is_about(&self, setting: &[&str]) -> bool {
        let is_it = |(part, name): (&Part, &&str)| matches!(part, Part::Name(part) if part == name);
        setting.len() <= self.path.len() && self.path.iter().zip(setting).all(is_it)
    }

    /// Calls entries of lists by their names or ids, as these stand in a table.
    pub(super) fn by_names(mut self, table: &Table) -> Self {
        let name = match self.path.as_slice() {
            // What is wrong with the name itself is told by the place.
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

impl From<String> for Mistake {
    /// Of words that begin with the setting: `cache.ttl: …`.
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

impl fmt::Display for Mistake {
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
