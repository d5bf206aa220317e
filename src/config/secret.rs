//! Settings that are secrets, or say where one is: in the configuration itself, a file, or the environment. No error, log
//! or printed configuration shows what they are.

use std::env::VarError;
use std::fmt;
use std::path::PathBuf;

use constant_time_eq::constant_time_eq_32;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use super::bounded::secret_path;
use super::files::Files;

/// Something secret, or where it is.
#[derive(Clone, PartialEq)]
pub enum Secret {
    /// In the configuration.
    Inline(String),
    /// In a file, which has nothing else in it.
    File(PathBuf),
    /// In a variable of the environment.
    Environment(String),
}

/// What stands for a secret where the configuration is shown.
const HIDDEN: &str = "(not shown)";

const BYTE_ORDER_MARK: char = '\u{feff}';

const ALLOWED: &str = "expected a text, { file = \"/path\" } or { env = \"NAME\" }";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str(HIDDEN),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "variable {name}"),
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut place = match self {
            Self::Inline(_) => return serializer.serialize_str(HIDDEN),
            Self::File(_) | Self::Environment(_) => serializer.serialize_map(Some(1))?,
        };
        match self {
            Self::File(path) => place.serialize_entry("file", path)?,
            Self::Environment(name) => place.serialize_entry("env", name)?,
            Self::Inline(_) => {}
        }
        place.end()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Any value first: whatever is wrong with it may be the secret, and no error shows it.
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == HIDDEN => Err(D::Error::custom(format!(
                "{HIDDEN:?} is what `check` shows in place of a secret that is in the file: {ALLOWED}"
            ))),
            Value::String(text) => Ok(Self::Inline(text)),
            Value::Table(place) if place.len() == 1 => match place.into_iter().next() {
                Some((name, Value::String(path))) if name == "file" => Ok(Self::File(path.into())),
                Some((name, Value::String(variable))) if name == "env" => Ok(Self::Environment(variable)),
                _ => Err(D::Error::custom(ALLOWED)),
            },
            _ => Err(D::Error::custom(ALLOWED)),
        }
    }
}

impl Secret {
    /// What it is. Files and variables end with a line break more often than secrets do.
    pub(super) fn look_up(&self, files: &mut Files) -> Result<String, String> {
        let (text, whose) = match self {
            Self::Inline(text) => (text.clone(), String::new()),
            Self::File(path) => {
                let shown = secret_path(path);
                let text = files.read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
                (text, format!("what {shown} has in it "))
            }
            Self::Environment(name) => {
                // What is set but isn't text is not shown. The name of a variable that isn't set may be the secret.
                let text = std::env::var(name).map_err(|error| match error {
                    VarError::NotPresent => {
                        "the variable that it names (not shown, for it may be the secret) is not set in the environment"
                            .to_owned()
                    }
                    VarError::NotUnicode(_) => format!("the variable {name} is not UTF-8"),
                })?;
                (text, format!("the variable {name} "))
            }
        };
        // A byte order mark is no part of a text (RFC 3629 §6). Editors and shells of Windows begin files with one.
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(format!("{whose}is empty: {ALLOWED}"));
        }
        // A file with a heading, or with the id beside it, would be a secret that nobody has.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("{whose}has blanks or line breaks in it: {ALLOWED}, and nothing besides"));
        }
        Ok(text.to_owned())
    }
}

/// How long a token has to be that opens the admin listener, in characters: too long to be found by trying.
const SHORTEST_TOKEN: usize = 16;

/// What a request to the admin listener has to show. Only a hash of it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(blake3::Hash);

impl AdminToken {
    /// The token that a setting names.
    pub(super) fn look_up(secret: &Secret, files: &mut Files) -> Result<Self, String> {
        let token = secret.look_up(files).map_err(|wrong| format!("listen.admin_token: {wrong}"))?;
        if token.len() < SHORTEST_TOKEN {
            return Err(format!("listen.admin_token: is too short: expected at least {SHORTEST_TOKEN} characters"));
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }

    /// Whether this is it. Takes as long if it is not.
    pub fn is(&self, given: &[u8]) -> bool {
        constant_time_eq_32(self.0.as_bytes(), blake3::hash(given).as_bytes())
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}
